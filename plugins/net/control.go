package main

import (
	"context"
	"encoding/binary"
	"errors"
	"sync/atomic"

	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// control serves the control queue (5.1.6.5): one command a chain, answered by one byte.
type control struct{ d *device }

func newControl(d *device) *control { return &control{d: d} }

// controlCounters count commands by how they ended.
type controlCounters struct{ ok, refused atomic.Uint64 }

func (c *control) run(ctx context.Context, q ring) error {
	return serve(ctx, q, c.answer)
}

// answer carries out the command of a chain. What it changed is saved before the driver sees the answer. A chain without room for
// the answer is none.
func (c *control) answer(chain *virtq.Chain) {
	if chain.WritableLen() == 0 {
		c.d.ctl.refused.Add(1)
		return
	}
	ack := [1]byte{virtio.NetCtrlOK}
	if err := c.d.command(chain.Reader()); err != nil {
		ack[0] = virtio.NetCtrlErr
		c.d.ctl.refused.Add(1)
	} else {
		c.d.ctl.ok.Add(1)
	}
	_, _ = chain.Writer().Write(ack[:]) // there is room
}

// errCommand says that a command is unknown, not negotiated, or its data make no sense. The driver gets no more than that either.
var errCommand = errors.New("the driver's command makes no sense")

// command reads and carries out one command.
func (d *device) command(r *virtq.Reader) error {
	var head [2]byte
	if err := r.ReadFull(head[:]); err != nil {
		return errCommand
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.state
	err := d.set(head[0], head[1], r)
	if err == nil && r.Len() > 0 {
		err = errCommand
	}
	if err == nil && (was.offloads != d.state.offloads || was.pairs != d.state.pairs) {
		if err = d.apply(); err != nil {
			d.tell(err)
			d.state = was
			_ = d.apply() // as far as it goes: what failed was told
		}
	}
	if err != nil {
		d.state = was
		return err
	}
	d.refresh()
	d.save()
	if was.announce != d.state.announce || was.mac != d.state.mac { // both are in the configuration space
		d.host.ConfigChanged()
	}
	return nil
}

// set changes the state as a command says. Under mu.
func (d *device) set(class, cmd byte, r *virtq.Reader) error {
	f := d.features
	switch class {
	case virtio.NetCtrlRx:
		return d.setMode(cmd, r)
	case virtio.NetCtrlMAC:
		switch {
		case cmd == virtio.NetCtrlMACTableSet && f.Has(virtio.FNetCtrlRx):
			return d.setTables(r)
		case cmd == virtio.NetCtrlMACAddrSet && f.Has(virtio.FNetCtrlMACAddr):
			return d.setAddress(r)
		}
	case virtio.NetCtrlVLAN:
		if f.Has(virtio.FNetCtrlVLAN) {
			return d.setVLAN(cmd, r)
		}
	case virtio.NetCtrlAnnounce:
		if cmd == virtio.NetCtrlAnnounceAck && f.Has(virtio.FNetAnnounce) {
			d.state.announce = false
			return nil
		}
	case virtio.NetCtrlMQ:
		if cmd == virtio.NetCtrlMQPairsSet && f.Has(virtio.FNetMQ) {
			return d.setPairs(r)
		}
	case virtio.NetCtrlOffloads:
		if cmd == virtio.NetCtrlOffloadsSet && f.Has(virtio.FNetCtrlOffloads) {
			return d.setOffloads(r)
		}
	}
	return errCommand
}

// setMode turns a receive mode on or off (5.1.6.5.1).
func (d *device) setMode(cmd byte, r *virtq.Reader) error {
	need := virtio.FNetCtrlRx
	if cmd > virtio.NetCtrlRxAllMulti {
		need = virtio.FNetCtrlRxExtra
	}
	var on [1]byte
	if cmd > virtio.NetCtrlRxNoBcast || !d.features.Has(need) || r.ReadFull(on[:]) != nil || on[0] > 1 {
		return errCommand
	}
	d.state.modes = d.state.modes&^(1<<cmd) | on[0]<<cmd
	return nil
}

// setTables takes the tables of unicast and multicast addresses (5.1.6.5.2).
func (d *device) setTables(r *virtq.Reader) error {
	for _, t := range []*addressTable{&d.state.uni, &d.state.multi} {
		if err := t.read(r); err != nil {
			return err
		}
	}
	return nil
}

// read reads a struct virtio_net_ctrl_mac: a count and as many addresses.
func (t *addressTable) read(r *virtq.Reader) error {
	var count [4]byte
	if r.ReadFull(count[:]) != nil {
		return errCommand
	}
	n := int(binary.LittleEndian.Uint32(count[:]))
	if n > r.Len()/len(macAddress{}) {
		return errCommand
	}
	*t = addressTable{all: n > addressMax}
	if t.all {
		r.Skip(n * len(macAddress{}))
		return nil
	}
	for t.count = range n {
		if r.ReadFull(t.addrs[t.count][:]) != nil {
			return errCommand
		}
	}
	t.count = n
	return nil
}

// setAddress takes the device's address (5.1.6.5.2).
func (d *device) setAddress(r *virtq.Reader) error {
	var m macAddress
	if r.ReadFull(m[:]) != nil || m.multicast() {
		return errCommand
	}
	d.state.mac = m
	return nil
}

// setVLAN lets frames of a VLAN through or not (5.1.6.5.3).
func (d *device) setVLAN(cmd byte, r *virtq.Reader) error {
	id, err := readUint16(r)
	if err != nil || id >= vlanIDs {
		return errCommand
	}
	switch cmd {
	case virtio.NetCtrlVLANAdd:
		d.state.vlans.add(id)
	case virtio.NetCtrlVLANDel:
		d.state.vlans.remove(id)
	default:
		return errCommand
	}
	return nil
}

// setPairs takes how many queue pairs the driver uses (5.1.6.5.5).
func (d *device) setPairs(r *virtq.Reader) error {
	n, err := readUint16(r)
	if err != nil || n < 1 || int(n) > len(d.pairs) {
		return errCommand
	}
	d.state.pairs = int(n)
	return nil
}

// setOffloads takes the offloads of packets to the driver, any of those negotiated (5.1.6.5.6).
func (d *device) setOffloads(r *virtq.Reader) error {
	var b [8]byte
	if r.ReadFull(b[:]) != nil {
		return errCommand
	}
	f := virtio.Features(binary.LittleEndian.Uint64(b[:]))
	if f&^(d.features&guestOffloads) != 0 {
		return errCommand
	}
	if ok, _ := consistent(f); ok != f {
		return errCommand
	}
	d.state.offloads = f
	return nil
}

func readUint16(r *virtq.Reader) (uint16, error) {
	var b [2]byte
	err := r.ReadFull(b[:])
	return binary.LittleEndian.Uint16(b[:]), err
}
