package vecio_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/vecio"
)

// packets is a pair of sockets that keep packets apart.
func packets(t *testing.T) [2]int {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) })
	return p
}

func TestPacketsHaveAHead(t *testing.T) {
	t.Parallel()
	p := packets(t)
	var v vecio.IO
	if err := v.WritePacket(p[1], []byte("head"), [][]byte{[]byte("one"), nil, []byte("two")}); err != nil {
		t.Fatal(err)
	}
	head, bufs := make([]byte, 4), [][]byte{make([]byte, 2), make([]byte, 9)}
	n, err := v.ReadPacket(p[0], head, bufs)
	if n != 10 || err != nil || string(head) != "head" || !bytes.HasPrefix(slices.Concat(bufs...), []byte("onetwo")) {
		t.Errorf("%d, %v: %q %q", n, err, head, bufs)
	}
	if _, err := v.ReadPacket(p[0], head, bufs); !errors.Is(err, vecio.ErrWouldBlock) {
		t.Errorf("nothing is there: %v", err)
	}
	for err = nil; err == nil; {
		err = v.WritePacket(p[1], head, bufs)
	}
	if !errors.Is(err, vecio.ErrWouldBlock) {
		t.Errorf("no room: %v", err)
	}
	if err := v.WritePacket(-1, head, bufs); !errors.Is(err, unix.EBADF) {
		t.Errorf("no descriptor: %v", err)
	}
}

func TestAPacketThatDoesNotFitIsToldApartFromOneThatJustDoes(t *testing.T) {
	t.Parallel()
	p := packets(t)
	var v vecio.IO
	for _, size := range []int{9, 10, 11, 12, 100} {
		if err := v.WritePacket(p[1], nil, [][]byte{make([]byte, size)}); err != nil {
			t.Fatal(err)
		}
		n, err := v.ReadPacket(p[0], make([]byte, 4), [][]byte{make([]byte, 6)})
		if fits := size <= 10; fits && (n != size || err != nil) || !fits && !errors.Is(err, vecio.ErrTooLong) {
			t.Errorf("%d bytes into 10: %d, %v", size, n, err)
		}
	}
}

func TestMoreBuffersThanTheKernelTakes(t *testing.T) {
	t.Parallel()
	p := packets(t)
	var v vecio.IO
	many := func(n int) (out [][]byte) {
		for range n {
			out = append(out, make([]byte, 1))
		}
		return out
	}
	for _, n := range []int{vecio.MaxPacketBuffers, vecio.MaxPacketBuffers + 2, 5000} {
		fits := n == vecio.MaxPacketBuffers
		if err := v.WritePacket(p[1], []byte("h"), many(n)); fits != (err == nil) || !fits && !errors.Is(err, vecio.ErrTooMany) {
			t.Errorf("write %d: %v", n, err)
		}
		if got, err := v.ReadPacket(p[0], []byte("h"), many(n)); fits != (err == nil && got == n+1) || !fits && !errors.Is(err, vecio.ErrTooMany) {
			t.Errorf("read %d: %d, %v", n, got, err)
		}
	}
}
