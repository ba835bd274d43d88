package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

// ErrProtocol is wrapped by every error that a front-end's violation of the protocol causes.
var ErrProtocol = errors.New("vhost-user protocol violation")

// Sizes in bytes.
const (
	HeaderSize = 12
	// MaxPayload is the longest payload taken or sent: the largest memory table or configuration access fits.
	MaxPayload = 8192

	u64Size          = 8
	vringStateSize   = 8
	vringAddrSize    = 40
	memHeaderSize    = 8
	memRegionSize    = 32
	configHeaderSize = 12
)

// Header begins every message. Native endian, as the whole protocol: both sides run on one machine.
type Header struct {
	Request Request
	Flags   uint32
	// Size is the payload's length in bytes.
	Size uint32
}

// VringState is the payload of SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE and SET_VRING_ENABLE.
type VringState struct{ Index, Num uint32 }

// VringAddr is the payload of SET_VRING_ADDR. Addresses are user addresses.
type VringAddr struct {
	Index, Flags           uint32
	Desc, Used, Avail, Log uint64
}

// MemRegion is one entry of SET_MEM_TABLE.
type MemRegion struct{ GPA, Size, UserAddr, MmapOffset uint64 }

// ConfigAccess is the payload of GET_CONFIG and SET_CONFIG. Data aliases the message.
type ConfigAccess struct {
	Offset, Size, Flags uint32
	Data                []byte
}

// DecodeHeader reads and checks a header of exactly HeaderSize bytes.
func DecodeHeader(b []byte) (Header, error) {
	if len(b) != HeaderSize {
		return Header{}, fmt.Errorf("%w: header of %d bytes: want %d", ErrProtocol, len(b), HeaderSize)
	}
	ne := binary.NativeEndian
	h := Header{Request: Request(ne.Uint32(b)), Flags: ne.Uint32(b[4:]), Size: ne.Uint32(b[8:])}
	if h.Flags&flagVersionMask != FlagVersion {
		return h, fmt.Errorf("%w: %v: flags %#x: not version 1", ErrProtocol, h.Request, h.Flags)
	}
	if h.Size > MaxPayload {
		return h, fmt.Errorf("%w: %v: payload of %d bytes: at most %d", ErrProtocol, h.Request, h.Size, MaxPayload)
	}
	return h, nil
}

// AppendMessage appends header and payload to b. The payload is at most MaxPayload bytes.
func AppendMessage(b []byte, r Request, flags uint32, payload []byte) []byte {
	ne := binary.NativeEndian
	b = ne.AppendUint32(b, uint32(r))
	b = ne.AppendUint32(b, flags)
	b = ne.AppendUint32(b, uint32(len(payload))) //nolint:gosec // bounded by MaxPayload
	return append(b, payload...)
}

func wantSize(p []byte, n int) error {
	if len(p) != n {
		return fmt.Errorf("%w: payload of %d bytes: want %d", ErrProtocol, len(p), n)
	}
	return nil
}

// DecodeU64 reads a u64 payload.
func DecodeU64(p []byte) (uint64, error) {
	if err := wantSize(p, u64Size); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint64(p), nil
}

// EncodeU64 makes a u64 payload.
func EncodeU64(v uint64) []byte { return binary.NativeEndian.AppendUint64(nil, v) }

// DecodeVringState reads a vring state payload.
func DecodeVringState(p []byte) (VringState, error) {
	if err := wantSize(p, vringStateSize); err != nil {
		return VringState{}, err
	}
	ne := binary.NativeEndian
	return VringState{Index: ne.Uint32(p), Num: ne.Uint32(p[4:])}, nil
}

// Encode makes the payload.
func (s VringState) Encode() []byte {
	return binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, s.Index), s.Num)
}

// DecodeVringAddr reads a vring address payload.
func DecodeVringAddr(p []byte) (VringAddr, error) {
	if err := wantSize(p, vringAddrSize); err != nil {
		return VringAddr{}, err
	}
	ne := binary.NativeEndian
	return VringAddr{
		Index: ne.Uint32(p), Flags: ne.Uint32(p[4:]),
		Desc: ne.Uint64(p[8:]), Used: ne.Uint64(p[16:]), Avail: ne.Uint64(p[24:]), Log: ne.Uint64(p[32:]),
	}, nil
}

// Encode makes the payload.
func (a VringAddr) Encode() []byte {
	ne := binary.NativeEndian
	b := ne.AppendUint32(ne.AppendUint32(nil, a.Index), a.Flags)
	for _, v := range []uint64{a.Desc, a.Used, a.Avail, a.Log} {
		b = ne.AppendUint64(b, v)
	}
	return b
}

// DecodeMemTable reads a memory table. User-Mode Linux always sends room for two regions, so unused entries may follow.
func DecodeMemTable(p []byte) ([]MemRegion, error) {
	if len(p) < memHeaderSize || (len(p)-memHeaderSize)%memRegionSize != 0 {
		return nil, fmt.Errorf("%w: memory table of %d bytes: want %d and a multiple of %d", ErrProtocol, len(p), memHeaderSize, memRegionSize)
	}
	ne := binary.NativeEndian
	n, room := ne.Uint32(p), (len(p)-memHeaderSize)/memRegionSize
	if n == 0 || n > guestmem.MaxRegions || int(n) > room {
		return nil, fmt.Errorf("%w: memory table of %d regions in %d bytes: want 1 to %d", ErrProtocol, n, len(p), min(room, guestmem.MaxRegions))
	}
	regions := make([]MemRegion, n)
	for i := range regions {
		q := p[memHeaderSize+i*memRegionSize:]
		regions[i] = MemRegion{GPA: ne.Uint64(q), Size: ne.Uint64(q[8:]), UserAddr: ne.Uint64(q[16:]), MmapOffset: ne.Uint64(q[24:])}
	}
	return regions, nil
}

// EncodeMemTable makes the payload.
func EncodeMemTable(regions []MemRegion) []byte {
	ne := binary.NativeEndian
	b := ne.AppendUint64(nil, uint64(len(regions)))
	for _, r := range regions {
		for _, v := range []uint64{r.GPA, r.Size, r.UserAddr, r.MmapOffset} {
			b = ne.AppendUint64(b, v)
		}
	}
	return b
}

// DecodeConfig reads a configuration access.
func DecodeConfig(p []byte) (ConfigAccess, error) {
	if len(p) < configHeaderSize {
		return ConfigAccess{}, wantSize(p, configHeaderSize)
	}
	ne := binary.NativeEndian
	c := ConfigAccess{Offset: ne.Uint32(p), Size: ne.Uint32(p[4:]), Flags: ne.Uint32(p[8:]), Data: p[configHeaderSize:]}
	if uint64(c.Size) != uint64(len(c.Data)) {
		return c, fmt.Errorf("%w: configuration access of %d bytes carries %d", ErrProtocol, c.Size, len(c.Data))
	}
	return c, nil
}

// Encode makes the payload; Size is len(Data).
func (c ConfigAccess) Encode() []byte {
	ne := binary.NativeEndian
	b := ne.AppendUint32(nil, c.Offset)
	b = ne.AppendUint32(b, uint32(len(c.Data))) //nolint:gosec // bounded by MaxPayload
	return append(ne.AppendUint32(b, c.Flags), c.Data...)
}
