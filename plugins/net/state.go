package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// driverState is what the driver set by the control queue, and the user by commands: it outlives this process.
type driverState struct {
	mac        macAddress
	modes      byte
	announce   bool // the driver was asked to announce itself and has not acknowledged
	linkDown   bool // the user's
	pairs      int
	offloads   virtio.Features
	uni, multi addressTable
	vlans      vlanSet
}

// stateVersion begins what a device saves.
const stateVersion = 1

const (
	stateAnnounce = 1 << iota
	stateLinkDown
)

var errState = errors.New("it is not what a network device saves")

// bytes is s as bytes: version, flags, modes, address, pairs, offloads, tables, VLANs.
func (s *driverState) bytes() []byte {
	flags := byte(0)
	if s.announce {
		flags |= stateAnnounce
	}
	if s.linkDown {
		flags |= stateLinkDown
	}
	b := []byte{stateVersion, flags, s.modes}
	b = append(b, s.mac[:]...)
	b = binary.LittleEndian.AppendUint16(b, uint16(s.pairs)) //nolint:gosec // G115: at most 16
	b = binary.LittleEndian.AppendUint64(b, uint64(s.offloads))
	for _, t := range []*addressTable{&s.uni, &s.multi} {
		n := byte(t.count) //nolint:gosec // G115: at most addressMax
		if t.all {
			n = math.MaxUint8
		}
		b = append(b, n)
		for i := range t.count {
			b = append(b, t.addrs[i][:]...)
		}
	}
	for _, word := range s.vlans {
		b = binary.LittleEndian.AppendUint64(b, word)
	}
	return b
}

// parseState reads what bytes gave. It takes nothing that a driver could not have set on a device with these features and pairs.
func parseState(b []byte, features virtio.Features, pairs int) (s driverState, err error) {
	const fixed = 3 + 6 + 2 + 8
	if len(b) < fixed || b[0] != stateVersion {
		return s, errState
	}
	s.announce, s.linkDown, s.modes = b[1]&stateAnnounce != 0, b[1]&stateLinkDown != 0, b[2]&modesAll
	s.mac = macAddress(b[3:])
	s.pairs = int(binary.LittleEndian.Uint16(b[9:]))
	s.offloads = virtio.Features(binary.LittleEndian.Uint64(b[11:]))
	if s.pairs < 1 || s.pairs > pairs || s.offloads&^features != 0 {
		return s, fmt.Errorf("%d queue pairs, offloads %v: this device has %d and features %v: %w", s.pairs, s.offloads, pairs, features, errState)
	}
	b = b[fixed:]
	for _, t := range []*addressTable{&s.uni, &s.multi} {
		if b, err = t.parse(b); err != nil {
			return s, err
		}
	}
	if len(b) != 8*len(s.vlans) {
		return s, errState
	}
	for i := range s.vlans {
		s.vlans[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return s, nil
}

func (t *addressTable) parse(b []byte) (rest []byte, err error) {
	if len(b) == 0 {
		return nil, errState
	}
	n := int(b[0])
	b = b[1:]
	if n == math.MaxUint8 {
		t.all = true
		return b, nil
	}
	if n > addressMax || len(b) < 6*n {
		return nil, errState
	}
	t.count = n
	for i := range n {
		t.addrs[i] = macAddress(b[6*i:])
	}
	return b[6*n:], nil
}

// save keeps the state for an instance that takes over. Under mu.
func (d *device) save() {
	if !d.decided {
		return // nothing has been agreed with a driver
	}
	if err := d.host.SaveState(d.state.bytes()); err != nil {
		d.host.Fail(err, false)
	}
}

// RestoreState implements sdk.StateRestorer. Whoever this address is known to should learn that it is here now.
func (d *device) RestoreState(b []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	s, err := parseState(b, d.features&guestOffloads, len(d.pairs))
	if err != nil {
		return err
	}
	d.state = s
	d.askAnnounce()
	if err := d.apply(); err != nil {
		return err
	}
	if d.state.announce {
		d.host.ConfigChanged()
	}
	return nil
}
