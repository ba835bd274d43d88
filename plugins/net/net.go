package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/virtio"
)

const (
	// frameMax is the longest frame: an IP packet of 65535 bytes, its Ethernet header and a VLAN tag.
	frameMax = 65535 + etherHeader + 4
	// mtuDefault holds where neither back-end nor settings say: Ethernet's.
	mtuDefault = 1500
	// mtuMin is the least that VIRTIO_NET_F_MTU may say (5.1.4.1).
	mtuMin = 68
)

// plugin describes the device type.
func plugin() sdk.Plugin[settings] {
	return sdk.Plugin[settings]{
		Name:        "net",
		Version:     "0.1.0",
		Device:      virtio.IDNet,
		Description: "Network interface: a network behind the host's, a tap of the host, a socket",
		Legacy:      true,
		State:       true,
		Commands:    []sdk.CommandSpec{linkCommand()},
		New: func(env *sdk.Env, cfg settings) (sdk.Device, error) {
			return newDevice(env, env, &cfg)
		},
	}
}

// host is the part of sdk.Env that tells others what happens here, and keeps the state.
type host interface {
	ConfigChanged()
	Fail(err error, needsReset bool)
	Notice(message string, facts map[string]string)
	SaveState(b []byte) error
}

// device is one network interface. Safe for concurrent use.
type device struct {
	host  host
	cfg   *settings
	be    backend
	mac   macAddress // its own; the driver may set another
	mtu   int        // the driver is told; 0: nothing
	offer virtio.Features
	pairs []pair
	ctl   controlCounters
	watch *watcher
	// rxLimit and txLimit are nil without limits.
	rxLimit, txLimit *limiter

	// rules is what the queues' loops go by, replaced as a whole.
	rules atomic.Pointer[rules]

	mu       sync.Mutex
	features virtio.Features // negotiated, as far as they count
	decided  bool            // features is set
	state    driverState
	linkUp   bool // the back-end's
	running  []ring
	saved    bool // the state was saved since the queues started
}

// pair is a queue pair and what it counts.
type pair struct {
	index              int
	port               port
	rx, tx             counters
	sending, receiving trouble
}

// rules is a snapshot of what the driver negotiated and set. Not changed once it is there.
type rules struct {
	headerSize int
	mergeable  bool
	// host are the offloads that the driver may ask for, guest those that it takes.
	host, guest virtio.Features
	// longest is the longest frame that the driver may get; whole is that either way without segmentation offload.
	longest, whole int
	up             bool
	filter         filter
	// pairs is how many queue pairs the driver uses; the others' receiveqs get nothing (5.1.6.5.5).
	pairs int
}

var _ interface {
	sdk.QueueRunner
	sdk.ConfigReader
	sdk.ConfigWriter
	sdk.FeatureSetter
	sdk.Resetter
	sdk.Commander
	sdk.StatsReader
	sdk.HealthChecker
	sdk.StateRestorer
	io.Closer
} = (*device)(nil)

// newDevice makes the device and connects it. h is env, but in tests.
func newDevice(env *sdk.Env, h host, cfg *settings) (_ *device, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	d := &device{host: h, cfg: cfg, watch: newWatcher()}
	if d.mac, err = address(env.Name, env.Identity, cfg.MAC, h); err != nil {
		return nil, err
	}
	if d.be, err = connect(env, cfg, d.mac, d.watch.changed); err != nil {
		return nil, err
	}
	if err := d.prepare(); err != nil {
		return nil, errors.Join(err, d.be.Close())
	}
	d.watch.start(d.linkChanged)
	return d, nil
}

// prepare settles what depends on the back-end.
func (d *device) prepare() error {
	o, cfg := d.be.Offer(), d.cfg
	if cfg.QueuePairs > o.Pairs {
		return sdk.SettingError("queue_pairs", "%d queue pairs: back-end %s has %d", cfg.QueuePairs, cfg.Backend, o.Pairs)
	}
	if o.MTU > 0 && cfg.MTU > o.MTU {
		return sdk.SettingError("mtu", "%d is more than the %d that back-end %s carries", cfg.MTU, o.MTU, cfg.Backend)
	}
	if d.mtu = cfg.MTU; d.mtu == 0 && o.MTU >= mtuMin {
		d.mtu = o.MTU
	}
	d.offer = offered(cfg, o, d.mtu)
	d.pairs = make([]pair, cfg.QueuePairs)
	for i := range d.pairs {
		d.pairs[i].index, d.pairs[i].port = i, d.be.Port(i)
	}
	d.rxLimit = newLimiter(uint64(cfg.RxBandwidth), uint64(cfg.RxPackets), uint64(cfg.RxBurst)) //nolint:gosec // G115: not negative
	d.txLimit = newLimiter(uint64(cfg.TxBandwidth), uint64(cfg.TxPackets), uint64(cfg.TxBurst)) //nolint:gosec // G115: not negative
	d.linkUp = d.be.Link()
	d.state.linkDown = !cfg.Link
	d.forget()
	return d.apply()
}

// connect makes the back-end that the settings name, with a capture around it if they want one.
func connect(env *sdk.Env, cfg *settings, mac macAddress, changed func()) (be backend, err error) {
	switch cfg.Backend {
	case "tap":
		be, err = newTap(env, cfg, changed)
	case "socket":
		be, err = newSocket(env, cfg, changed)
	case "loopback":
		be = newLoopback(cfg.QueuePairs)
	case "null":
		be = newNull(cfg.QueuePairs)
	default:
		be, err = newUser(env, cfg, mac, changed)
	}
	if err != nil || cfg.Capture.File == nil {
		return be, err
	}
	captured, err := newCapture(be, cfg.Capture, env)
	if err != nil {
		return nil, errors.Join(err, be.Close())
	}
	return captured, nil
}

// address is the device's own address: the one of the settings, or one made of what names the device.
func address(name string, id [16]byte, text string, h host) (m macAddress, err error) {
	if text != "" {
		b, err := net.ParseMAC(text)
		if err != nil || len(b) != len(m) {
			return m, sdk.SettingError("mac", "%q is no Ethernet address: want six bytes such as 52:54:00:12:34:56", text)
		}
		switch m = macAddress(b); {
		case m.multicast():
			return m, sdk.SettingError("mac", "%s is a multicast address: the first byte must be even, as in 52:54:00:12:34:56", text)
		case m == macAddress{}:
			return m, sdk.SettingError("mac", "%s is the address of nobody: leave mac out for one of the device's own", text)
		}
		return m, nil
	}
	unknown := id == [16]byte{}
	if unknown {
		sum := sha256.Sum256([]byte("virtplug network device " + name))
		copy(id[:], sum[:])
	}
	m[0] = 0x56 // locally administered, unicast
	copy(m[1:], id[:])
	if unknown {
		h.Notice(fmt.Sprintf("nothing names %s on this host: its address %v is made of its name, and other VMs may have the same; set mac to choose one", name, m),
			map[string]string{"mac": m.String()})
	}
	return m, nil
}

// Spec implements sdk.Device: receiveq1, transmitq1, …, controlq (5.1.2).
func (d *device) Spec() sdk.Spec {
	sizes := make([]uint16, 2*len(d.pairs)+1)
	for i := range sizes {
		sizes[i] = uint16(d.cfg.QueueSize) //nolint:gosec // G115: at most 1024
	}
	return sdk.Spec{Features: d.offer, QueueSizes: sizes}
}

// SetFeatures implements sdk.FeatureSetter.
func (d *device) SetFeatures(f virtio.Features) error {
	f, err := accepted(f)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.features, d.decided = f, true
	d.state.offloads, d.state.pairs, d.state.announce = f&guestOffloads, 1, false
	return d.apply()
}

// Reset implements sdk.Resetter.
func (d *device) Reset() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget()
	return d.apply()
}

// forget is the state before a driver. Under mu.
func (d *device) forget() {
	d.features, d.decided = 0, false
	d.state = driverState{mac: d.mac, modes: modePromisc, pairs: 1, linkDown: d.state.linkDown}
}

// apply tells back-end and loops what holds now. Under mu, or before there is anybody else.
func (d *device) apply() error {
	s := &d.state
	if err := errors.Join(d.be.SetOffloads(s.offloads), d.be.SetPairs(s.pairs)); err != nil {
		return fmt.Errorf("back-end %s: %w", d.cfg.Backend, err)
	}
	d.refresh()
	return nil
}

// refresh makes new rules. Under mu.
func (d *device) refresh() {
	f, s := d.features, &d.state
	mtu := d.mtu
	if mtu == 0 {
		mtu = mtuDefault
	}
	r := &rules{
		headerSize: headerSize(f), mergeable: f.Has(virtio.FNetMrgRxBuf),
		host: f & hostOffloads, guest: s.offloads,
		longest: mtu + etherHeader + 4, whole: frameMax, up: d.linkUp && !s.linkDown,
		pairs: s.pairs, filter: filter{mac: s.mac, modes: s.modes, uni: s.uni, multi: s.multi, vlans: s.vlans, vlanFilter: f.Has(virtio.FNetCtrlVLAN)},
	}
	if f&virtio.FNetCtrlRx == 0 {
		r.filter.modes |= modePromisc
	}
	if s.offloads&guestSegmentation != 0 {
		r.longest = frameMax
	}
	if f.Has(virtio.FNetMTU) {
		r.whole = d.mtu + etherHeader + 8 // two VLAN tags
	}
	d.rules.Store(r)
}

// Close implements io.Closer. No queue runs.
func (d *device) Close() error {
	d.watch.close()
	return d.be.Close()
}

// tell tells of what no completed chain shows.
func (d *device) tell(err error) { d.host.Fail(err, false) }
