package pluginhost

import (
	"slices"
	"time"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

const (
	// queuedEvents is how many events wait for a reader; arbitrary.
	queuedEvents = 64
	// eventPause slows down a plugin that sends events faster than they are read.
	eventPause = time.Millisecond
)

// relay passes events from the stream to Events, never blocking the stream for long. It ends with the stream, which ends
// with the process; a stream that ends before is a broken connection.
func (i *Instance) relay(in <-chan pluginrpc.Event) {
	defer close(i.events)
	q := eventQueue{}
	for in != nil || len(q.waiting) > 0 {
		var out chan<- pluginrpc.Event
		var head pluginrpc.Event
		if len(q.waiting) > 0 {
			out, head = i.events, q.waiting[0]
		}
		select {
		case e, ok := <-in:
			if !ok {
				in = nil
				i.streamEnded()
				continue
			}
			if q.add(e) {
				time.Sleep(eventPause)
			}
		case out <- head:
			q.waiting = slices.Delete(q.waiting, 0, 1)
		case <-i.closing:
			return
		}
	}
	if q.dropped > 0 {
		i.sink.log.Warn("plugin sent more events than could be read: some were dropped", "events", q.dropped)
	}
}

// streamEnded decides whether the end of the stream is the end of the process.
func (i *Instance) streamEnded() {
	select {
	case <-i.closing:
	case <-i.done:
	case <-time.After(2 * drainTime):
		i.condemn("it ended its event stream")
	}
}

// eventQueue holds events that nobody has read yet.
type eventQueue struct {
	waiting []pluginrpc.Event
	dropped int
}

// add appends e. Of configuration spaces only the newest counts; if there is no room, the oldest notice goes, or else the
// oldest event. It tells whether something was dropped.
func (q *eventQueue) add(e pluginrpc.Event) (dropped bool) {
	drop := -1
	if _, ok := e.(pluginrpc.ConfigChanged); ok {
		drop = slices.IndexFunc(q.waiting, func(o pluginrpc.Event) bool { _, ok := o.(pluginrpc.ConfigChanged); return ok })
	}
	if superseded := drop >= 0; !superseded && len(q.waiting) >= queuedEvents {
		drop = max(0, slices.IndexFunc(q.waiting, func(o pluginrpc.Event) bool { _, ok := o.(pluginrpc.Notice); return ok }))
		q.dropped++
	}
	if drop >= 0 {
		q.waiting = slices.Delete(q.waiting, drop, drop+1)
	}
	q.waiting = append(q.waiting, e)
	return drop >= 0
}
