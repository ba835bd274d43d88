package virtq_test

import (
	"fmt"
	"testing"

	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// BenchmarkRing is one request around the ring, driver and device in turn: add, publish, pop, complete, flush, reap. Its
// time is both sides' together. batch is how many requests share a publication.
func BenchmarkRing(b *testing.B) {
	for _, name := range []string{"plain", "indirect", "eventidx", "indirect+eventidx"} {
		for _, batch := range []int{1, 8} {
			for _, tracked := range []bool{false, true} {
				b.Run(fmt.Sprintf("ring=%s/batch=%d/inflight=%v", name, batch, tracked), func(b *testing.B) {
					benchRing(b, ringFeatures[name], batch, tracked)
				})
			}
		}
	}
}

func benchRing(b *testing.B, f virtio.Features, batch int, tracked bool) {
	b.Helper()
	p := newPair(b, memfdMemory(b, 256), 128, f)
	if !tracked {
		p.cfg.Inflight = nil
		p.activate(b)
	}
	bs := p.buffers(b, 16, 4096, 1)
	cs := make([]*virtq.Chain, batch)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		p.drv.Add(bs[:1], bs[1:])
		if n%batch != batch-1 {
			continue
		}
		p.drv.Publish()
		k, err := p.dev.PopBatch(cs)
		if err != nil {
			b.Fatal(err)
		}
		for _, c := range cs[:k] {
			c.Writer().Advance(4097)
		}
		p.dev.CompleteBatch(cs[:k])
		for {
			if _, _, ok := p.drv.Used(); !ok {
				break
			}
		}
	}
}
