package vhostuser

import (
	"context"
	"fmt"
	"os"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// dispatch does what m asks and returns the payload of its reply, if it has one.
func (s *session) dispatch(ctx context.Context, m *Message) ([]byte, error) {
	if err := s.checkFDs(m); err != nil {
		return nil, err
	}
	switch m.Request {
	case ReqGetFeatures, ReqGetProtocolFeatures, ReqGetQueueNum, ReqSetOwner, ReqResetOwner, ReqResetDevice, ReqSetBackendReqFD:
		if err := wantSize(m.Payload, 0); err != nil {
			return nil, err
		}
		return s.plain(ctx, m)
	case ReqSetFeatures, ReqSetProtocolFeatures:
		v, err := DecodeU64(m.Payload)
		if err != nil {
			return nil, err
		}
		if m.Request == ReqSetFeatures {
			return nil, s.setFeatures(ctx, v)
		}
		return nil, s.setProtocol(ProtocolFeatures(v))
	case ReqSetMemTable:
		return nil, s.setMemTable(ctx, m)
	case ReqSetVringNum, ReqSetVringBase, ReqGetVringBase, ReqSetVringEnable:
		return s.vringState(ctx, m)
	case ReqSetVringAddr:
		return nil, s.setVringAddr(ctx, m)
	case ReqSetVringKick, ReqSetVringCall, ReqSetVringErr:
		return nil, s.setVringFD(ctx, m)
	case ReqGetConfig, ReqSetConfig:
		return s.config(ctx, m)
	}
	return nil, fmt.Errorf("%w: not known, or not offered", ErrProtocol)
}

// checkFDs refuses descriptors where none belong. SET_MEM_TABLE and the ring descriptors check their own count.
func (s *session) checkFDs(m *Message) error {
	want := 0
	switch m.Request { //nolint:exhaustive // the others carry none
	case ReqSetMemTable, ReqSetVringKick, ReqSetVringCall, ReqSetVringErr:
		return nil
	case ReqSetBackendReqFD:
		want = 1
	}
	if len(m.FDs) != want {
		return fmt.Errorf("%w: %d descriptors: want %d", ErrProtocol, len(m.FDs), want)
	}
	return nil
}

// plain handles the requests without a payload.
func (s *session) plain(ctx context.Context, m *Message) ([]byte, error) {
	switch m.Request { //nolint:exhaustive // dispatch passes these only
	case ReqGetFeatures:
		return EncodeU64(uint64(s.offered) | FProtocolFeatures), nil
	case ReqGetProtocolFeatures:
		return EncodeU64(uint64(s.opts.Protocol)), nil
	case ReqGetQueueNum:
		return EncodeU64(uint64(len(s.rings))), nil
	case ReqResetOwner, ReqResetDevice:
		if m.Request == ReqResetDevice && s.protocol&ProtoResetDevice == 0 {
			return nil, fmt.Errorf("%w: not offered", ErrProtocol)
		}
		return nil, s.reset(ctx)
	case ReqSetBackendReqFD:
		if s.protocol&ProtoBackendReq == 0 {
			return nil, fmt.Errorf("%w: BACKEND_REQ was not negotiated", ErrProtocol)
		}
		c, err := connFromFD(m.FDs[0])
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		s.notifier.use(c, s.protocol&ProtoReplyAck != 0)
	}
	return nil, nil
}

// reset stops all rings and resets the device; memory and descriptors stay.
func (s *session) reset(ctx context.Context) error {
	for i := range s.rings {
		if err := s.stop(ctx, i); err != nil {
			return err
		}
		s.rings[i].enabled, s.rings[i].kicked = false, false
	}
	if err := s.dev.Reset(ctx); err != nil {
		return err
	}
	s.used, s.features, s.featuresSet = false, 0, false
	return nil
}

func (s *session) setFeatures(ctx context.Context, v uint64) error {
	f := virtio.Features(v &^ FProtocolFeatures)
	if !s.offered.Has(f) {
		return fmt.Errorf("%w: feature bits %v were not offered", ErrProtocol, f&^s.offered)
	}
	if !s.featuresSet || f != s.features {
		for i := range s.rings { // the device refuses new features while a queue runs
			if err := s.stop(ctx, i); err != nil {
				return err
			}
		}
		if err := s.dev.SetFeatures(ctx, f); err != nil {
			return refusal{err}
		}
	}
	s.features, s.featuresSet, s.startsDisabled = f, true, v&FProtocolFeatures != 0
	return s.settle(ctx)
}

func (s *session) setProtocol(p ProtocolFeatures) error {
	if p&^s.opts.Protocol != 0 {
		return fmt.Errorf("%w: protocol features %#x were not offered", ErrProtocol, uint64(p&^s.opts.Protocol))
	}
	s.protocol = p
	return nil
}

func (s *session) setMemTable(ctx context.Context, m *Message) error {
	regions, err := DecodeMemTable(m.Payload)
	if err != nil {
		return err
	}
	t, err := newMemTable(regions, m.FDs)
	if err != nil {
		return err
	}
	m.FDs = nil // t's
	for i := range s.rings {
		if err := s.mustStay(i, t); err != nil {
			t.close()
			return err
		}
	}
	if err := s.dev.SetMemory(ctx, t.deviceRegions()); err != nil {
		t.close()
		return err
	}
	s.table.close()
	s.table = t
	return s.settle(ctx)
}

// mustStay checks that ring i, if it runs, is where it was also under table t.
func (s *session) mustStay(i int, t *memTable) error {
	r := &s.rings[i]
	if !r.running {
		return nil
	}
	now, err := s.table.locate(r)
	if err != nil {
		return err
	}
	if then, err := t.locate(r); err != nil || then != now {
		return fmt.Errorf("%w: ring %d runs and does not lie in the new table where it was", ErrProtocol, i)
	}
	return nil
}

// ring is ring i of the device.
func (s *session) ring(i uint64) (*ring, error) {
	if i >= uint64(len(s.rings)) {
		return nil, fmt.Errorf("%w: ring %d: the device has %d", ErrProtocol, i, len(s.rings))
	}
	return &s.rings[i], nil
}

func (s *session) vringState(ctx context.Context, m *Message) ([]byte, error) {
	v, err := DecodeVringState(m.Payload)
	if err != nil {
		return nil, err
	}
	r, err := s.ring(uint64(v.Index))
	if err != nil {
		return nil, err
	}
	i := int(v.Index)
	switch m.Request { //nolint:exhaustive // dispatch passes these only
	case ReqSetVringNum:
		return nil, s.setVringNum(ctx, i, v.Num)
	case ReqSetVringBase:
		if v.Num > 0xffff {
			return nil, fmt.Errorf("%w: ring %d: base %d: at most 65535", ErrProtocol, i, v.Num)
		}
		if r.running {
			return nil, fmt.Errorf("%w: ring %d: base set while it runs", ErrProtocol, i)
		}
		r.base, r.fresh = uint16(v.Num), v.Num == 0
		return nil, nil
	case ReqGetVringBase:
		if err := s.stop(ctx, i); err != nil {
			return nil, err
		}
		r.kicked = false
		return VringState{Index: v.Index, Num: uint32(r.base)}.Encode(), nil
	}
	if v.Num > 1 { // SET_VRING_ENABLE
		return nil, fmt.Errorf("%w: ring %d: enable %d: want 0 or 1", ErrProtocol, i, v.Num)
	}
	r.enabled = v.Num == 1
	return nil, s.settle(ctx)
}

func (s *session) setVringNum(ctx context.Context, i int, n uint32) error {
	r := &s.rings[i]
	switch {
	case n == 0 || n&(n-1) != 0 || n > virtio.QueueSizeMax:
		return fmt.Errorf("%w: ring %d: %d entries: want a power of two up to %d", ErrProtocol, i, n, virtio.QueueSizeMax)
	case r.running && uint32(r.size) != n:
		return fmt.Errorf("%w: ring %d: size changed while it runs", ErrProtocol, i)
	}
	r.size = uint16(n)
	return s.settle(ctx)
}

func (s *session) setVringAddr(ctx context.Context, m *Message) error {
	a, err := DecodeVringAddr(m.Payload)
	if err != nil {
		return err
	}
	r, err := s.ring(uint64(a.Index))
	if err != nil {
		return err
	}
	if r.running && (a.Desc != r.addr.Desc || a.Avail != r.addr.Avail || a.Used != r.addr.Used) {
		return fmt.Errorf("%w: ring %d: addresses changed while it runs", ErrProtocol, a.Index)
	}
	r.addr, r.hasAddr = a, true // flags and log address concern dirty logging, which is not offered
	return s.settle(ctx)
}

func (s *session) setVringFD(ctx context.Context, m *Message) error {
	v, err := DecodeU64(m.Payload)
	if err != nil {
		return err
	}
	if v&^(vringIndexMask|vringNoFD) != 0 {
		return fmt.Errorf("%w: ring word %#x: unknown bits", ErrProtocol, v)
	}
	want := 1
	if v&vringNoFD != 0 {
		want = 0
	}
	i := v & vringIndexMask
	r, err := s.ring(i)
	switch {
	case err != nil:
		return err
	case len(m.FDs) != want:
		return fmt.Errorf("%w: ring %d: %d descriptors: want %d", ErrProtocol, i, len(m.FDs), want)
	case want == 0 && m.Request == ReqSetVringKick:
		return fmt.Errorf("%w: ring %d: no kick descriptor: polling is not supported", ErrProtocol, i)
	case m.Request == ReqSetVringErr:
		return nil // errors are logged; handle closes the descriptor
	}
	var f *os.File
	if want == 1 {
		f, m.FDs = os.NewFile(uintptr(m.FDs[0]), m.Request.String()), nil
	}
	if m.Request == ReqSetVringCall {
		return s.dev.SetCall(ctx, int(i), f)
	}
	if err := s.dev.SetKick(ctx, int(i), f); err != nil {
		return err
	}
	r.kicked = true
	return s.settle(ctx)
}

// config answers GET_CONFIG with zeroes past the end of the space, as drivers may read fields of features that they did
// not accept; SET_CONFIG must lie inside.
func (s *session) config(ctx context.Context, m *Message) ([]byte, error) {
	c, err := DecodeConfig(m.Payload)
	if err != nil {
		return nil, err
	}
	space := s.dev.ConfigSpace()
	if m.Request == ReqGetConfig {
		c.Data = make([]byte, c.Size) // the payload carries as many bytes, so Size is bounded
		if uint64(c.Offset) < uint64(len(space)) {
			copy(c.Data, space[c.Offset:])
		}
		return c.Encode(), nil
	}
	if uint64(c.Offset)+uint64(c.Size) > uint64(len(space)) {
		return nil, refusal{fmt.Errorf("%w: write of %d bytes at %d: the configuration space has %d", ErrProtocol, c.Size, c.Offset, len(space))}
	}
	if err := s.dev.WriteConfig(ctx, int(c.Offset), c.Data); err != nil {
		return nil, refusal{err}
	}
	return nil, nil
}
