package sdk

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/eventfd"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// runtimeRig is a runtime with one queue and the driver of that.
type runtimeRig struct {
	t        *testing.T
	rt       *deviceRuntime
	mem      *guestmem.Memory // the driver's view
	arena    *driver.Arena
	drv      *driver.Queue
	inflight *os.File
	kick     *os.File
}

func newRuntimeRig(t *testing.T, dev Device) *runtimeRig {
	t.Helper()
	r := &runtimeRig{t: t, rt: runtimeOf(t, dev)}
	const pages = 64
	ram := r.memfd(pages * guestmem.PageSize)
	fd := int(ram.Fd())
	regions := []guestmem.MapRegion{{Start: 0x1000, Size: pages * guestmem.PageSize, FD: fd}}
	var err error
	r.mem, err = guestmem.Map(regions)
	r.ok(err)
	r.arena = driver.NewArena(r.mem)
	r.drv, err = driver.New(r.arena, driver.Config{Size: 16, Features: virtio.FVersion1})
	r.ok(err)
	r.inflight = r.memfd(int64(virtq.InflightBytes(16)))
	r.kick, err = eventfd.New()
	r.ok(err)
	_, err = r.rt.Configure(t.Context(), pluginrpc.Settings{DeviceName: "d", ConfigJSON: []byte("{}")})
	r.ok(err)
	_, err = r.rt.SetFeatures(t.Context(), virtio.FVersion1)
	r.ok(err)
	r.ok(r.rt.AttachMemory(t.Context(), regions))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		r.ok(errors.Join(r.rt.Close(ctx), r.mem.Close(), ram.Close(), r.inflight.Close(), r.kick.Close()))
	})
	return r
}

func (r *runtimeRig) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *runtimeRig) memfd(n int64) *os.File {
	r.t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	r.ok(err)
	f := os.NewFile(uintptr(fd), "test")
	r.ok(f.Truncate(n))
	return f
}

// start starts the queue.
func (r *runtimeRig) start(again bool) {
	r.t.Helper()
	call, err := eventfd.New()
	r.ok(err)
	var fds [3]int
	for i, f := range []*os.File{r.kick, call, r.inflight} {
		fds[i], err = dup(f)
		r.ok(err)
	}
	r.ok(call.Close())
	q := pluginrpc.QueueStart{Size: 16, Kick: fds[0], Call: fds[1], Inflight: fds[2], Recover: again}
	q.DescArea, q.DriverArea, q.DeviceArea = r.drv.Areas()
	_, err = r.rt.StartQueue(r.t.Context(), q)
	r.ok(err)
}

// send makes a chain of one byte available and kicks, whether the device wants that or not.
func (r *runtimeRig) send() {
	r.t.Helper()
	b, err := r.arena.Buffer(1)
	r.ok(err)
	r.drv.Add([]driver.Buffer{b}, nil)
	r.drv.Publish()
	fd, err := dup(r.kick)
	r.ok(err)
	r.ok(errors.Join(eventfd.Signal(fd), unix.Close(fd)))
}

// wantUsed waits until n chains are used.
func (r *runtimeRig) wantUsed(n uint16) {
	r.t.Helper()
	for start := time.Now(); r.drv.Raw().UsedIdx() != n; time.Sleep(time.Millisecond) {
		if time.Since(start) > patience/4 {
			r.t.Fatalf("%d chains used, want %d", r.drv.Raw().UsedIdx(), n)
		}
	}
}

// A Pause whose drain takes too long has told the queue to stop all the same: Resume must bring it back.
func TestResumeBringsBackWhatAFailedPauseStopped(t *testing.T) {
	t.Parallel()
	dev := keeper{kept: make(chan *virtq.Chain, 1)}
	r := newRuntimeRig(t, dev)
	r.start(false)
	r.send()
	c := <-dev.kept
	q := r.rt.queues[0].q
	inFlight := func(name string, call func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s = %v: want to be told of a chain in flight", name, err)
		}
	}
	inFlight("Pause", r.rt.Pause)
	<-q.served
	inFlight("Resume", r.rt.Resume)
	r.ok(q.Finish(c))
	r.ok(r.rt.Resume(t.Context()))
	r.send()
	select {
	case c := <-dev.kept:
		r.ok(r.rt.queues[0].q.Finish(c))
	case <-time.After(patience / 4):
		t.Fatal("the queue serves nothing after Resume")
	}
	r.wantUsed(2)
}

// lateRunner pops nothing in its first run.
type lateRunner struct {
	oneQueue
	runs *int
}

func (d lateRunner) RunQueue(ctx context.Context, q *Queue) error {
	if *d.runs++; *d.runs == 1 {
		<-ctx.Done()
		return nil
	}
	return Serve(ctx, q, func(context.Context, *Queue, *virtq.Chain) error { return nil })
}

// A device that is paused before it took what a former instance left finds that after Resume.
func TestPauseKeepsWhatAFormerInstanceLeft(t *testing.T) {
	t.Parallel()
	r := newRuntimeRig(t, lateRunner{runs: new(int)})
	region, err := mapInflight(int(r.inflight.Fd()), 16)
	r.ok(err)
	cfg := virtq.Config{Size: 16, Features: virtio.FVersion1, Inflight: region}
	cfg.DescArea, cfg.DriverArea, cfg.DeviceArea = r.drv.Areas()
	former, err := virtq.Activate(r.mem, cfg)
	r.ok(err)
	for range 3 {
		r.send()
		if _, ok, err := former.Pop(); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	r.ok(unix.Munmap(region))
	r.start(true)
	r.ok(r.rt.Pause(t.Context()))
	r.ok(r.rt.Resume(t.Context()))
	r.wantUsed(3)
	r.send()
	r.wantUsed(4)
}
