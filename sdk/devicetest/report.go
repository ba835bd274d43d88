package devicetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Options say how to check a device.
type Options struct {
	// Settings are the device's, as in a configuration: {"path": "/tmp/disk.img"}. Files are opened as the schema says,
	// once for all instances.
	Settings map[string]any
	// Keeps tells which queues may keep chains; nil: those that the specification gives to the device's type for input.
	Keeps func(queue int) bool
	// Skip names cases that are not run, with the reason.
	Skip map[string]string
	// Patience is how long one call or one chain may take; 0: 10 s.
	Patience time.Duration
}

const (
	defaultPatience = 10 * time.Second
	// pollEvery is how often the used ring is looked at while nothing comes.
	pollEvery = 50 * time.Microsecond
	// quiet is how long nothing must happen for chains to count as kept, or for the proof that a stopped queue stays so:
	// arbitrary, a device that answers later is only given less credit.
	quiet = 30 * time.Millisecond
)

// Status is what came of a case.
type Status int

// What comes of a case.
const (
	Pass Status = iota
	Fail
	Skip
)

// String is "pass", "fail" or "skip".
func (s Status) String() string { return [...]string{"pass", "fail", "skip"}[s] }

// Case is one rule that every device obeys.
type Case struct {
	// Name is "group/what": it does not change between versions.
	Name string
	// Source is where the rule stands: a section of VIRTIO 1.2, or of docs/plugin-protocol.md.
	Source string

	run func(t *runner)
}

// Result is what came of one case.
type Result struct {
	Case   Case
	Status Status
	// Reason is why it failed or was skipped: one or more lines.
	Reason string
	// Log is the end of what the instances logged, if it failed.
	Log      string
	Duration time.Duration
}

// Run checks p in this process, each case as a subtest of t.
func Run[C any](t *testing.T, p sdk.Plugin[C], o Options) {
	t.Helper()
	RunTarget(t, InProcess(p), o)
}

// RunTarget is Run for instances that open makes.
func RunTarget(t *testing.T, open Opener, o Options) {
	t.Helper()
	s, err := newSuite(t.Context(), open, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.prepared.close(); err != nil {
			t.Error(err)
		}
	})
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) {
			switch r := s.run(t.Context(), c); r.Status {
			case Fail:
				t.Errorf("%s\n(rule: %s)\n%s", r.Reason, c.Source, r.Log)
			case Skip:
				t.Log("does not apply: " + r.Reason) // not t.Skip: nothing is lacking
			case Pass:
			}
		})
	}
}

// Check runs all cases against instances that open makes, one after the other, and tells each result as it comes. It fails
// only if it cannot begin, or if ctx ends.
func Check(ctx context.Context, open Opener, o Options, tell func(Result)) error {
	s, err := newSuite(ctx, open, o)
	if err != nil {
		return err
	}
	for _, c := range Cases() {
		if ctx.Err() != nil {
			break
		}
		tell(s.run(ctx, c))
	}
	return errors.Join(ctx.Err(), s.prepared.close())
}

// suite is what all cases of a run share.
type suite struct {
	open     Opener
	o        Options
	desc     *pluginv1.DescribeResponse
	prepared *prepared
}

func newSuite(ctx context.Context, open Opener, o Options) (*suite, error) {
	if o.Patience == 0 {
		o.Patience = defaultPatience
	}
	target, err := open(ctx, hclog.NewNullLogger())
	if err != nil {
		return nil, err
	}
	desc, err := target.Describe(ctx)
	if err := errors.Join(err, target.Close()); err != nil {
		return nil, fmt.Errorf("describe: %w", err)
	}
	if o.Keeps == nil {
		o.Keeps = func(queue int) bool { return keeps(virtio.DeviceID(desc.GetDeviceId()), queue) }
	}
	p, err := prepare(desc.GetSchema(), o.Settings)
	if err != nil {
		return nil, err
	}
	return &suite{open: open, o: o, desc: desc, prepared: p}, nil
}

// keeps tells whether a queue of a device type is for input, or for events, so that its chains wait for them.
func keeps(id virtio.DeviceID, queue int) bool {
	switch id { //nolint:exhaustive // the others have queues for requests only
	case virtio.IDNet, virtio.IDConsole: // receiveq1, transmitq1, … (5.1.2, 5.3.2)
		return queue%2 == 0
	case virtio.IDSocket: // rx, tx, event (5.10.2)
		return queue != 1
	case virtio.IDSCSI: // controlq, eventq, request queues (5.6.2)
		return queue == 1
	case virtio.IDInput: // eventq, statusq (5.8.2)
		return queue == 0
	case virtio.IDBalloon: // inflateq, deflateq, statsq (5.5.2)
		return queue == 2
	case virtio.IDSound: // controlq, eventq, txq, rxq (5.14.2)
		return queue == 1 || queue == 3
	case virtio.IDIOMMU, virtio.IDGPIO, virtio.IDBluetooth: // requestq, eventq (5.13.2, 5.18.2)
		return queue == 1
	}
	return false
}

// stopRun ends a case by panic; what there is to say was noted.
type stopRun struct{}

func (s *suite) run(ctx context.Context, c Case) (res Result) {
	res.Case = c
	if why, skip := s.o.Skip[c.Name]; skip {
		res.Status, res.Reason = Skip, why
		return res
	}
	begin := time.Now()
	t := &runner{suite: s, ctx: ctx}
	t.logger = hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: &t.log})
	t.protect(func() { c.run(t) })
	for _, f := range slices.Backward(t.cleanups) {
		t.protect(f)
	}
	res.Duration = time.Since(begin)
	switch {
	case len(t.errs) > 0:
		res.Status, res.Reason, res.Log = Fail, strings.Join(t.errs, "\n"), t.log.String()
	case t.skipped != "":
		res.Status, res.Reason = Skip, t.skipped
	}
	return res
}

// runner is one run of one case, on one goroutine: what testing.T is for a test, with what the cases share.
type runner struct {
	*suite
	ctx      context.Context //nolint:containedctx // of this run
	errs     []string
	skipped  string
	cleanups []func()
	log      tail
	logger   hclog.Logger
	// region is the state region that instances are configured with; nil: none.
	region *os.File
}

func (t *runner) protect(f func()) {
	defer func() {
		switch p := recover(); p {
		case nil, stopRun{}:
		default:
			panic(p)
		}
	}()
	f()
}

// Errorf notes a failure; the case goes on.
func (t *runner) Errorf(format string, args ...any) {
	const enough = 8 // one broken rule fails in many ways
	if len(t.errs) < enough {
		t.errs = append(t.errs, fmt.Errorf(format, args...).Error())
	}
}

// Fatalf notes a failure and ends the case.
func (t *runner) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	panic(stopRun{})
}

// Skipf ends the case: it does not apply to the device.
func (t *runner) Skipf(format string, args ...any) {
	t.skipped = fmt.Sprintf(format, args...)
	panic(stopRun{})
}

// Cleanup runs f after the case; the last one first.
func (t *runner) Cleanup(f func()) { t.cleanups = append(t.cleanups, f) }

// must ends the case if err is one.
func (t *runner) must(what string, err error) {
	if err != nil {
		t.Fatalf("%s: %w", what, err)
	}
}

// refused wants a call to fail with want and nothing worse.
func (t *runner) refused(what string, err, want error) {
	switch {
	case err == nil:
		t.Errorf("%s: accepted: want %v", what, want)
	case !errors.Is(err, want):
		t.Errorf("%s: %w: want %v", what, err, want)
	}
}

// limited is a context for one call.
func (t *runner) limited() (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.ctx, t.o.Patience)
}

// eventually polls until ok and tells whether that came in time.
func (t *runner) eventually(ok func() bool) bool {
	for end := time.Now().Add(t.o.Patience); !ok(); time.Sleep(pollEvery) {
		if time.Now().After(end) || t.ctx.Err() != nil {
			return false
		}
	}
	return true
}

// opened makes an instance that is not configured.
func (t *runner) opened() Target {
	target, err := t.open(t.ctx, t.logger)
	t.must("start an instance", err)
	t.Cleanup(func() {
		if err := target.Close(); err != nil {
			t.Errorf("close: %w", err)
		}
		if p, ok := target.(*program); ok && len(t.errs) > 0 {
			_, _ = t.log.Write([]byte(p.lastWords()))
		}
	})
	return target
}

// configure configures target.
func (t *runner) configure(target Target) pluginrpc.Offer {
	ctx, cancel := t.limited()
	defer cancel()
	s := t.prepared.settings
	if t.region != nil {
		s.State = int(t.region.Fd())
	}
	offer, err := target.Configure(ctx, s)
	t.must("Configure", err)
	return offer
}
