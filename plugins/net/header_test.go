package main

import (
	"errors"
	"testing"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// headerOf makes a header.
func headerOf(flags, gso byte, hdrLen, gsoSize, start, offset uint16) (h header) {
	h[virtio.NetHeaderFlags], h[virtio.NetHeaderGSOType] = flags, gso
	h.setField(virtio.NetHeaderHdrLen, hdrLen)
	h.setField(virtio.NetHeaderGSOSize, gsoSize)
	h.setField(virtio.NetHeaderCSumStart, start)
	h.setField(virtio.NetHeaderCSumOffset, offset)
	return h
}

func TestAHeaderOfTheDriverIsChecked(t *testing.T) {
	t.Parallel()
	const csum, data = virtio.NetHeaderNeedsCSum, virtio.NetHeaderDataValid
	all := hostOffloads
	for name, c := range map[string]struct {
		h, want header
		n       int
		host    virtio.Features
		err     error
	}{
		"nothing":                        {h: headerOf(0, 0, 0, 0, 0, 0), n: 60},
		"left-overs without a flag":      {h: headerOf(0, 0, 99, 99, 99, 99), n: 60, host: all},
		"unknown flags":                  {h: headerOf(0xfe&^csum, 0, 0, 0, 0, 0), n: 60, host: all},
		"data valid is not the driver's": {h: headerOf(data|csum, 0, 0, 0, 34, 16), want: headerOf(csum, 0, 0, 0, 34, 16), n: 60, host: all},
		"checksum at the end":            {h: headerOf(csum, 0, 0, 0, 42, 16), want: headerOf(csum, 0, 0, 0, 42, 16), n: 60, host: all},
		"checksum over the end":          {h: headerOf(csum, 0, 0, 0, 43, 16), n: 60, host: all, err: errCSum},
		"checksum that wraps":            {h: headerOf(csum, 0, 0, 0, 0xffff, 0xffff), n: 60, host: all, err: errCSum},
		"checksum not negotiated":        {h: headerOf(csum, 0, 0, 0, 34, 16), n: 60, err: errNotNegotiated},
		"TSO":                            {h: headerOf(csum, virtio.NetGSOTCPv4, 54, 1448, 34, 16), want: headerOf(csum, virtio.NetGSOTCPv4, 54, 1448, 34, 16), n: 9000, host: all},
		"TSO with ECN":                   {h: headerOf(csum, virtio.NetGSOTCPv6|virtio.NetGSOECN, 74, 1428, 54, 16), want: headerOf(csum, virtio.NetGSOTCPv6|virtio.NetGSOECN, 74, 1428, 54, 16), n: 9000, host: all},
		"ECN not negotiated":             {h: headerOf(csum, virtio.NetGSOTCPv4|virtio.NetGSOECN, 54, 1448, 34, 16), n: 9000, host: all &^ virtio.FNetHostECN, err: errNotNegotiated},
		"TSO6 not negotiated":            {h: headerOf(csum, virtio.NetGSOTCPv6, 54, 1448, 34, 16), n: 9000, host: virtio.FNetCSum | virtio.FNetHostTSO4, err: errNotNegotiated},
		"UFO":                            {h: headerOf(csum, virtio.NetGSOUDP, 42, 1448, 34, 6), want: headerOf(csum, virtio.NetGSOUDP, 42, 1448, 34, 6), n: 9000, host: all},
		"USO":                            {h: headerOf(csum, virtio.NetGSOUDPL4, 42, 1448, 34, 6), want: headerOf(csum, virtio.NetGSOUDPL4, 42, 1448, 34, 6), n: 9000, host: all},
		"USO with ECN":                   {h: headerOf(csum, virtio.NetGSOUDPL4|virtio.NetGSOECN, 42, 1448, 34, 6), n: 9000, host: all, err: errGSOType},
		"ECN alone":                      {h: headerOf(csum, virtio.NetGSOECN, 42, 1448, 34, 6), n: 9000, host: all, err: errGSOType},
		"unknown type":                   {h: headerOf(csum, 2, 42, 1448, 34, 6), n: 9000, host: all, err: errGSOType},
		"gso_size 0":                     {h: headerOf(csum, virtio.NetGSOTCPv4, 54, 0, 34, 16), n: 9000, host: all, err: errGSOSize},
		"TSO without a checksum":         {h: headerOf(0, virtio.NetGSOTCPv4, 54, 1448, 34, 16), n: 9000, host: all, err: errGSOCSum},
		"hdr_len over the end":           {h: headerOf(csum, virtio.NetGSOTCPv4, 0xffff, 1448, 34, 16), want: headerOf(csum, virtio.NetGSOTCPv4, 100, 1448, 34, 16), n: 100, host: all},
		"TSO, nothing negotiated":        {h: headerOf(0, virtio.NetGSOTCPv4, 54, 1448, 34, 16), n: 9000, err: errNotNegotiated},
	} {
		h := c.h
		h.setField(virtio.NetHeaderNumBuffers, 77)
		err := h.fromDriver(c.n, c.host)
		if !errors.Is(err, c.err) || (c.err == nil) != (err == nil) {
			t.Errorf("%s: %v, want %v", name, err, c.err)
		}
		if err == nil && h != c.want {
			t.Errorf("%s: left % x, want % x", name, h, c.want)
		}
	}
}

func TestAHeaderForTheDriverHoldsOnlyWhatItTakes(t *testing.T) {
	t.Parallel()
	const csum, data = virtio.NetHeaderNeedsCSum, virtio.NetHeaderDataValid
	all, one := guestOffloads, func(h header) header { h.setField(virtio.NetHeaderNumBuffers, 1); return h }
	for name, c := range map[string]struct {
		h, want header
		n       int
		guest   virtio.Features
		refused bool
	}{
		"nothing":                  {n: 60},
		"unknown flags":            {h: headerOf(0xfc, 0, 1, 2, 3, 4), n: 60, guest: all},
		"valid data":               {h: headerOf(data, 0, 1, 2, 3, 4), want: headerOf(data, 0, 0, 0, 0, 0), n: 60, guest: all},
		"valid data not taken":     {h: headerOf(data, 0, 0, 0, 0, 0), n: 60},
		"checksum":                 {h: headerOf(csum|data, 0, 0, 0, 34, 16), want: headerOf(csum, 0, 0, 0, 34, 16), n: 60, guest: all},
		"checksum not taken":       {h: headerOf(csum, 0, 0, 0, 34, 16), n: 60, refused: true},
		"checksum outside":         {h: headerOf(csum, 0, 0, 0, 60, 0), n: 60, guest: all, refused: true},
		"TSO":                      {h: headerOf(csum, virtio.NetGSOTCPv4, 54, 1448, 34, 16), want: headerOf(csum, virtio.NetGSOTCPv4, 54, 1448, 34, 16), n: 9000, guest: all},
		"TSO not taken":            {h: headerOf(csum, virtio.NetGSOTCPv4, 54, 1448, 34, 16), n: 9000, guest: all &^ virtio.FNetGuestTSO4, refused: true},
		"ECN not taken":            {h: headerOf(csum, virtio.NetGSOTCPv6|virtio.NetGSOECN, 54, 1448, 34, 16), n: 9000, guest: all &^ virtio.FNetGuestECN, refused: true},
		"USO":                      {h: headerOf(csum, virtio.NetGSOUDPL4, 42, 1448, 34, 6), want: headerOf(csum, virtio.NetGSOUDPL4, 42, 1448, 34, 6), n: 9000, guest: all},
		"USO not taken":            {h: headerOf(csum, virtio.NetGSOUDPL4, 42, 1448, 34, 6), n: 9000, guest: all &^ virtio.FNetGuestUSO4, refused: true},
		"gso_size 0":               {h: headerOf(csum, virtio.NetGSOTCPv4, 54, 0, 34, 16), n: 9000, guest: all, refused: true},
		"unknown type":             {h: headerOf(csum, 9, 54, 1448, 34, 16), n: 9000, guest: all, refused: true},
		"hdr_len longer than that": {h: headerOf(csum, virtio.NetGSOTCPv4, 500, 1448, 34, 16), want: headerOf(csum, virtio.NetGSOTCPv4, 100, 1448, 34, 16), n: 100, guest: all},
	} {
		h := c.h
		if ok := h.toDriver(c.n, c.guest); ok == c.refused {
			t.Errorf("%s: %v", name, ok)
		} else if want := one(c.want); ok && h != want {
			t.Errorf("%s: left % x, want % x", name, h, want)
		}
	}
}
