package main

import (
	"encoding/binary"
	"errors"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// header is a packet's virtio_net_hdr with num_buffers, in the driver's and the kernel's layout (little-endian).
type header [virtio.NetHeaderSize]byte

func (h *header) flags() byte        { return h[virtio.NetHeaderFlags] }
func (h *header) gsoType() byte      { return h[virtio.NetHeaderGSOType] }
func (h *header) hdrLen() uint16     { return h.field(virtio.NetHeaderHdrLen) }
func (h *header) gsoSize() uint16    { return h.field(virtio.NetHeaderGSOSize) }
func (h *header) csumStart() uint16  { return h.field(virtio.NetHeaderCSumStart) }
func (h *header) csumOffset() uint16 { return h.field(virtio.NetHeaderCSumOffset) }

func (h *header) field(at int) uint16        { return binary.LittleEndian.Uint16(h[at:]) }
func (h *header) setField(at int, v uint16)  { binary.LittleEndian.PutUint16(h[at:], v) }
func (h *header) needsCSum() bool            { return h.flags()&virtio.NetHeaderNeedsCSum != 0 }
func (h *header) clearField(from, until int) { clear(h[from:until]) }

// What can be wrong with a header. Static: a hostile driver must not make us allocate.
var (
	errNotNegotiated = errors.New("the packet header asks for an offload that was not negotiated")
	errGSOType       = errors.New("the packet header has an unknown gso_type")
	errGSOSize       = errors.New("the packet header has gso_size 0 with segmentation offload")
	errGSOCSum       = errors.New("the packet header has segmentation offload without NEEDS_CSUM")
	errCSum          = errors.New("the packet header's checksum lies outside the packet")
)

// gsoFeatures are the features that allow a kind of segmentation offload from and to the driver; ok is false if there is no such
// kind. ECN is a bit of its own, for TCP.
func gsoFeatures(gsoType byte) (host, guest virtio.Features, ok bool) {
	switch gsoType &^ virtio.NetGSOECN {
	case virtio.NetGSOTCPv4:
		host, guest = virtio.FNetHostTSO4, virtio.FNetGuestTSO4
	case virtio.NetGSOTCPv6:
		host, guest = virtio.FNetHostTSO6, virtio.FNetGuestTSO6
	case virtio.NetGSOUDP:
		return virtio.FNetHostUFO, virtio.FNetGuestUFO, gsoType&virtio.NetGSOECN == 0
	case virtio.NetGSOUDPL4:
		// Which of the two USO a packet to the driver needs is in the packet; drivers take both or none.
		return virtio.FNetHostUSO, virtio.FNetGuestUSO4, gsoType&virtio.NetGSOECN == 0
	default:
		return 0, 0, false
	}
	if gsoType&virtio.NetGSOECN != 0 {
		host, guest = host|virtio.FNetHostECN, guest|virtio.FNetGuestECN
	}
	return host, guest, true
}

// fromDriver checks what the driver asks for a packet of n bytes (5.1.6.2) against the offloads that it may ask for, and leaves in h
// only what a back-end may rely on: known flags, a checksum and a hdr_len inside the packet, no num_buffers.
func (h *header) fromDriver(n int, host virtio.Features) error {
	h[virtio.NetHeaderFlags] &= virtio.NetHeaderNeedsCSum // 5.1.6.2.2: the device ignores flags that it does not know
	h.clearField(virtio.NetHeaderNumBuffers, virtio.NetHeaderSize)
	if err := h.checkCSum(n, host); err != nil {
		return err
	}
	if h.gsoType() == virtio.NetGSONone {
		h.clearField(virtio.NetHeaderHdrLen, virtio.NetHeaderCSumStart)
		return nil
	}
	need, _, known := gsoFeatures(h.gsoType())
	switch {
	case !known:
		return errGSOType
	case !host.Has(need):
		return errNotNegotiated
	case h.gsoSize() == 0:
		return errGSOSize
	case !h.needsCSum():
		return errGSOCSum
	}
	if int(h.hdrLen()) > n { // a hint only (5.1.6.2.2), but the kernel refuses such a packet
		h.setField(virtio.NetHeaderHdrLen, uint16(n)) //nolint:gosec // G115: less than hdr_len
	}
	return nil
}

func (h *header) checkCSum(n int, host virtio.Features) error {
	if !h.needsCSum() {
		h.clearField(virtio.NetHeaderCSumStart, virtio.NetHeaderNumBuffers)
		return nil
	}
	if !host.Has(virtio.FNetCSum) {
		return errNotNegotiated
	}
	if int(h.csumStart())+int(h.csumOffset())+2 > n {
		return errCSum
	}
	return nil
}

// toDriver leaves in h what a driver that takes the offloads guest may see with a packet of n bytes (5.1.6.4). false: the driver
// cannot take the packet.
func (h *header) toDriver(n int, guest virtio.Features) bool {
	h[virtio.NetHeaderFlags] &= virtio.NetHeaderNeedsCSum | virtio.NetHeaderDataValid
	h.setField(virtio.NetHeaderNumBuffers, 1)
	switch {
	case !h.needsCSum():
		h.clearField(virtio.NetHeaderCSumStart, virtio.NetHeaderNumBuffers)
		if !guest.Has(virtio.FNetGuestCSum) {
			h[virtio.NetHeaderFlags] = 0
		}
	case !guest.Has(virtio.FNetGuestCSum), int(h.csumStart())+int(h.csumOffset())+2 > n:
		return false
	default:
		h[virtio.NetHeaderFlags] = virtio.NetHeaderNeedsCSum
	}
	if h.gsoType() == virtio.NetGSONone {
		h.clearField(virtio.NetHeaderHdrLen, virtio.NetHeaderCSumStart)
		return true
	}
	_, need, known := gsoFeatures(h.gsoType())
	if !known || !guest.Has(need) || h.gsoSize() == 0 {
		return false
	}
	if int(h.hdrLen()) > n {
		h.setField(virtio.NetHeaderHdrLen, uint16(n)) //nolint:gosec // G115: less than hdr_len
	}
	return true
}
