package main

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// tellOnce makes b's synchronisations fail as the kernel's do: the first to ask is told of an error, later ones, also those
// that run at the same time, are not. begun gets a token for each.
func tellOnce(b *block, begun chan struct{}, proceed <-chan struct{}) {
	var told atomic.Bool
	b.img.fdatasync = func(int) error {
		if told.Swap(true) {
			return nil
		}
		begun <- struct{}{}
		<-proceed
		return unix.EIO
	}
	b.img.fsync = b.img.fdatasync
}

// The kernel reports a failed write-back once for each open file. Of flushes of several queues at once all must fail.
func TestFlushesAtOnceAllFail(t *testing.T) {
	t.Parallel()
	b, _ := newDisk(t, imageFile(t, 1<<20), defaultSettings())
	begun, proceed := make(chan struct{}, 1), make(chan struct{})
	tellOnce(b, begun, proceed)
	const others = 4
	var errs [1 + others]error
	var wg sync.WaitGroup
	wg.Go(func() { errs[0] = b.img.sync() })
	<-begun
	var ready sync.WaitGroup
	for i := range others {
		ready.Add(1)
		wg.Go(func() { ready.Done(); errs[1+i] = b.img.sync() })
	}
	ready.Wait()
	for range 10000 { // time to go wrong
		runtime.Gosched()
	}
	close(proceed)
	wg.Wait()
	for i, err := range errs {
		if !errors.Is(err, unix.EIO) {
			t.Errorf("flush %d: %v: the write-back of what it covers failed", i, err)
		}
	}
}

// Making a new size durable asks the kernel too, and gets what the guest's next flush should have been told.
func TestAFailureThatAResizeIsToldFailsTheGuestsFlush(t *testing.T) {
	t.Parallel()
	b, _ := newDisk(t, imageFile(t, 1<<20), defaultSettings())
	begun, proceed := make(chan struct{}, 1), make(chan struct{})
	tellOnce(b, begun, proceed)
	close(proceed)
	if _, err := resize(t, b, `{"size": 2097152}`); !errors.Is(err, unix.EIO) {
		t.Errorf("resize: %v", err)
	}
	if err := b.img.sync(); !errors.Is(err, unix.EIO) {
		t.Errorf("flush: %v: writes may be lost", err)
	}
	if err := b.Health(); !errors.Is(err, unix.EIO) {
		t.Errorf("health: %v", err)
	}
}

// A flush that comes while another runs must not take that one's result: its writes may be too late for it.
func TestAFlushIsNotServedByAnEarlierOne(t *testing.T) {
	t.Parallel()
	b, _ := newDisk(t, imageFile(t, 1<<20), defaultSettings())
	begun, proceed := make(chan struct{}, 16), make(chan struct{})
	b.img.fdatasync = func(int) error { begun <- struct{}{}; <-proceed; return nil }
	var wg sync.WaitGroup
	flush := func() {
		if err := b.img.sync(); err != nil {
			t.Error(err)
		}
	}
	wg.Go(flush)
	<-begun
	wg.Go(flush)
	proceed <- struct{}{}
	<-begun
	close(proceed)
	wg.Wait()
}
