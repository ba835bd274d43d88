package tap

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// configure makes the interface as c says. What it changes of an existing one, Close changes back.
func (t *Tap) configure(c Config, p *plan) error {
	link, err := netlink.LinkByName(t.Name)
	if err != nil {
		return wrong(FieldName, "interface %s: %w", t.Name, err)
	}
	t.Index, t.MTU = link.Attrs().Index, link.Attrs().MTU
	if err := t.setMTU(c.MTU, link); err != nil {
		return err
	}
	if err := t.attach(link, p.bridge); err != nil {
		return err
	}
	if err := t.bringUp(link); err != nil {
		return err
	}
	for _, a := range p.addresses { // when it is up, an IPv6 address is usable at once
		if err := t.addAddress(link, a); err != nil {
			return err
		}
	}
	return nil
}

// remember adds f to what Close does, if the interface stays.
func (t *Tap) remember(f func() error) {
	if !t.Made {
		t.undo = append(t.undo, f)
	}
}

// hint says what an administrator can do where we may not.
func hint(err error, command string, args ...any) string {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Sprintf(": that needs CAP_NET_ADMIN; let an administrator do it, `"+command+"`", args...)
	}
	return ""
}

func mtuError(name string, mtu int, err error) error {
	return wrong(FieldMTU, "interface %s: set its MTU to %d: %w%s", name, mtu, err, hint(err, "ip link set %s mtu %d", name, mtu))
}

func bridgeError(name, bridge string, err error) error {
	return wrong(FieldBridge, "interface %s: attach it to bridge %s: %w%s", name, bridge, err, hint(err, "ip link set %s master %s", name, bridge))
}

func addressError(name string, a netip.Prefix, err error) error {
	how := hint(err, "ip address add %s dev %s", a, name)
	if a.Addr().Is6() && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES) && netAdmin()) {
		how = ": IPv6 is switched off on this host"
	}
	return wrong(FieldAddresses, "interface %s: give it the address %s: %w%s", name, a, err, how)
}

func (t *Tap) setMTU(mtu int, link netlink.Link) error {
	was := t.MTU
	if mtu == 0 || mtu == was {
		return nil
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return mtuError(t.Name, mtu, err)
	}
	t.MTU = mtu
	t.remember(func() error { return netlink.LinkSetMTU(link, was) })
	return nil
}

// attach puts the interface into the bridge.
func (t *Tap) attach(link, bridge netlink.Link) error {
	if bridge == nil || link.Attrs().MasterIndex == bridge.Attrs().Index {
		return nil
	}
	if mac := link.Attrs().HardwareAddr; t.Made && len(mac) == 6 {
		// A bridge takes its ports' lowest address: a high one keeps ours from becoming the host's.
		high := append(net.HardwareAddr{0xfe}, mac[1:]...)
		if err := netlink.LinkSetHardwareAddr(link, high); err != nil {
			return wrong(FieldBridge, "interface %s: set its address to %s: %w", t.Name, high, err)
		}
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return bridgeError(t.Name, bridge.Attrs().Name, err)
	}
	t.remember(func() error { return netlink.LinkSetNoMaster(link) })
	return nil
}

// bringUp sets the interface up. Where it may not, an existing one stays as it is: the device tells that it is down, and goes on
// when somebody sets it up.
func (t *Tap) bringUp(link netlink.Link) error {
	if link.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	err := netlink.LinkSetUp(link)
	switch {
	case errors.Is(err, unix.EPERM) && !t.Made:
		return nil
	case err != nil:
		return wrong(FieldName, "interface %s: set it up: %w", t.Name, err)
	}
	t.remember(func() error { return setDown(link) })
	return nil
}

// setDown sets the interface down and leaves it its addresses: the kernel takes those of IPv6 from it.
func setDown(link netlink.Link) error {
	kept, err := netlink.AddrList(link, netlink.FAMILY_V6)
	errs := []error{err, netlink.LinkSetDown(link)}
	for _, a := range kept {
		if a.Flags&unix.IFA_F_PERMANENT == 0 || a.IP.IsLinkLocalUnicast() { // the kernel's own
			continue
		}
		again := &netlink.Addr{IPNet: a.IPNet, Flags: a.Flags & (unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE)}
		if err := netlink.AddrAdd(link, again); !errors.Is(err, unix.EEXIST) { // net.ipv6.conf.all.keep_addr_on_down
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (t *Tap) addAddress(link netlink.Link, a netip.Prefix) error {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
	if a.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD // the host's end of a cable of two: nobody else can have it
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return addressError(t.Name, a, err)
	}
	t.remember(func() error { return netlink.AddrDel(link, addr) })
	return nil
}
