package vhostuser

import (
	"context"
	"fmt"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// ring is what a front-end has told of one virtqueue so far, in any order.
type ring struct {
	size    uint16 // 0: not told
	addr    VringAddr
	hasAddr bool
	base    uint16
	// fresh: the front-end set base to 0 since the ring last ran, as a new driver does.
	fresh bool
	// kicked: SET_VRING_KICK came since the last GET_VRING_BASE, so the ring may run.
	kicked  bool
	enabled bool
	running bool
}

// areas are the ring's guest-physical addresses.
type areas struct{ desc, driver, device guestmem.GPA }

// ready tells whether ring i has all it needs to run.
func (s *session) ready(r *ring) bool {
	return s.table != nil && s.featuresSet && r.size != 0 && r.hasAddr && r.kicked && (r.enabled || !s.startsDisabled)
}

// settle starts every ring that has become ready and stops every one that no longer is.
func (s *session) settle(ctx context.Context) error {
	for i := range s.rings {
		r := &s.rings[i]
		if r.running && !s.ready(r) {
			if err := s.stop(ctx, i); err != nil {
				return err
			}
		}
	}
	for i := range s.rings {
		r := &s.rings[i]
		if !r.running && s.ready(r) {
			if err := s.start(ctx, i); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *session) start(ctx context.Context, i int) error {
	r := &s.rings[i]
	a, err := s.table.locate(r)
	if err != nil {
		return fmt.Errorf("ring %d: %w", i, err)
	}
	if err := s.resetForNewDriver(ctx, r); err != nil {
		return err
	}
	if err := s.dev.SetQueue(i, r.size, a.desc, a.driver, a.device); err != nil {
		return err
	}
	if err := s.dev.SetQueueBase(i, r.base); err != nil {
		return err
	}
	if err := s.dev.StartQueue(ctx, i); err != nil {
		return err
	}
	r.running, r.fresh, s.used = true, false, true
	s.log.Debug("ring started", "ring", i, "size", r.size, "base", r.base, "desc", a.desc)
	return nil
}

// resetForNewDriver resets the device when the first ring starts again from 0: User-Mode Linux (as every front-end without
// STATUS and RESET_DEVICE) does not tell that the driver reset the device, only a new driver's set-up shows it.
func (s *session) resetForNewDriver(ctx context.Context, r *ring) error {
	if !s.used || !r.fresh || s.anyRunning() {
		return nil
	}
	if err := s.dev.Reset(ctx); err != nil {
		return err
	}
	s.used = false
	return s.dev.SetFeatures(ctx, s.features)
}

// stop stops ring i, drained, and remembers where it was.
func (s *session) stop(ctx context.Context, i int) error {
	r := &s.rings[i]
	if !r.running {
		return nil
	}
	next, err := s.dev.StopQueue(ctx, i)
	if err != nil {
		return err
	}
	r.running, r.base = false, next
	s.log.Debug("ring stopped", "ring", i, "base", next)
	return nil
}

func (s *session) anyRunning() bool {
	for i := range s.rings {
		if s.rings[i].running {
			return true
		}
	}
	return false
}

// locate translates a ring's user addresses; each area must lie in one region.
func (t *memTable) locate(r *ring) (a areas, err error) {
	if a.desc, err = t.translate(r.addr.Desc, virtio.DescTableBytes(r.size), virtio.DescAlign); err != nil {
		return a, fmt.Errorf("descriptor table: %w", err)
	}
	if a.driver, err = t.translate(r.addr.Avail, virtio.AvailRingBytes(r.size), virtio.AvailAlign); err != nil {
		return a, fmt.Errorf("available ring: %w", err)
	}
	if a.device, err = t.translate(r.addr.Used, virtio.UsedRingBytes(r.size), virtio.UsedAlign); err != nil {
		return a, fmt.Errorf("used ring: %w", err)
	}
	return a, nil
}
