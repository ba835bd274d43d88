package virtq_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// A device may die at any store. These put together the states between two stores of one publication.
func TestADeviceThatDiesWhilePublishingRepeatsNothingPublished(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"before the used index", "after the used index", "after the in-flight bits"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, heapMemory(t, 16), 8, virtio.FVersion1)
			bs := p.buffers(t, 4, 4, 4, 4)
			for i := range bs {
				p.drv.Add(bs[i:i+1], nil)
			}
			p.drv.Publish()
			var cs [4]*virtq.Chain
			if n, err := p.dev.PopBatch(cs[:]); n != 4 || err != nil {
				t.Fatal(n, err)
			}
			p.dev.Complete(cs[3])
			p.dev.Complete(cs[0])
			stagedRegion := slices.Clone(p.inflight)
			p.dev.Flush()
			want := []uint16{cs[1].Head(), cs[2].Head()}
			switch when {
			case "before the used index":
				copy(p.inflight, stagedRegion)
				p.drv.Raw().SetUsedIdx(0)
				want = []uint16{cs[0].Head(), cs[1].Head(), cs[2].Head(), cs[3].Head()}
			case "after the used index":
				copy(p.inflight, stagedRegion)
			case "after the in-flight bits":
				copy(p.inflight[14:16], stagedRegion[14:16]) // used_idx of the region
			}
			p.cfg.Recover = true
			p.activate(t)
			var got []uint16
			for {
				c, ok, err := p.dev.Pop()
				if err != nil {
					t.Fatal(err)
				}
				if !ok {
					break
				}
				got = append(got, c.Head())
				p.dev.Complete(c)
			}
			if !slices.Equal(got, want) {
				t.Errorf("resubmitted %v, want %v", got, want)
			}
			if !p.dev.Flush() {
				t.Error("the first publication after a recovery must call")
			}
			if s := p.dev.State(); s.NextAvail != 4 || s.UsedIndex != 4 {
				t.Errorf("state %+v", s)
			}
		})
	}
}

func TestAScribbledInflightRegionIsRefused(t *testing.T) {
	t.Parallel()
	for name, scribble := range map[string]func(p *pair){
		"used index far away": func(p *pair) { p.drv.Raw().SetUsedIdx(100) },
		"batch head outside":  func(p *pair) { p.inflight[12] = 200; p.drv.Raw().SetUsedIdx(1) },
		"other queue size":    func(p *pair) { p.inflight[10] = 4 },
		"other version":       func(p *pair) { p.inflight[8] = 2 },
	} {
		p := newPair(t, heapMemory(t, 16), 8, virtio.FVersion1)
		scribble(p)
		p.cfg.Recover = true
		q, err := virtq.Activate(p.mem, p.cfg)
		if err == nil || q != nil {
			t.Errorf("%s: accepted", name)
		}
		if de := (*virtq.DriverError)(nil); errors.As(err, &de) {
			t.Errorf("%s: blamed on the driver", name)
		}
	}
}
