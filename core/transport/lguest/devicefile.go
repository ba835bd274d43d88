package lguest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/guestmem"
)

// Caller is an open file of /dev/lguest's kind: what pwrite, pread and close do there. cpu is the file offset, which such a
// file takes for the number of a virtual CPU. A short count is no error.
type Caller interface {
	Pwrite(p []byte, cpu int64) (int, error)
	Pread(p []byte, cpu int64) (int, error)
	Close() error
}

// Ends of a guest behind a DeviceFile, as Run reports them.
var (
	// ErrReboot tells that the guest asked to be started again, which needs a new DeviceFile.
	ErrReboot = errors.New("the guest asked to be restarted")
	// ErrDead tells that the host's kernel ended the guest; the text goes on with its reason.
	ErrDead = errors.New("guest died")
)

// wordSize is the size of the kernel's unsigned long, in bytes, if the kernel is of this program's kind.
const wordSize = bits.UintSize / 8

// DeviceFile is a host that runs its guest behind a file in /dev/lguest's format, as Linux 2.6.23 to 4.13 had it for 32-bit
// x86; LHREQ_EVENTFD, which it needs, came with 2.6.31 and went with 4.0. It implements Requests. The kernel lets only the
// thread that initialized the guest run it, so a DeviceFile keeps a thread of its own for both.
//
// Interrupts go through LHREQ_IRQ, one write for each: the bus relays its call descriptors.
type DeviceFile struct {
	file  Caller
	owner chan func()
	quit  chan struct{} // closed by Close
	ended chan struct{} // the owner's thread has ended
	once  sync.Once
	err   error // of Close

	// use is held for reading while file is written to, and for writing while closed changes.
	use    sync.RWMutex
	closed bool
}

// OpenDeviceFile opens path, which is /dev/lguest as a rule.
func OpenDeviceFile(path string) (*DeviceFile, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("open %s: %w: this kernel has no lguest (removed in Linux 4.14) or its module lg is not loaded: use the kvm machine", path, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("open %s: %w: lguest is for root, or for whoever may read and write this file", path, err)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return NewDeviceFile(rawFile(fd)), nil
}

// NewDeviceFile takes over an open file; Close closes it.
func NewDeviceFile(file Caller) *DeviceFile {
	d := &DeviceFile{file: file, owner: make(chan func()), quit: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		defer close(d.ended)
		for {
			select {
			case f := <-d.owner:
				f()
			case <-d.quit:
				return
			}
		}
	}()
	return d
}

// rawFile is a descriptor. os.File will not do: it repeats short reads at another offset, which is another CPU here.
type rawFile int

func (f rawFile) Pwrite(p []byte, cpu int64) (int, error) { return unix.Pwrite(int(f), p, cpu) }
func (f rawFile) Pread(p []byte, cpu int64) (int, error)  { return unix.Pread(int(f), p, cpu) }
func (f rawFile) Close() error                            { return unix.Close(int(f)) }

// own runs f on the owner's thread.
func (d *DeviceFile) own(f func() error) (err error) {
	done := make(chan struct{})
	select {
	case d.owner <- func() { defer close(done); err = f() }:
		<-done
		return err
	case <-d.ended:
		return os.ErrClosed
	}
}

// request writes one request. What the kernel returns for success differs between requests and says nothing more.
func (d *DeviceFile) request(r Request) error {
	words, err := r.Append(nil, wordSize)
	if err != nil {
		return err
	}
	d.use.RLock()
	defer d.use.RUnlock()
	if d.closed {
		return fmt.Errorf("%v: %w", r.Op, os.ErrClosed)
	}
	for {
		_, err = d.file.Pwrite(words, 0)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	hint := ""
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY):
		hint = ": this file has a guest already: open it once more for another"
	case errors.Is(err, unix.ENOENT):
		hint = ": the guest is dead"
	case errors.Is(err, unix.EINVAL) && r.Op == OpEventFD:
		hint = ": not initialized, or a kernel without LHREQ_EVENTFD (it needs Linux 2.6.31 to 3.19)"
	case errors.Is(err, unix.EINVAL):
		hint = ": not initialized, or a value that this kernel does not take"
	}
	return fmt.Errorf("%v: %w%s", r.Op, err, hint)
}

// Initialize implements Requests. It can be done once.
func (d *DeviceFile) Initialize(base, pfnLimit, start uint64) error {
	return d.own(func() error {
		return d.request(Request{Op: OpInitialize, Base: base, PFNLimit: pfnLimit, Start: start})
	})
}

// IRQ implements Requests.
func (d *DeviceFile) IRQ(irq uint32) error { return d.request(Request{Op: OpIRQ, IRQ: irq}) }

// EventFD implements Requests. The kernel has no way to take it back, and the first entry for an address wins.
func (d *DeviceFile) EventFD(address guestmem.GPA, fd int) error {
	return d.request(Request{Op: OpEventFD, Address: address, FD: fd})
}

// reasonMax is how many bytes of a reason for the guest's death are read; that of lguest's own Launcher.
const reasonMax = 1023

// Run runs the guest, after Initialize, and calls notify with each address that it notifies, the guest waiting meanwhile. It
// returns when the guest is over: ErrReboot, or ErrDead with the kernel's reason; or ctx's error. ctx is looked at after
// each notification only: the kernel has no way to interrupt a guest that makes none, but the end of this process.
func (d *DeviceFile) Run(ctx context.Context, notify func(guestmem.GPA)) error {
	return d.own(func() error {
		var word [wordSize]byte
		for ctx.Err() == nil {
			n, err := d.file.Pread(word[:], 0)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.ERESTART):
				return ErrReboot
			case errors.Is(err, unix.ENOENT):
				return d.death()
			case errors.Is(err, unix.EPERM):
				return fmt.Errorf("run guest: %w: another thread initialized it", err)
			case errors.Is(err, unix.EINVAL):
				return fmt.Errorf("run guest: %w: it is not initialized", err)
			case err != nil:
				return fmt.Errorf("run guest: %w", err)
			case n != wordSize:
				return fmt.Errorf("run guest: %d bytes read: want an address of %d", n, wordSize)
			}
			notify(guestmem.GPA(nativeWord(word[:])))
		}
		return ctx.Err()
	})
}

// nativeWord is an unsigned long of the kernel's.
func nativeWord(b []byte) uint64 {
	if len(b) == 4 {
		return uint64(binary.NativeEndian.Uint32(b))
	}
	return binary.NativeEndian.Uint64(b)
}

// death asks why the guest died.
func (d *DeviceFile) death() error {
	reason := make([]byte, reasonMax)
	for {
		n, err := d.file.Pread(reason, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ERESTART) {
			return ErrReboot
		}
		if err != nil {
			return fmt.Errorf("%w, and the kernel does not tell why: %w", ErrDead, err)
		}
		text, _, _ := strings.Cut(string(reason[:n]), "\x00")
		return fmt.Errorf("%w: %s", ErrDead, text)
	}
}

// Close closes the file, which ends the guest. Not while Run runs: it would wait. Idempotent.
func (d *DeviceFile) Close() error {
	d.once.Do(func() {
		close(d.quit)
		<-d.ended
		d.use.Lock()
		defer d.use.Unlock()
		d.closed = true
		if err := d.file.Close(); err != nil {
			d.err = fmt.Errorf("close lguest device: %w", err)
		}
	})
	return d.err
}
