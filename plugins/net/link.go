package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// linkCommand is `link`: somebody pulls the cable, or plugs it in again.
func linkCommand() sdk.CommandSpec {
	return sdk.CommandSpec{Name: "link", Description: "Take the link down or up, as by the cable.", Args: linkArgs{}}
}

type linkArgs struct {
	Up bool `config:"up,required" help:"Whether the link is up."`
}

// linkResult is how things stand after the command.
type linkResult struct {
	// Up is what the command set, Backend whether there is somebody at the other end, Link what the driver sees: both.
	Up      bool `json:"up"`
	Backend bool `json:"backend"`
	Link    bool `json:"link"`
}

// Command implements sdk.Commander.
func (d *device) Command(_ context.Context, name string, args json.RawMessage) (any, error) {
	if name != "link" {
		return nil, fmt.Errorf("command %s: unknown: want link", name)
	}
	a, err := sdk.DecodeArgs[linkArgs](args)
	if err != nil {
		return nil, fmt.Errorf("command link: %w", err)
	}
	d.setLink(func() { d.state.linkDown = !a.Up })
	d.mu.Lock()
	defer d.mu.Unlock()
	return linkResult{Up: !d.state.linkDown, Backend: d.linkUp, Link: d.up()}, nil
}

// linkChanged looks at the back-end's link anew.
func (d *device) linkChanged() {
	up := d.be.Link() // not under mu: a back-end may hold a lock of its own
	d.setLink(func() { d.linkUp = up })
}

// setLink lets change change what the link depends on, and tells the driver if the link went up or down. A link that comes back may
// have other switches behind it: the driver announces itself (5.1.6.5.4).
func (d *device) setLink(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before, wasDown := d.up(), d.state.linkDown
	change()
	now := d.up()
	if now == before && wasDown == d.state.linkDown {
		return
	}
	if now && !before {
		d.askAnnounce()
	}
	d.refresh()
	d.save()
	if now == before {
		return
	}
	for i := range d.pairs {
		d.pairs[i].port.Wake()
	}
	for _, q := range d.running {
		if err := q.Wake(); err != nil {
			d.tell(err)
		}
	}
	d.host.ConfigChanged()
}

// up is the link as the driver sees it. Under mu.
func (d *device) up() bool { return d.linkUp && !d.state.linkDown }

// askAnnounce asks the driver to announce itself, if it can. Under mu.
func (d *device) askAnnounce() {
	if d.features.Has(virtio.FNetAnnounce | virtio.FNetStatus) {
		d.state.announce = true
	}
}

// ReadConfig implements sdk.ConfigReader (5.1.4).
func (d *device) ReadConfig() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := make([]byte, virtio.NetConfigSize)
	copy(b[virtio.NetConfigMAC:], d.state.mac[:])
	var status uint16
	if d.up() {
		status |= virtio.NetStatusLinkUp
	}
	if d.state.announce {
		status |= virtio.NetStatusAnnounce
	}
	binary.LittleEndian.PutUint16(b[virtio.NetConfigStatus:], status)
	binary.LittleEndian.PutUint16(b[virtio.NetConfigMaxPairs:], uint16(len(d.pairs))) //nolint:gosec // G115: at most 16
	binary.LittleEndian.PutUint16(b[virtio.NetConfigMTU:], uint16(d.mtu))             //nolint:gosec // G115: at most 65520
	speed, duplex := uint32(virtio.NetSpeedUnknown), byte(virtio.NetDuplexUnknown)
	if d.cfg.Speed > 0 {
		speed, duplex = uint32(d.cfg.Speed), virtio.NetDuplexFull //nolint:gosec // G115: its tag's maximum
	}
	binary.LittleEndian.PutUint32(b[virtio.NetConfigSpeed:], speed)
	b[virtio.NetConfigDuplex] = duplex
	return b
}

// WriteConfig implements sdk.ConfigWriter: a legacy driver sets the address there, byte by byte. Modern ones have a command; the
// rest is read-only.
func (d *device) WriteConfig(offset int, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.features.Has(virtio.FVersion1) || offset >= virtio.NetConfigMAC+len(d.state.mac) {
		return nil
	}
	copy(d.state.mac[offset:], data)
	d.refresh()
	d.save()
	return nil
}

// watcher calls a function soon after changed was called, on a goroutine of its own: a back-end may tell of a change from wherever
// it is.
type watcher struct {
	token chan struct{}
	stop  context.CancelFunc
	done  sync.WaitGroup
	ctx   context.Context //nolint:containedctx // it ends the goroutine
}

func newWatcher() *watcher {
	w := &watcher{token: make(chan struct{}, 1)}
	w.ctx, w.stop = context.WithCancel(context.Background())
	return w
}

// changed never waits. Any goroutine.
func (w *watcher) changed() { signal(w.token) }

func (w *watcher) start(f func()) {
	w.done.Go(func() {
		for waitToken(w.ctx, w.token) == nil {
			f()
		}
	})
}

func (w *watcher) close() {
	w.stop()
	w.done.Wait()
}
