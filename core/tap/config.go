package tap

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// Config says which interface to open or make, and how it shall be.
type Config struct {
	// Name is the interface's name; it may end in "%d", which stands for the first free number. Or the path of a macvtap
	// interface's device, "/dev/tap7".
	Name string
	// Queues is how many descriptors to open; 0: 1.
	Queues int
	// Bridge is the bridge to attach the interface to; empty: none.
	Bridge string
	// Addresses are the host's on the interface, "192.168.19.1/24".
	Addresses []string
	// MTU in bytes; 0: as it is.
	MTU int
}

// MaxQueues is the most queues of an interface, the kernel's MAX_TAP_QUEUES.
const MaxQueues = 256

// Bounds of an interface's MTU in bytes: ETH_MIN_MTU, and what the kernel takes for a tap (65535 less an Ethernet header).
const (
	MinMTU = 68
	MaxMTU = 65521
)

// Field names the part of a Config that an error is about.
type Field int

// Fields of Config.
const (
	FieldName Field = iota
	FieldQueues
	FieldBridge
	FieldAddresses
	FieldMTU
)

// Error is what is wrong with one field, or what could not be done with it.
type Error struct {
	Field Field
	Err   error
}

// Error implements error.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// wrong makes an *Error; the format may use %w.
func wrong(f Field, format string, args ...any) error {
	return &Error{Field: f, Err: fmt.Errorf(format, args...)}
}

// Check tells what is wrong with c itself, whatever the host has; all of it, each an *Error.
func (c *Config) Check() error {
	var errs []error
	if err := CheckName(c.Name); err != nil {
		errs = append(errs, &Error{FieldName, err})
	}
	if c.Queues < 0 || c.Queues > MaxQueues {
		errs = append(errs, wrong(FieldQueues, "%d queues: want 1 to %d", c.Queues, MaxQueues))
	}
	if c.MTU != 0 && (c.MTU < MinMTU || c.MTU > MaxMTU) {
		errs = append(errs, wrong(FieldMTU, "MTU %d: want %d to %d", c.MTU, MinMTU, MaxMTU))
	}
	if c.Bridge != "" {
		if err := checkName(c.Bridge); err != nil {
			errs = append(errs, wrong(FieldBridge, "bridge %w", err))
		}
	}
	switch path := isPath(c.Name); {
	case path && c.Bridge != "":
		errs = append(errs, wrong(FieldBridge, "bridge %s: a macvtap interface is attached already: leave it out", c.Bridge))
	case path && len(c.Addresses) > 0:
		errs = append(errs, wrong(FieldAddresses, "address %s: the host cannot be reached through a macvtap interface: leave it out", c.Addresses[0]))
	case c.Bridge != "" && len(c.Addresses) > 0:
		errs = append(errs, wrong(FieldAddresses, "address %s: an interface in a bridge has none: give it to the bridge, `ip address add %[1]s dev %s`", c.Addresses[0], c.Bridge))
	}
	_, err := c.prefixes()
	return errors.Join(append(errs, err)...)
}

// prefixes are the addresses.
func (c *Config) prefixes() ([]netip.Prefix, error) {
	var out []netip.Prefix
	var errs []error
	for _, text := range c.Addresses {
		p, err := ParseAddress(text)
		if err != nil {
			errs = append(errs, &Error{FieldAddresses, err})
			continue
		}
		for _, o := range out {
			if o.Addr() == p.Addr() {
				errs = append(errs, wrong(FieldAddresses, "address %s is there twice", text))
			}
		}
		out = append(out, p)
	}
	return out, errors.Join(errs...)
}

// ParseAddress reads a host's address with the length of its network's prefix, "192.168.19.1/24" or "fd00::1/64".
func ParseAddress(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return p, fmt.Errorf("address %q: want an IP address with its prefix's length, such as \"192.168.19.1/24\"", text)
	case p.Addr().IsUnspecified() || p.Addr().IsMulticast() || p.Addr().Is4In6():
		return p, fmt.Errorf("address %s: not one that an interface can have", text)
	case p.Addr().Is4() && p.Bits() < 31 && p.Addr() == p.Masked().Addr():
		return p, fmt.Errorf("address %s: that is the network, not a host in it: %s, for example", text, netip.PrefixFrom(p.Addr().Next(), p.Bits()))
	case p.Addr().Is4() && p.Bits() < 31 && !p.Contains(p.Addr().Next()):
		return p, fmt.Errorf("address %s: that is the network's broadcast address", text)
	}
	return p, nil
}

// CheckName tells whether name can be an interface's, may end in "%d", or is the path of a macvtap device.
func CheckName(name string) error {
	if isPath(name) {
		if !strings.HasPrefix(name, "/dev/") {
			return fmt.Errorf("interface %q: want a name, or a macvtap interface's device such as /dev/tap7", name)
		}
		return nil
	}
	base, _ := strings.CutSuffix(name, "%d")
	if strings.Contains(base, "%") {
		return fmt.Errorf("interface name %q: only \"%%d\" at its end can stand for a number", name)
	}
	if err := checkName(name); err != nil {
		return fmt.Errorf("interface %w", err)
	}
	return nil
}

func isPath(name string) bool { return strings.HasPrefix(name, "/") }

// maxName is IFNAMSIZ without the terminating zero.
const maxName = unix.IFNAMSIZ - 1

// checkName holds the kernel's rules (dev_valid_name).
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("name %q: want a name, such as tap0", name)
	case len(name) > maxName:
		return fmt.Errorf("name %q has %d bytes; the kernel takes at most %d: choose a shorter one", name, len(name), maxName)
	case strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r == ':' || r < ' ' || r == 0x7f || unicode.IsSpace(r) }):
		return fmt.Errorf("name %q: spaces, '/' and ':' cannot be part of it", name)
	}
	return nil
}
