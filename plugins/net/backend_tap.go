package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// tap is the back-end that is an interface of the host. The launcher made the interface and keeps it; a tap only uses its
// descriptors, each of which is one port. Frames go from and to guest memory by one readv(2) or writev(2) each.
type tap struct {
	env     *sdk.Env
	name    string
	changed func()
	ports   []*tapPort
	offered offer
	watch   *tapWatch // nil: the interface is out of sight

	mu     sync.Mutex // serializes SetPairs, SetOffloads, Close
	closed bool

	// gone: the host deleted the interface. Nothing brings it back, for its descriptors belong to no other.
	gone atomic.Bool
}

// maxTapMTU is the largest MTU that fits into the configuration space beside an Ethernet header in 16 bits, rounded.
const maxTapMTU = 65520

// newTap takes over the descriptors of cfg.Tap.
func newTap(env *sdk.Env, cfg *settings, changed func()) (backend, error) {
	t := &tap{env: env, name: cfg.Tap.Name, changed: changed}
	err := t.take(cfg.Tap.Queues)
	switch {
	case cfg.Tap.Name == "":
		err = sdk.SettingError("tap", "missing: back-end tap wants an interface, an existing one or a new one such as \"vp%%d\"")
	case err == nil && len(t.ports) != cfg.QueuePairs:
		err = sdk.SettingError("tap", "the launcher passed %d descriptors for %d queue pairs", len(t.ports), cfg.QueuePairs)
	}
	if err == nil {
		err = t.SetPairs(1)
	}
	if err == nil {
		err = t.probe()
	}
	if err == nil {
		t.offered.Pairs, t.offered.MTU = len(t.ports), cfg.MTU
		err = t.look(cfg)
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// take makes ports of the descriptors.
func (t *tap) take(queues []*os.File) error {
	var errs []error
	for _, f := range queues {
		// A copy, for the runtime polls what it has as an os.File: that costs at each packet.
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		errs = append(errs, os.NewSyscallError("fcntl", err), f.Close())
		if err != nil {
			continue
		}
		p := &tapPort{tap: t, fd: fd}
		t.ports = append(t.ports, p)
		p.waiter, err = newWaiter()
		errs = append(errs, err, os.NewSyscallError("fcntl", unix.SetNonblock(fd, true)))
	}
	return errors.Join(errs...)
}

// look finds the interface, to tell when it is set down, and refuses an address that the guest cannot have.
func (t *tap) look(cfg *settings) error {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	switch err = unix.IoctlIfreq(t.ports[0].fd, unix.TUNGETIFF, ifr); {
	case errors.Is(err, unix.EBADFD):
		t.lost()
		return nil
	case err == nil: // somebody may have renamed it
		t.name = ifr.Name()
	}
	i, err := findInterface(t.name)
	if err != nil { // we are in another network namespace
		t.env.Log.Warn("the interface is out of sight: when the host sets it down, the guest is not told", "interface", t.name, "error", err)
		return nil
	}
	if t.offered.MTU == 0 {
		t.offered.MTU = min(i.MTU, maxTapMTU)
	}
	given, _ := net.ParseMAC(cfg.MAC) // the device tells what is wrong with it
	switch own := bytes.Equal(given, i.HardwareAddr); {
	case t.macvtap() && !own:
		return sdk.SettingError("mac", "%s is a macvtap interface, which takes only frames for its own address: set mac = %q", t.name, i.HardwareAddr)
	case own && !t.macvtap():
		return sdk.SettingError("mac", "%v is the address of the host's end, %s: choose another one", i.HardwareAddr, t.name)
	}
	t.watch, err = watchInterface(i.Index, t.linkChanged)
	if err != nil {
		return fmt.Errorf("tap %s: %w", t.name, err)
	}
	facts := map[string]string{"interface": t.name}
	if up, there := t.watch.state(); !up && there {
		t.env.Notice(fmt.Sprintf("interface %s is down: the link is down until `ip link set dev %s up`", t.name, t.name), facts)
	} else {
		t.env.Notice("the network is the host's interface "+t.name, facts)
	}
	return nil
}

// linkChanged is called by watch.
func (t *tap) linkChanged(up, there bool) {
	facts := map[string]string{"interface": t.name}
	switch {
	case !there:
		t.lost()
		return
	case up:
		t.env.Notice(fmt.Sprintf("interface %s is up: so is the link", t.name), facts)
	default:
		t.env.Notice(fmt.Sprintf("interface %s is down: the link is down until the host sets it up", t.name), facts)
	}
	t.changed()
}

// lost is told that the interface is deleted.
func (t *tap) lost() {
	if t.gone.Swap(true) {
		return
	}
	t.env.Notice(fmt.Sprintf("interface %s was deleted: the link stays down until the VM is started again", t.name), map[string]string{"interface": t.name})
	t.changed()
}

// macvtap tells the two kinds of interface apart: TUNSETNOCSUM does nothing since Linux 2.6, and a macvtap does not know it.
func (t *tap) macvtap() bool {
	return unix.IoctlSetInt(t.ports[0].fd, unix.TUNSETNOCSUM, 0) != nil
}

// offload ties a feature to the kernel's bit for it.
type offload struct {
	feature virtio.Features
	bit     int
}

// tapOffloads are those to the driver. The kernel has no single one for USO: it takes both bits or none.
func tapOffloads() []offload {
	return []offload{
		{virtio.FNetGuestCSum, unix.TUN_F_CSUM},
		{virtio.FNetGuestTSO4, unix.TUN_F_TSO4},
		{virtio.FNetGuestTSO6, unix.TUN_F_TSO6},
		{virtio.FNetGuestECN, unix.TUN_F_TSO_ECN},
		{virtio.FNetGuestUFO, unix.TUN_F_UFO},
		{virtio.FNetGuestUSO4 | virtio.FNetGuestUSO6, unix.TUN_F_USO4 | unix.TUN_F_USO6},
	}
}

// probe asks the kernel which offloads it has, and switches all of them off. Of an interface that is deleted it says yes to all: a former
// instance may have offered any of them, and without it the driver would have to reset the device.
func (t *tap) probe() error {
	const tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	takes := func(bits int) bool {
		err := unix.IoctlSetInt(t.ports[0].fd, unix.TUNSETOFFLOAD, bits)
		return err == nil || errors.Is(err, unix.EBADFD)
	}
	if takes(tso) {
		t.offered.Host |= virtio.FNetCSum | virtio.FNetHostTSO4 | virtio.FNetHostTSO6 | virtio.FNetHostECN
		t.offered.Guest |= virtio.FNetGuestCSum | virtio.FNetGuestTSO4 | virtio.FNetGuestTSO6 | virtio.FNetGuestECN
	}
	if takes(tso | unix.TUN_F_UFO) {
		t.offered.Host |= virtio.FNetHostUFO
		t.offered.Guest |= virtio.FNetGuestUFO
	}
	if takes(tso | unix.TUN_F_USO4 | unix.TUN_F_USO6) { // Linux 6.2
		t.offered.Host |= virtio.FNetHostUSO
		t.offered.Guest |= virtio.FNetGuestUSO4 | virtio.FNetGuestUSO6
	}
	return t.SetOffloads(0)
}

// Offer implements backend.
func (t *tap) Offer() offer { return t.offered }

// SetOffloads implements backend.
func (t *tap) SetOffloads(guest virtio.Features) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	bits := 0
	if guest.Has(virtio.FNetGuestCSum) { // the others need it (5.1.3.1)
		for _, o := range tapOffloads() {
			if guest.Has(o.feature) {
				bits |= o.bit
			}
		}
	}
	if t.closed || t.gone.Load() {
		return nil
	}
	err := unix.IoctlSetInt(t.ports[0].fd, unix.TUNSETOFFLOAD, bits)
	if errors.Is(err, unix.EBADFD) { // whoever looks next tells
		return nil
	}
	if err != nil {
		return fmt.Errorf("tap %s: set offloads %#x: %w", t.name, bits, err)
	}
	return nil
}

// SetPairs implements backend: the kernel spreads packets over the attached queues.
func (t *tap) SetPairs(n int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n < 1 || n > len(t.ports) {
		return fmt.Errorf("tap %s: %d queue pairs: want 1 to %d", t.name, n, len(t.ports))
	}
	if t.closed {
		return nil
	}
	for i, p := range t.ports {
		if err := p.attach(i < n); err != nil {
			return fmt.Errorf("tap %s: queue %d: attach %t: %w", t.name, i, i < n, err)
		}
	}
	return nil
}

// Port implements backend.
func (t *tap) Port(i int) port { return t.ports[i] }

// Link implements backend.
func (t *tap) Link() bool {
	if t.gone.Load() {
		return false
	}
	if t.watch == nil {
		return true
	}
	up, _ := t.watch.state()
	return up
}

// Statistics implements backend.
func (t *tap) Statistics() map[string]uint64 {
	s := map[string]uint64{}
	for _, p := range t.ports {
		s["tap_tx_dropped_down"] += p.down.Load()
		s["tap_tx_dropped_full"] += p.full.Load()
		s["tap_tx_dropped_refused"] += p.refused.Load()
		s["tap_rx_dropped_long"] += p.long.Load()
		s["tap_rx_dropped_failed"] += p.failed.Load()
	}
	if t.watch != nil {
		s["tap_link_changes"] = t.watch.changes.Load()
	}
	return s
}

// Close implements backend. Nobody uses a port any more. The interface stays the launcher's.
func (t *tap) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	var errs []error
	if t.watch != nil {
		errs = append(errs, t.watch.Close())
	}
	for _, p := range t.ports {
		errs = append(errs, os.NewSyscallError("close", unix.Close(p.fd)))
		if p.waiter != nil {
			errs = append(errs, p.waiter.close())
		}
	}
	return errors.Join(errs...)
}
