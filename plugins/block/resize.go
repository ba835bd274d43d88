package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
)

// resizeCommand is what Describe tells of "resize".
var resizeCommand = sdk.CommandSpec{
	Name:        "resize",
	Description: "Tell the guest the image's present size or, with a size, make the image that large first",
	Args:        resizeArgs{},
}

// resizeArgs are the arguments of "resize".
type resizeArgs struct {
	Size  sdk.Size `config:"size" min:"512" help:"New size of the image file. Default: the size that the image has."`
	Force bool     `config:"force" default:"false" help:"Also make the disk smaller: what lies beyond the new end is lost."`
}

// resizeResult is what "resize" answers, in bytes.
type resizeResult struct {
	Size     int64 `json:"size"`
	Previous int64 `json:"previous"`
}

// Command runs "resize". Queues go on meanwhile.
func (b *block) Command(_ context.Context, name string, raw json.RawMessage) (any, error) {
	if name != resizeCommand.Name {
		return nil, fmt.Errorf("command %q: unknown: this device knows %q", name, resizeCommand.Name)
	}
	if len(raw) == 0 {
		raw = []byte("{}")
	}
	args, err := sdk.DecodeArgs[resizeArgs](raw)
	if err != nil {
		return nil, fmt.Errorf("resize: %w", err)
	}
	previous, size, err := b.img.resize(int64(args.Size), args.Force) //nolint:gosec // G115: a Size is below 2^63
	if err != nil {
		return nil, fmt.Errorf("resize: %s: %w%s", b.img.path, err, advice(err))
	}
	if size != previous {
		b.host.ConfigChanged()
	}
	return resizeResult{Size: size, Previous: previous}, nil
}

// resize makes the disk as large as its image; a size that is not 0 first makes the image, a file, that large. It returns
// the disk's size before and after. Making it smaller waits for I/O that is under way.
func (m *image) resize(size int64, force bool) (previous, now int64, err error) {
	m.resizing.Lock()
	defer m.resizing.Unlock()
	previous = m.bytes.Load()
	has, err := m.measure()
	if err != nil {
		return previous, previous, err
	}
	if size != 0 && size != has {
		if err := m.mayBecome(size, has, force); err != nil {
			return previous, previous, err
		}
		if size < previous {
			m.shrink(size) // before the file does, or a write under way would make it grow again
		}
		if err := m.setSize(size); err != nil {
			if has, e := m.measure(); e == nil { // it may have been done all the same
				m.bytes.Store(min(previous, m.usable(has)))
			}
			return previous, m.bytes.Load(), err
		}
		has = size
	}
	usable := m.usable(has)
	switch {
	case usable == 0:
		return previous, m.bytes.Load(), fmt.Errorf("the image has %d bytes now, a disk needs at least one block of %d: the disk stays as it was", has, m.unit)
	case usable < m.bytes.Load():
		m.shrink(usable)
	default:
		m.bytes.Store(usable)
	}
	return previous, usable, nil
}

// mayBecome tells whether the image, which has has bytes, may be given another size.
func (m *image) mayBecome(size, has int64, force bool) error {
	switch {
	case m.blockDevice:
		return errors.New("is a block device: resize it with its own tools, then give the command without a size")
	case m.readOnly:
		return errors.New("is read-only")
	case size%m.unit != 0:
		return fmt.Errorf("%d bytes: not a multiple of the block size, %d", size, m.unit)
	case size < has && !force:
		return fmt.Errorf("%d bytes: smaller than the %d it has: what lies beyond would be lost; force = true does it all the same", size, has)
	}
	return nil
}

// shrink makes the disk smaller. No I/O is under way beyond the new end when it returns.
func (m *image) shrink(size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes.Store(size)
}

// setSize changes the file's size, durably.
func (m *image) setSize(size int64) error {
	for {
		err := unix.Ftruncate(m.fd, size)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("set its size to %d bytes: %w", size, err)
		}
		return m.syncSize()
	}
}
