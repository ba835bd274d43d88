package tap

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// plan is what Open found out before it changes anything.
type plan struct {
	// existing is the interface, if there is one; tun what more is known of it, unless it is a macvtap.
	existing netlink.Link
	tun      *netlink.Tuntap
	bridge   netlink.Link
	// addresses are those that the interface lacks.
	addresses []netip.Prefix
}

// Probe tells whether Open would find what it needs. It changes nothing; what it found may change until then.
func Probe(c Config) error {
	if err := c.Check(); err != nil {
		return err
	}
	if isPath(c.Name) {
		fd, err := openMacvtap(c.Name)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	}
	fd, err := openTun()
	if err != nil {
		return err
	}
	_ = unix.Close(fd) // nothing was made with it
	p, err := look(c)
	switch {
	case err != nil:
		return err
	case !netAdmin():
		return p.mayNot(c)
	}
	return nil
}

// mayNot tells what the kernel will refuse to a process without CAP_NET_ADMIN.
func (p *plan) mayNot(c Config) error {
	switch {
	case p.existing == nil:
		return notAllowed(c, nil, unix.EPERM)
	case p.tun.Owner != 0 && int64(p.tun.Owner) != int64(os.Geteuid()): // 0 may also say that it is anybody's
		return notAllowed(c, p.tun, unix.EPERM)
	}
	l := p.existing.Attrs()
	var errs []error
	if c.MTU != 0 && c.MTU != l.MTU {
		errs = append(errs, mtuError(c.Name, c.MTU, unix.EPERM))
	}
	if p.bridge != nil && p.bridge.Attrs().Index != l.MasterIndex {
		errs = append(errs, bridgeError(c.Name, c.Bridge, unix.EPERM))
	}
	for _, a := range p.addresses {
		errs = append(errs, addressError(c.Name, a, unix.EPERM))
	}
	return errors.Join(errs...)
}

// CanMake tells what keeps this process from making interfaces; nil: nothing. usable: it may at least use persistent ones of its
// user.
func CanMake() (usable bool, err error) {
	fd, err := openTun()
	if err != nil {
		return false, err
	}
	_ = unix.Close(fd)
	if !netAdmin() {
		return true, errors.New("making interfaces needs CAP_NET_ADMIN; one made by `" + addCommand("tap0", 1) + "` can be used")
	}
	return true, nil
}

// netAdmin tells whether the process has CAP_NET_ADMIN.
func netAdmin() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&hdr, &data[0])
	return err == nil && data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}

// look finds what c names and refuses what cannot be.
func look(c Config) (*plan, error) {
	p := &plan{}
	var errs []error
	if !strings.Contains(c.Name, "%") {
		switch l, err := netlink.LinkByName(c.Name); {
		case isNotFound(err):
		case err != nil:
			return nil, wrong(FieldName, "interface %s: %w", c.Name, err)
		default:
			p.existing = l
			errs = append(errs, p.checkExisting(c))
		}
	}
	if c.Bridge != "" {
		var err error
		p.bridge, err = findBridge(c.Bridge)
		errs = append(errs, err, p.checkMaster(c))
	}
	prefixes, err := c.prefixes()
	errs = append(errs, err)
	for _, a := range prefixes {
		has, err := p.hasAddress(a)
		if !has && err == nil {
			p.addresses = append(p.addresses, a)
		}
		errs = append(errs, err)
	}
	return p, errors.Join(errs...)
}

func isNotFound(err error) bool {
	return errors.As(err, new(netlink.LinkNotFoundError))
}

func (p *plan) checkExisting(c Config) error {
	kind := p.existing.Type()
	if kind == "tuntap" {
		kind = "tun"
	}
	t, ok := p.existing.(*netlink.Tuntap)
	if !ok {
		return wrong(FieldName, "interface %s: is there already and is no tap but a %s: choose another name", c.Name, describeKind(kind))
	}
	if t.Mode != netlink.TUNTAP_MODE_TAP && t.Mode != 0 { // an old kernel does not tell
		return wrong(FieldName, "interface %s: is a tun, which carries IP packets; a tap is needed: choose another name", c.Name)
	}
	p.tun = t
	// Several programs may share an interface of several queues, but each would get a part of the packets. One of a single queue that
	// is not persistent is there because a program has it open.
	if t.Queues > 0 || t.Mode != 0 && t.NonPersist {
		return taken(c.Name, unix.EBUSY)
	}
	if c.Queues > 1 && t.Mode != 0 && t.Flags&netlink.TUNTAP_MULTI_QUEUE == 0 {
		return singleQueue(c)
	}
	return nil
}

// describeKind: plain interfaces have no kind that says much.
func describeKind(kind string) string {
	if kind == "device" {
		return "device of another kind"
	}
	return kind
}

func singleQueue(c Config) error {
	return wrong(FieldQueues, "interface %s has one queue, %d are wanted: make it with several, `ip link delete %[1]s; %[3]s`", c.Name, c.Queues, addCommand(c.Name, c.Queues))
}

func findBridge(name string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	switch {
	case isNotFound(err):
		return nil, wrong(FieldBridge, "bridge %s: there is no such interface: make it, `ip link add %[1]s type bridge; ip link set %[1]s up`, or choose another", name)
	case err != nil:
		return nil, wrong(FieldBridge, "bridge %s: %w", name, err)
	case l.Type() != "bridge" && l.Type() != "openvswitch":
		return nil, wrong(FieldBridge, "bridge %s: is no bridge but a %s: choose another", name, describeKind(l.Type()))
	}
	return l, nil
}

// checkMaster refuses an interface that is in another bridge.
func (p *plan) checkMaster(c Config) error {
	if p.existing == nil || p.bridge == nil {
		return nil
	}
	master := p.existing.Attrs().MasterIndex
	if master == 0 || master == p.bridge.Attrs().Index {
		return nil
	}
	return wrong(FieldBridge, "bridge %s: interface %s is attached to %s: take it from there first, `ip link set %[2]s nomaster`", c.Bridge, c.Name, indexName(master))
}

func indexName(index int) string {
	if i, err := net.InterfaceByIndex(index); err == nil {
		return i.Name
	}
	return fmt.Sprintf("interface %d", index)
}

// hasAddress tells whether the interface has the address a already; another one that has it, or one of the same network, is an error.
func (p *plan) hasAddress(a netip.Prefix) (bool, error) {
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return false, wrong(FieldAddresses, "address %s: list the host's addresses: %w", a, err)
	}
	for _, o := range all {
		ip, ok := netip.AddrFromSlice(o.IP)
		if !ok {
			continue
		}
		bits, _ := o.Mask.Size()
		other := netip.PrefixFrom(ip.Unmap(), bits)
		mine := p.existing != nil && o.LinkIndex == p.existing.Attrs().Index
		switch {
		case mine && other.Addr() == a.Addr():
			return true, nil
		case mine:
		case other.Addr() == a.Addr():
			return false, wrong(FieldAddresses, "address %s: interface %s has it already: choose one of another network", a, indexName(o.LinkIndex))
		case other.Masked() == a.Masked() && !a.IsSingleIP():
			return false, wrong(FieldAddresses, "address %s: interface %s is in the same network, so that the guest's packets would go there: choose one of another network", a, indexName(o.LinkIndex))
		}
	}
	return false, nil
}

// addCommand is how an administrator makes a persistent interface for this user.
func addCommand(name string, queues int) string {
	who := "USER"
	if u, err := user.Current(); err == nil && u.Uid != "0" {
		who = u.Username
	} else if sudo := os.Getenv("SUDO_USER"); sudo != "" {
		who = sudo
	}
	cmd := fmt.Sprintf("ip tuntap add dev %s mode tap user %s", strings.Replace(name, "%d", "0", 1), who)
	if queues > 1 {
		cmd += " multi_queue"
	}
	return cmd
}
