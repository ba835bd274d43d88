package pluginrpc_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/virtplug/virtplug/sdk/eventfd"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func TestARealPluginServesAQueue(t *testing.T) {
	t.Parallel()
	for _, f := range []virtio.Features{
		virtio.FVersion1, virtio.FVersion1 | virtio.FEventIdx, virtio.FVersion1 | virtio.FEventIdx | virtio.FIndirectDesc | 1<<5,
	} {
		t.Run(f.String(), func(t *testing.T) {
			t.Parallel()
			in, g := start(t), newGuest(t, f)
			d, err := in.Describe(t.Context())
			if err != nil || d.GetName() != "mirror" || d.GetVersion() != "1.2.3" || d.GetDeviceId() != uint32(virtio.IDEntropy) {
				t.Fatalf("Describe: %v, %v", d, err)
			}
			o := in.configure(t, `{}`)
			if want := virtio.FVersion1 | virtio.FEventIdx | virtio.FIndirectDesc | 1<<5; o.Features != want || len(o.QueueSizes) != 2 || o.QueueSizes[0] != 64 || len(o.Config) != 8 {
				t.Fatalf("offer %+v", o)
			}
			g.attach(t, in)
			for range 20 {
				g.roundTrip(t, "abc", "cba")
			}
			st, err := in.Statistics(t.Context())
			if err != nil || len(st.Queues) != 2 || !st.Queues[0].Running || st.Queues[0].Completed != 20 || st.Queues[0].ReadableBytes != 60 ||
				st.Counters["features"] != uint64(f) {
				t.Fatalf("statistics %+v, %v", st, err)
			}
			q, err := in.StopQueue(t.Context(), 0)
			if err != nil || q != (pluginrpc.QueueState{NextAvail: 20, UsedIndex: 20}) {
				t.Fatalf("StopQueue: %+v, %v", q, err)
			}
			if again, err := in.StopQueue(t.Context(), 0); err != nil || again != q {
				t.Errorf("StopQueue again: %+v, %v", again, err)
			}
			start := g.queue()
			start.NextAvail = q.NextAvail
			if _, err := in.StartQueue(t.Context(), start); err != nil {
				t.Fatal(err)
			}
			g.roundTrip(t, "xy", "yx")
			if err := in.Health(t.Context()); err != nil {
				t.Error(err)
			}
			if st, err := in.Statistics(t.Context()); err != nil || st.Queues[0].Completed != 21 {
				t.Errorf("counters went back: %+v, %v", st, err)
			}
		})
	}
}

func TestPauseAndResumeLoseNothing(t *testing.T) {
	t.Parallel()
	in, g := start(t), newGuest(t, virtio.FVersion1|virtio.FEventIdx)
	in.configure(t, `{}`)
	g.attach(t, in)
	g.roundTrip(t, "ab", "ba")
	for range 2 {
		if err := in.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	read := g.send(t, "while paused")
	if st, err := in.Statistics(t.Context()); err != nil || st.Queues[0].Running {
		t.Fatalf("runs while paused: %+v, %v", st, err)
	}
	if _, err := in.StartQueue(t.Context(), g.queue()); !errors.Is(err, pluginrpc.ErrState) {
		t.Errorf("StartQueue while paused: %v: want ErrState", err)
	}
	if g.q.HasUsed() {
		t.Fatal("served while paused")
	}
	for range 2 {
		if err := in.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	g.wait(t, 1)
	if read() != "desuap elihw" {
		t.Errorf("got %q", read())
	}
	// A queue stopped while paused does not come back.
	if err := in.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if q, err := in.StopQueue(t.Context(), 0); err != nil || q.NextAvail != 2 {
		t.Fatalf("%+v, %v", q, err)
	}
	if err := in.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st, err := in.Statistics(t.Context()); err != nil || st.Queues[0].Running {
		t.Errorf("came back: %+v, %v", st, err)
	}
}

func TestOutOfOrderIsFailedPrecondition(t *testing.T) {
	t.Parallel()
	in, g := start(t), newGuest(t, virtio.FVersion1)
	ctx := t.Context()
	want := func(what string, err, sentinel error) {
		t.Helper()
		if !errors.Is(err, sentinel) {
			t.Errorf("%s: %v: want %v", what, err, sentinel)
		}
	}
	refused := func(what string, f func() error) { t.Helper(); want(what, f(), pluginrpc.ErrState) }
	setFeatures := func() error { _, err := in.SetFeatures(ctx, virtio.FVersion1); return err }
	startQueue := func() error { _, err := in.StartQueue(ctx, g.queue()); return err }
	attach := func() error { return in.AttachMemory(ctx, g.regions) }
	refused("SetFeatures first", setFeatures)
	refused("AttachMemory first", attach)
	refused("StartQueue first", startQueue)
	refused("StopQueue first", func() error { _, err := in.StopQueue(ctx, 0); return err })
	refused("ReadConfig first", func() error { _, err := in.ReadConfig(ctx); return err })
	refused("Reset first", func() error { return in.Reset(ctx) })
	refused("Pause first", func() error { return in.Pause(ctx) })
	refused("Command first", func() error { _, err := in.Command(ctx, "grow", []byte(`{"by":1}`)); return err })
	want("Health first", in.Health(ctx), nil)

	in.configure(t, `{}`)
	refused("Configure twice", func() error {
		_, err := in.Configure(ctx, pluginrpc.Settings{DeviceName: "m0", ConfigJSON: []byte(`{}`)})
		return err
	})
	refused("StartQueue without features", startQueue)
	_, err := in.SetFeatures(ctx, virtio.FVersion1|1<<60)
	want("features that were not offered", err, pluginrpc.ErrInvalid)
	want("SetFeatures", setFeatures(), nil)
	refused("StartQueue without memory", startQueue)
	backwards := []guestmem.MapRegion{g.regions[1], g.regions[0]}
	want("memory not ascending", in.AttachMemory(ctx, backwards), pluginrpc.ErrInvalid)
	tooLong := []guestmem.MapRegion{g.regions[0]}
	tooLong[0].Size = 1 << 30
	want("memory beyond its file", in.AttachMemory(ctx, tooLong), pluginrpc.ErrInvalid)
	want("AttachMemory", attach(), nil)
	want("AttachMemory again", attach(), nil)
	for what, change := range map[string]func(q *pluginrpc.QueueStart){
		"no such queue":             func(q *pluginrpc.QueueStart) { q.Index = 2 },
		"no power of two":           func(q *pluginrpc.QueueStart) { q.Size = 7 },
		"larger than offered":       func(q *pluginrpc.QueueStart) { q.Size = 128 },
		"ring outside memory":       func(q *pluginrpc.QueueStart) { q.DescArea = 0x900000 },
		"ring misaligned":           func(q *pluginrpc.QueueStart) { q.DescArea++ },
		"in-flight region too tiny": func(q *pluginrpc.QueueStart) { q.Size = 64 },
	} {
		q := g.queue()
		change(&q)
		_, err := in.StartQueue(ctx, q)
		want(what, err, pluginrpc.ErrInvalid)
	}
	want("StartQueue", startQueue(), nil)
	refused("StartQueue of a running queue", startQueue)
	refused("SetFeatures while a queue runs", setFeatures)
	refused("AttachMemory while a queue runs", attach)
	g.roundTrip(t, "ok", "ko")
	want("Reset", in.Reset(ctx), nil)
	refused("StartQueue after Reset", startQueue)
	want("SetFeatures after Reset", setFeatures(), nil)
	if st, err := in.Statistics(ctx); err != nil || st.Counters["resets"] != 1 {
		t.Errorf("the device was not told: %+v, %v", st, err)
	}
	want("StartQueue after Reset and SetFeatures", startQueue(), nil)
}

func TestABrokenRingIsReportedAndServesNothingUntilReset(t *testing.T) {
	t.Parallel()
	in, g := start(t), newGuest(t, virtio.FVersion1)
	in.configure(t, `{}`)
	events, err := in.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g.attach(t, in)
	g.q.Raw().SetAvailIdx(1000)
	if err := eventfd.Signal(int(g.kick.Fd())); err != nil {
		t.Fatal(err)
	}
	e := nextError(t, events)
	if !e.NeedsReset || e.Queue != 0 || e.Message == "" {
		t.Errorf("event %+v", e)
	}
	q, err := in.StopQueue(t.Context(), 0)
	if err != nil || q.Broken == "" {
		t.Errorf("StopQueue: %+v, %v", q, err)
	}
	if _, err := in.StartQueue(t.Context(), g.queue()); !errors.Is(err, pluginrpc.ErrState) {
		t.Errorf("StartQueue: %v: want ErrState", err)
	}
	if err := in.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	fresh := newGuest(t, virtio.FVersion1)
	fresh.attach(t, in)
	fresh.roundTrip(t, "ab", "ba")
}

func nextError(t *testing.T, events <-chan pluginrpc.Event) pluginrpc.DeviceError {
	t.Helper()
	for {
		switch e := next(t, events).(type) {
		case pluginrpc.DeviceError:
			return e
		case nil:
			t.Fatal("no error came")
		}
	}
}

func next(t *testing.T, events <-chan pluginrpc.Event) pluginrpc.Event {
	t.Helper()
	select {
	case e := <-events:
		return e
	case <-time.After(patience):
		t.Fatal("no event")
		return nil
	}
}

func TestAHeldChainSurvivesTheProcess(t *testing.T) {
	t.Parallel()
	g := newGuest(t, virtio.FVersion1|virtio.FEventIdx)
	in := startIn(t, t.TempDir())
	in.configure(t, `{"hold":true}`)
	g.attach(t, in)
	read1, read2 := g.send(t, "one"), g.send(t, "two")
	eventually(t, "two held chains", func() bool {
		st, err := in.Statistics(t.Context())
		return err == nil && st.Counters["held"] == 2
	})
	// A drain that cannot end is bounded by the caller's deadline.
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := in.StopQueue(ctx, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("StopQueue: %v: want DeadlineExceeded", err)
	}
	if err := in.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process's end", in.host.Exited)

	again := start(t)
	again.configure(t, `{}`)
	if _, err := again.SetFeatures(t.Context(), g.features); err != nil {
		t.Fatal(err)
	}
	if err := again.AttachMemory(t.Context(), g.regions); err != nil {
		t.Fatal(err)
	}
	q := g.queue()
	q.Recover = true
	if n, err := again.StartQueue(t.Context(), q); err != nil || n != 2 {
		t.Fatalf("StartQueue: %d resubmitted, %v: want 2", n, err)
	}
	g.wait(t, 2)
	if read1() != "eno" || read2() != "owt" {
		t.Errorf("got %q, %q", read1(), read2())
	}
}
