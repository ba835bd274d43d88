package kvm

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// gated is a writer that waits until it is let go.
type gated struct {
	open   chan struct{}
	writes int
	b      bytes.Buffer
}

func (g *gated) Write(p []byte) (int, error) {
	<-g.open
	g.writes++
	return g.b.Write(p)
}

func TestASinkWritesManyBytesAtOnceAndLosesNone(t *testing.T) {
	t.Parallel()
	w := &gated{open: make(chan struct{})}
	close(w.open)
	s := newSink(w)
	text := strings.Repeat("a line of a kernel's output\n", 100) + "and no end"
	for _, b := range []byte(text) {
		s.put(b)
	}
	s.close()
	if w.b.String() != text {
		t.Errorf("%d bytes came of %d", w.b.Len(), len(text))
	}
	if w.writes > 102 {
		t.Errorf("%d writes for 101 lines", w.writes)
	}
	s.put('x') // after the end: dropped
}

func TestASinkShowsALineWithoutEnd(t *testing.T) {
	t.Parallel()
	var w text
	s := newSink(&w)
	defer s.close()
	for _, b := range []byte("login: ") {
		s.put(b)
	}
	poll(t, "the prompt", func() bool { return w.String() == "login: " })
}

func TestASinkWhoseReaderIsBehindHoldsTheGuestUntilItsEnd(t *testing.T) {
	t.Parallel()
	w := &gated{open: make(chan struct{})}
	s := newSink(w)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3 * sinkMax {
			s.put('\n')
		}
	}()
	poll(t, "a full buffer", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.pending) >= sinkMax
	})
	select {
	case <-done:
		t.Error("the guest was not held")
	default:
	}
	s.release()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the guest is held although it ends")
	}
	close(w.open)
	s.close()
}
