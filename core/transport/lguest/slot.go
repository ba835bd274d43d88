package lguest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// state is what a device on the bus is doing.
type state int

const (
	// idle: reset, or never started.
	idle state = iota
	// running: its queues are started.
	running
	// broken: its queues are stopped, and only a reset helps. Legacy virtio has no way to tell the driver.
	broken
)

// slot is one device on the bus. Methods are called with Bus.life held for reading, but release and connect.
type slot struct {
	bus   *Bus
	dev   Device
	rec   Record // as it was built: the guest's copy is never believed
	log   hclog.Logger
	rings []*ring

	// mu is held during a change of what follows, and so during calls of the device.
	mu       sync.Mutex
	state    state
	accepted virtio.Features
	// driverOK: the guest was seen with DRIVER_OK since the device started.
	driverOK bool

	// config is held while the configuration space in the page is written.
	config sync.Mutex
}

// connect makes the rings' notifications and gives the device what it needs before it can start.
func (s *slot) connect(ctx context.Context, region []byte) error {
	for i, v := range s.rec.Rings {
		r := &ring{slot: s, index: i, irq: uint32(v.IRQ), layout: layoutOf(v), kick: -1, call: -1, stop: -1, change: -1}
		at := r.layout.Desc - s.bus.opts.Page
		r.memory = region[at : uint64(at)+r.layout.Bytes()]
		s.rings = append(s.rings, r)
		if err := r.open(ctx); err != nil {
			return fmt.Errorf("ring %d: %w", i, err)
		}
	}
	s.dev.OnConfigChange(func([]byte) {
		s.bus.life.RLock()
		defer s.bus.life.RUnlock()
		if !s.bus.closed {
			s.log.Debug("configuration space changed; the lguest bus has no interrupt for that")
			s.showConfig()
		}
	})
	s.dev.OnNeedsReset(func() {
		s.log.Warn("device needs a reset; the lguest bus cannot tell its driver")
	})
	return s.dev.SetMemory(ctx, s.bus.opts.Table)
}

// showConfig writes the device's configuration space to the page.
func (s *slot) showConfig() {
	s.config.Lock()
	defer s.config.Unlock()
	copy(s.bus.page[s.rec.ConfigOffset():s.rec.End()], s.dev.ConfigSpace())
}

// status reads the status that the guest wrote. The byte may change at any time: the caller reads it once.
func (s *slot) status() virtio.Status { return virtio.Status(s.bus.page[s.rec.StatusOffset()]) }

// statusChanged is the guest's NOTIFY of the record.
func (s *slot) statusChanged(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := s.status()
	switch {
	case status == 0:
		s.reset(ctx)
		return
	case status.Has(virtio.StatusFailed):
		s.bus.quiet.warn("the guest's driver gave up (FAILED)", "device", s.dev.Name())
		if s.state != idle {
			s.reset(ctx)
		}
	case s.state == broken:
		s.bus.quiet.warn("device waits for a reset: the driver's status is ignored", "device", s.dev.Name(), "status", status)
	case s.state == running:
		s.again(ctx, status)
	case status&(virtio.StatusDriver|virtio.StatusDriverOK) == 0:
		// Only ACKNOWLEDGE, from a guest before Linux 3.1: there is no driver yet that could have chosen features.
	default:
		s.start(ctx, status)
	}
	s.dev.SetStatus(status)
}

// kicked is the guest's NOTIFY of a ring that no eventfd took.
func (s *slot) kicked(ctx context.Context, r *ring) {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := s.status()
	switch {
	case s.state == running:
		r.signal()
	case s.state == idle && status.Has(virtio.StatusDriverOK) && !status.Has(virtio.StatusFailed):
		s.start(ctx, status) // a guest before Linux 3.1; starting a queue kicks it
		s.dev.SetStatus(status)
	case s.state == broken:
		s.bus.quiet.warn("notification of a device that waits for a reset: ignored", "device", s.dev.Name(), "ring", r.index)
	default:
		s.bus.quiet.warn("notification before setup: ignored", "device", s.dev.Name(), "ring", r.index)
	}
}

// again is a status other than 0 and FAILED while the device runs. The features were final already, unless it is a guest
// before Linux 3.1, which is taken to have started by an early status and now says DRIVER_OK. The caller holds mu.
func (s *slot) again(ctx context.Context, status virtio.Status) {
	if !status.Has(virtio.StatusDriverOK) || s.driverOK {
		s.bus.quiet.error("driver says twice that its features are final: device stopped until it is reset",
			"device", s.dev.Name(), "status", status)
		s.stop(ctx)
		s.state = broken
		return
	}
	s.driverOK = true
	if accepted, err := s.readAccepted(); err == nil && accepted == s.accepted {
		return
	}
	s.stop(ctx)
	if err := s.dev.Reset(ctx); err != nil {
		s.log.Error("reset", "error", err)
	}
	s.start(ctx, status)
}

// readAccepted reads the features that the guest accepts, each byte once.
func (s *slot) readAccepted() (virtio.Features, error) {
	f := features(s.bus.page[s.rec.GuestOffset():s.rec.ConfigOffset()])
	if more := f &^ s.rec.Offered(); more != 0 {
		return 0, fmt.Errorf("driver accepts features %v, which the device does not offer", more)
	}
	return f, nil
}

// start serves the queues with the features that the guest has accepted, from each ring's base on. The caller holds mu; the
// queues are stopped and the device is reset.
func (s *slot) start(ctx context.Context, status virtio.Status) {
	s.state = idle
	accepted, err := s.readAccepted()
	if err == nil && !s.bus.initialized {
		err = errors.New("the machine has not initialized the bus")
	}
	if err != nil {
		s.bus.quiet.error("device not started", "device", s.dev.Name(), "error", err)
		s.listen()
		return
	}
	s.accepted, s.driverOK, s.state = accepted, status.Has(virtio.StatusDriverOK), running
	if err = s.dev.SetFeatures(ctx, accepted); err == nil {
		s.showConfig()
		for _, r := range s.rings {
			if err = r.start(ctx); err != nil {
				err = fmt.Errorf("ring %d: %w", r.index, err)
				break
			}
		}
	}
	if err != nil {
		s.bus.quiet.error("device not started; it waits for a reset", "device", s.dev.Name(), "error", err)
		s.stop(ctx)
		s.state = broken
		return
	}
	s.log.Debug("device started", "features", accepted)
}

// stop stops the queues and remembers how far they came. The caller holds mu.
func (s *slot) stop(ctx context.Context) {
	for _, r := range s.rings {
		next, err := s.dev.StopQueue(ctx, r.index)
		if err != nil {
			s.log.Error("stop queue", "ring", r.index, "error", err)
		}
		r.base = next
	}
}

// reset makes the device as it was at first. The queues stop before the guest's side of them is cleared. The caller holds mu.
func (s *slot) reset(ctx context.Context) {
	if s.state != idle {
		s.stop(ctx)
	}
	if err := s.dev.Reset(ctx); err != nil {
		s.log.Error("reset", "error", err)
	}
	s.state, s.accepted, s.driverOK = idle, 0, false
	clear(s.bus.page[s.rec.GuestOffset():s.rec.ConfigOffset()])
	for _, r := range s.rings {
		clear(r.memory)
		r.base = 0
		take(r.kick) // of before the reset
	}
	s.showConfig()
	s.listen()
	s.log.Debug("device reset")
}

// release stops everything for good. Bus.closed is set: nothing else is under way.
func (s *slot) release(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == running {
		s.stop(ctx)
	}
	s.state = idle
	for _, r := range s.rings {
		r.end()
	}
	return s.dev.Release(ctx)
}
