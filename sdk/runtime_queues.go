package sdk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// queueSlot is one virtqueue of the device through its starts and stops. Fields change under both ctl and mu of the runtime.
type queueSlot struct {
	index int

	q      *Queue               // running, or stuck in stopping
	paused bool                 // stopped by Pause, to be started by Resume
	params queueParams          // of the last start; Kick and Call nil
	kick   int                  // ours, while running or paused: each start gets copies
	call   int                  //
	last   pluginrpc.QueueState // where it stands while it does not run
	broken string               // until Reset
	left   int                  // chains of a former instance that the last run did not take; under ctl alone
	base   queueStats           // counted by former runs
}

// running returns the index of a running queue, or -1.
func (r *deviceRuntime) running() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.queues {
		if s.q != nil {
			return s.index
		}
	}
	return -1
}

func (r *deviceRuntime) slot(op string, index int) (*queueSlot, Device, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.dev == nil:
		return nil, nil, outOfOrder(op, "the device is not configured")
	case index < 0 || index >= len(r.queues):
		return nil, nil, fmt.Errorf("%s: %w: the device has %d queues", op, pluginrpc.ErrInvalid, len(r.queues))
	}
	return r.queues[index], r.dev, nil
}

// StartQueue implements pluginrpc.Service.
func (r *deviceRuntime) StartQueue(ctx context.Context, p pluginrpc.QueueStart) (resubmitted int, err error) {
	op := fmt.Sprintf("start queue %d", p.Index)
	release := func() { closeFDs(p.Kick, p.Call) }
	defer func() { _ = unix.Close(p.Inflight) }()
	defer func() {
		if release != nil {
			release()
		}
	}()
	end, err := r.begin(ctx)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", op, err)
	}
	defer end()
	s, dev, err := r.slot(op, p.Index)
	if err != nil {
		return 0, err
	}
	if err := r.startable(op, s, p.Size); err != nil {
		return 0, err
	}
	inflight, err := mapInflight(p.Inflight, p.Size)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", op, err)
	}
	params := queueParams{
		Index: p.Index, Size: p.Size, DescArea: p.DescArea, DriverArea: p.DriverArea, DeviceArea: p.DeviceArea,
		Features: r.features, NextAvail: p.NextAvail, Recover: p.Recover, Inflight: inflight, Mem: r.mem,
		Log: r.log.With("queue", p.Index), BusyPoll: max(r.busyPoll, 0),
		OnBroken: func(err error) { r.fail(err, p.Index, true) },
		OnError:  func(err error) { r.fail(err, p.Index, true) },
	}
	q, n, err := openQueue(params, p.Kick, p.Call)
	if err != nil {
		return 0, errors.Join(fmt.Errorf("%s: %w", op, err), os.NewSyscallError("munmap", unix.Munmap(inflight)))
	}
	release = nil
	r.mu.Lock()
	s.q, s.params, s.kick, s.call = q, params, p.Kick, p.Call
	r.mu.Unlock()
	q.start(dev)
	return n, nil
}

// startable tells what is out of order or wrong.
func (r *deviceRuntime) startable(op string, s *queueSlot, size uint16) error {
	switch {
	case !r.featuresSet:
		return outOfOrder(op, "no features were set")
	case r.mem == nil:
		return outOfOrder(op, "no memory was attached")
	case s.q != nil:
		return outOfOrder(op, "it runs")
	case r.paused:
		return outOfOrder(op, "the device is paused")
	case s.broken != "":
		return outOfOrder(op, "it is broken until reset: "+s.broken)
	case !pluginrpc.ValidQueueSize(uint32(size)):
		return fmt.Errorf("%s: %w: size %d: want a power of two, at most %d", op, pluginrpc.ErrInvalid, size, virtio.QueueSizeMax)
	}
	return nil
}

// openQueue makes a queue with copies of kick and call.
func openQueue(p queueParams, kick, call int) (q *Queue, resubmitted int, err error) {
	if p.Kick, err = copyFD(kick, "kick"); err != nil {
		return nil, 0, err
	}
	if p.Call, err = copyFD(call, "call"); err != nil {
		return nil, 0, errors.Join(err, p.Kick.Close())
	}
	q, resubmitted, err = newQueue(p)
	if err == nil {
		return q, resubmitted, nil
	}
	if _, system := errors.AsType[syscall.Errno](err); !system { // the ring's addresses, or what is in the in-flight region
		err = fmt.Errorf("%w: %w", pluginrpc.ErrInvalid, err)
	}
	return nil, 0, errors.Join(err, p.Kick.Close(), p.Call.Close())
}

func copyFD(fd int, name string) (*os.File, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, os.NewSyscallError("fcntl", err))
	}
	return os.NewFile(uintptr(n), name), nil
}

func closeFDs(fds ...int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// mapInflight maps the in-flight region of a queue of size entries.
func mapInflight(fd int, size uint16) ([]byte, error) {
	n := virtq.InflightBytes(size)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("in-flight region: %w", os.NewSyscallError("fstat", err))
	}
	if st.Size < int64(n) {
		return nil, fmt.Errorf("in-flight region: %w: %d bytes: want %d for %d entries", pluginrpc.ErrInvalid, st.Size, n, size)
	}
	b, err := unix.Mmap(fd, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("in-flight region: %w", os.NewSyscallError("mmap", err))
	}
	return b, nil
}

// StopQueue implements pluginrpc.Service.
func (r *deviceRuntime) StopQueue(ctx context.Context, index int) (pluginrpc.QueueState, error) {
	op := fmt.Sprintf("stop queue %d", index)
	end, err := r.begin(ctx)
	if err != nil {
		return pluginrpc.QueueState{}, fmt.Errorf("%s: %w", op, err)
	}
	defer end()
	s, _, err := r.slot(op, index)
	if err != nil {
		return pluginrpc.QueueState{}, err
	}
	if err := r.stopSlot(ctx, s, false); err != nil {
		return pluginrpc.QueueState{}, err
	}
	if s.left > 0 && s.broken == "" {
		r.log.Error("the device's loop ended before it took what a former instance left in flight: lost", "queue", index, "chains", s.left)
	}
	s.left = 0
	return s.last, nil
}

// stopSlot stops a queue if it runs. pause keeps what Resume needs; otherwise that is released, also of a paused queue.
// After an error (chains did not finish in time) the queue still owns ring and memory.
func (r *deviceRuntime) stopSlot(ctx context.Context, s *queueSlot, pause bool) error {
	wasPaused := s.paused
	if s.q != nil {
		state, err := s.q.stop(ctx)
		if err != nil {
			return err
		}
		r.mu.Lock()
		s.base = s.base.plus(s.q.statistics())
		s.last, s.left = pluginrpc.QueueState{NextAvail: state.NextAvail, UsedIndex: state.UsedIndex}, state.Unserved
		if state.Broken != nil {
			s.broken = state.Broken.Error()
			s.last.Broken = s.broken
		}
		s.q, s.paused = nil, pause
		r.mu.Unlock()
	} else if !wasPaused {
		return nil
	}
	if pause {
		return nil
	}
	r.mu.Lock()
	s.paused = false
	r.mu.Unlock()
	closeFDs(s.kick, s.call)
	inflight := s.params.Inflight
	s.params = queueParams{}
	return os.NewSyscallError("munmap", unix.Munmap(inflight))
}

// stopAll stops all queues at once, so that their drains overlap.
func (r *deviceRuntime) stopAll(ctx context.Context, pause bool) error {
	var wg sync.WaitGroup
	errs := make([]error, len(r.queues))
	for i, s := range r.queues {
		wg.Go(func() { errs[i] = r.stopSlot(ctx, s, pause) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Pause implements pluginrpc.Service. After an error some queues may have stopped: Resume restarts those.
func (r *deviceRuntime) Pause(ctx context.Context) error {
	end, err := r.begin(ctx)
	if err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	defer end()
	if _, err := r.device("pause"); err != nil {
		return err
	}
	r.mu.Lock()
	r.paused = true
	r.mu.Unlock()
	if err := r.stopAll(ctx, true); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	return nil
}

// Resume implements pluginrpc.Service. It first ends what a Pause that failed has begun: a queue that was told to stop serves
// no more, whenever its last chain is done. After an error it may be called again.
func (r *deviceRuntime) Resume(ctx context.Context) error {
	end, err := r.begin(ctx)
	if err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	defer end()
	dev, err := r.device("resume")
	if err != nil {
		return err
	}
	if r.paused {
		if err := r.stopAll(ctx, true); err != nil {
			return fmt.Errorf("resume: %w", err)
		}
	}
	for _, s := range r.queues {
		if !s.paused || s.broken != "" {
			continue
		}
		p := s.params
		// The drain completed whatever was popped, so the region is begun anew, unless the device did not take all that a
		// former instance left in it.
		p.NextAvail, p.Recover, p.Features, p.Mem = s.last.NextAvail, s.left > 0, r.features, r.mem
		q, _, err := openQueue(p, s.kick, s.call)
		if err != nil {
			return fmt.Errorf("resume: queue %d: %w", s.index, err)
		}
		r.mu.Lock()
		s.q, s.params, s.paused = q, p, false
		r.mu.Unlock()
		q.start(dev)
	}
	r.mu.Lock()
	r.paused = false
	r.mu.Unlock()
	return nil
}

func (s queueStats) plus(t queueStats) queueStats {
	return queueStats{
		Chains: s.Chains + t.Chains, Completed: s.Completed + t.Completed,
		ReadableBytes: s.ReadableBytes + t.ReadableBytes, WrittenBytes: s.WrittenBytes + t.WrittenBytes,
		Kicks: s.Kicks + t.Kicks, Calls: s.Calls + t.Calls, CallsSuppressed: s.CallsSuppressed + t.CallsSuppressed,
		Errors: s.Errors + t.Errors, Broken: t.Broken,
	}
}

// queueStatistics reads every queue's counters. mu is held, so that no queue is torn down meanwhile.
func (r *deviceRuntime) queueStatistics() []pluginrpc.QueueStatistics {
	var out []pluginrpc.QueueStatistics
	for _, s := range r.queues {
		t := s.base
		broken := s.broken
		if s.q != nil {
			now := s.q.statistics()
			t = t.plus(now)
			if now.Broken != nil {
				broken = now.Broken.Error()
			}
		}
		out = append(out, pluginrpc.QueueStatistics{
			Index: s.index, Running: s.q != nil, Chains: t.Chains, Completed: t.Completed, ReadableBytes: t.ReadableBytes,
			WrittenBytes: t.WrittenBytes, Kicks: t.Kicks, Calls: t.Calls, CallsSuppressed: t.CallsSuppressed,
			Errors: t.Errors, Broken: broken,
		})
	}
	return out
}
