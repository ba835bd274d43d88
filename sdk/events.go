package sdk

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// maxEvents bounds the events that wait for the launcher: arbitrary, more than a device has to tell in its start.
const maxEvents = 64

// eventHub keeps events for the launcher's stream. Adding never blocks: when it is full the oldest notice goes, or the oldest
// error that needs no reset; how many went is told in a notice. A changed configuration space is a mark, never lost.
type eventHub struct {
	log hclog.Logger

	mu      sync.Mutex
	waiting []pluginrpc.Event
	config  bool // the configuration space changed
	dropped int
	more    chan struct{} // closed and replaced when something was added
	end     context.CancelFunc
	streams int // that are open
}

func newEventHub(log hclog.Logger) *eventHub {
	return &eventHub{log: log, more: make(chan struct{}), end: func() {}}
}

func (h *eventHub) configChanged() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.config = true
	h.wake()
}

func (h *eventHub) add(ev pluginrpc.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting = append(h.waiting, ev)
	if len(h.waiting) > maxEvents {
		h.drop()
	}
	h.wake()
}

func (h *eventHub) wake() {
	close(h.more)
	h.more = make(chan struct{})
}

// drop makes room for one event.
func (h *eventHub) drop() {
	at := slices.IndexFunc(h.waiting, func(ev pluginrpc.Event) bool { _, notice := ev.(pluginrpc.Notice); return notice })
	if at < 0 {
		at = slices.IndexFunc(h.waiting, func(ev pluginrpc.Event) bool {
			e, _ := ev.(pluginrpc.DeviceError)
			return !e.NeedsReset
		})
	}
	if at < 0 { // all need a reset; the first ones say why
		at = len(h.waiting) - 1
	}
	h.waiting = slices.Delete(h.waiting, at, at+1)
	if h.dropped == 0 {
		h.log.Warn("events are dropped: the launcher does not read them")
	}
	h.dropped++
}

// stream calls send for each event until ctx ends, send fails, or another stream begins; an event that could not be sent
// stays for the next.
func (h *eventHub) stream(ctx context.Context, send func(pluginrpc.Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h.mu.Lock()
	h.end()
	h.end = cancel
	h.streams++
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.streams--
	}()
	for {
		ev, more := h.next(ctx)
		if ev == nil {
			select {
			case <-more:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		if err := send(ev); err != nil {
			h.giveBack(ev)
			return err
		}
	}
}

// heard tells whether somebody reads the events now.
func (h *eventHub) heard() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.streams > 0
}

// next takes an event; nil: there is none, or the stream is over, and more tells when to look again.
func (h *eventHub) next(ctx context.Context) (ev pluginrpc.Event, more <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case ctx.Err() != nil:
	case h.dropped > 0:
		ev = pluginrpc.Notice{Message: fmt.Sprintf("%d events of the device were dropped: nobody read them", h.dropped)}
		h.dropped = 0
	case h.config:
		h.config = false
		ev = pluginrpc.ConfigChanged{}
	case len(h.waiting) > 0:
		ev = h.waiting[0]
		h.waiting = slices.Delete(h.waiting, 0, 1)
	}
	return ev, h.more
}

func (h *eventHub) giveBack(ev pluginrpc.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, changed := ev.(pluginrpc.ConfigChanged); changed {
		h.config = true
	} else {
		h.waiting = slices.Insert(h.waiting, 0, ev)
	}
	h.wake()
}
