package sdk

import (
	"context"
	"testing"
	"time"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// waker tells each time that Wait returns though there is no chain.
type waker struct {
	oneQueue
	woken chan struct{}
}

func (w waker) RunQueue(ctx context.Context, q *Queue) error {
	for {
		if err := q.Wait(ctx); err != nil {
			return nil //nolint:nilerr // told to stop
		}
		c, ok, err := q.Pop()
		if err != nil {
			return err
		}
		if ok {
			if err := q.Finish(c); err != nil {
				return err
			}
			continue
		}
		w.woken <- struct{}{}
	}
}

func TestALoopIsWokenWithoutAChain(t *testing.T) {
	t.Parallel()
	w := waker{woken: make(chan struct{}, 1000)}
	r := newQueueRig(t, w, virtio.FVersion1)
	for range 100 { // before it waits, while it waits, twice in a row
		r.ok(r.q.Wake())
		select {
		case <-w.woken:
		case <-time.After(patience):
			t.Fatal("Wait did not return")
		}
		r.send(r.buffer(8), nil)
		r.receive()
	}
	r.stop()
	r.ok(r.q.Wake()) // nobody waits any more
}
