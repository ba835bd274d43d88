package sdk

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// patientTillStop handles nothing before its queue is to stop.
type patientTillStop struct{ oneQueue }

func (patientTillStop) HandleChain(ctx context.Context, _ *Queue, _ *virtq.Chain) error {
	<-ctx.Done()
	return nil
}

// More chains than one batch were in flight when the former instance died: a stop must not forget those that were not
// popped again yet, for NextAvail is behind them.
func TestAStopServesAllThatAFormerInstanceLeft(t *testing.T) {
	t.Parallel()
	const n = BatchSize + 4
	dev := keeper{kept: make(chan *virtq.Chain, n)}
	r := newQueueRig(t, dev, virtio.FVersion1)
	var kept []*virtq.Chain
	for range n {
		r.send(r.buffer(1), nil)
		kept = append(kept, <-dev.kept)
	}
	first := r.q
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := first.stop(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("stop = %v: want to be told of chains in flight", err)
	}
	<-first.served
	// The first instance is dead, as far as the ring is concerned: its memory is let go at the end only.
	ring, inflight := r.drv.Raw().UsedIdx(), slices.Clone(r.inflight)
	for _, c := range kept {
		r.ok(first.Finish(c))
	}
	_, err := first.stop(t.Context())
	r.ok(err)
	r.drv.Raw().SetUsedIdx(ring)
	copy(r.inflight, inflight)

	r.params.Recover = true
	r.start(patientTillStop{})
	if s := r.stop(); s.NextAvail != n || s.UsedIndex != n {
		t.Errorf("stopped at %+v: chains of the former instance are lost: want %d", s, n)
	}
}

// quitter is a QueueRunner that returns although nobody stops it.
type quitter struct{ oneQueue }

func (quitter) RunQueue(context.Context, *Queue) error { return nil }

// A queue that nothing serves any more would hang the guest without a word.
func TestALoopThatEndsByItselfIsTold(t *testing.T) {
	t.Parallel()
	r := newQueueRig(t, quitter{}, virtio.FVersion1)
	select {
	case err := <-r.failed:
		if !strings.Contains(err.Error(), "RunQueue returned") {
			t.Errorf("told %v", err)
		}
	case <-time.After(patience / 4):
		t.Error("nobody was told")
	}
}
