package lguest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

// words are unsigned longs as the kernel reads them.
func words(size int, w ...uint64) []byte {
	var b []byte
	for _, v := range w {
		if size == 4 {
			b = binary.NativeEndian.AppendUint32(b, uint32(v)) //nolint:gosec // G115: a test's
		} else {
			b = binary.NativeEndian.AppendUint64(b, v)
		}
	}
	return b
}

func TestRequestsAreTheKernelsWords(t *testing.T) {
	t.Parallel()
	for _, size := range []int{4, 8} {
		for _, c := range []struct {
			r Request
			w []uint64
		}{
			{Request{Op: OpInitialize, Base: 0x40000000, PFNLimit: 0x4010, Start: 0x100000}, []uint64{0, 0x40000000, 0x4010, 0x100000}},
			{Request{Op: OpIRQ, IRQ: 31}, []uint64{2, 31}},
			{Request{Op: OpIRQ}, []uint64{2, 0}},
			{Request{Op: OpEventFD, Address: 0x4001000, FD: 7}, []uint64{4, 0x4001000, 7}},
		} {
			b, err := c.r.Append([]byte("x"), size)
			if err != nil || !bytes.Equal(b, append([]byte("x"), words(size, c.w...)...)) {
				t.Errorf("%d bytes a word: %+v is %x, %v", size, c.r, b, err)
			}
			got, err := DecodeRequest(words(size, c.w...), size)
			if err != nil || got != c.r {
				t.Errorf("%d bytes a word: %v is %+v, %v", size, c.w, got, err)
			}
		}
	}
}

func TestBadWordsAreRefused(t *testing.T) {
	t.Parallel()
	for _, size := range []int{4, 8} {
		for _, c := range []struct {
			want string
			b    []byte
		}{
			{"less than one word", nil},
			{"less than one word", words(size, 2)[:size-1]},
			{"LHREQ_GETDMA: bad request: no longer used", words(size, 1)},
			{"LHREQ_GETDMA: bad request: no longer used", words(size, 1, 1, 1, 1)},
			{"LHREQ_BREAK: bad request: no longer used", words(size, 3, 0)},
			{"first word 0x5: no such request", words(size, 5, 1)},
			{"no such request", words(size, math.MaxUint32, 1)},
			{fmt.Sprintf("LHREQ_INITIALIZE: bad request: %d bytes: want %d", 3*size, 4*size), words(size, 0, 1, 2)},
			{fmt.Sprintf("%d bytes: want %d", 5*size, 4*size), words(size, 0, 1, 2, 3, 4)}, // 4.x: device_limit
			{fmt.Sprintf("%d bytes: want %d", size, 2*size), words(size, 2)},
			{fmt.Sprintf("%d bytes: want %d", 2*size+1, 2*size), append(words(size, 2, 1), 0)},
			{"irq 32: at most 31", words(size, 2, 32)},
			{"irq 4294967295", words(size, 2, math.MaxUint32)},
			{"LHREQ_EVENTFD: bad request: address 0", words(size, 4, 0, 3)},
			{"descriptor 0xffffffff", words(size, 4, 0x1000, math.MaxUint32)},
		} {
			r, err := DecodeRequest(c.b, size)
			if !errors.Is(err, ErrRequest) || !strings.Contains(err.Error(), c.want) || r != (Request{}) {
				t.Errorf("%d bytes a word: %x: %+v, %v: want %q", size, c.b, r, err, c.want)
			}
		}
	}
	if _, err := DecodeRequest(words(8, 2, 1<<32|1), 8); !errors.Is(err, ErrRequest) {
		t.Errorf("an interrupt above 32 bits: %v", err)
	}
	for _, size := range []int{0, 1, 2, 3, 16, -4} {
		if _, err := DecodeRequest(make([]byte, 16), size); !errors.Is(err, ErrRequest) {
			t.Errorf("words of %d bytes: %v", size, err)
		}
	}
}

func TestRequestsThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		r    Request
		size int
		want string
	}{
		{Request{Op: OpGetDMA}, 8, "no longer used"},
		{Request{Op: OpBreak}, 8, "no longer used"},
		{Request{Op: 5}, 8, "LHREQ_5: bad request: no such request"},
		{Request{Op: OpIRQ, IRQ: 32}, 8, "at most 31"},
		{Request{Op: OpEventFD, FD: 3}, 8, "address 0"},
		{Request{Op: OpEventFD, Address: 1, FD: -1}, 8, "descriptor -1"},
		{Request{Op: OpInitialize, Base: 1 << 32}, 4, "word 1: 0x100000000 does not fit into 32 bits"},
		{Request{Op: OpIRQ, IRQ: 1}, 2, "words of 2 bytes"},
	} {
		b, err := c.r.Append([]byte("kept"), c.size)
		if !errors.Is(err, ErrRequest) || !strings.Contains(err.Error(), c.want) || string(b) != "kept" {
			t.Errorf("%+v: %q, %v: want %q", c.r, b, err, c.want)
		}
	}
	if err := (Request{Op: OpBreak}).Do(newHost()); !errors.Is(err, ErrRequest) {
		t.Errorf("Do = %v", err)
	}
}

func TestRequestsAreCarriedOut(t *testing.T) {
	t.Parallel()
	h := newHost()
	for _, r := range []Request{
		{Op: OpInitialize, Base: 1, PFNLimit: 2, Start: 3}, {Op: OpEventFD, Address: 0x5000, FD: 9}, {Op: OpIRQ, IRQ: 4},
	} {
		if err := r.Do(h); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if got := h.took(); !slices.Equal(got, []string{"initialize 0x1 0x2 0x3", "eventfd 0x5000"}) || <-h.irqs != 4 || h.kicks[guestmem.GPA(0x5000)] != 9 {
		t.Errorf("host saw %q", got)
	}
}
