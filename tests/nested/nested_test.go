package nested_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"
)

// innerRun is -test.run of the inner tests, unless VIRTPLUG_NESTED_RUN says otherwise.
const innerRun = "^Test(Bare|Linux)"

// innerSkip is -test.skip: tests of the net plugin with a driver of our own, which any /dev/kvm can run. Here they would only take long.
const innerSkip = "^TestBareNet(LargeFrames|Drivers|HostileDriver)$"

func TestNested(t *testing.T) { //nolint:paralleltest // one emulator at a time is enough for a host
	if err := needs(); err != nil {
		t.Skipf("MISSING: %v", err)
	}
	run, skip := innerRun, innerSkip
	if s := os.Getenv("VIRTPLUG_NESTED_RUN"); s != "" {
		run, skip = s, "^$"
	}
	ctx, cancel := context.WithTimeout(t.Context(), outerLimit)
	defer cancel()
	dir, start := t.TempDir(), time.Now()
	image, err := buildImage(ctx, dir, run, skip)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("built in %.1f s", time.Since(start).Seconds())
	q, err := image.start(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	r := newResults()
	err = r.follow(q.tests, func(i *inner) { report(t, i) })
	if err != nil {
		cancel() // what nobody reads any more does not end
		t.Error(err)
	}
	if err := q.wait(); err != nil {
		t.Error(err)
	}
	for _, wrong := range r.verdict(q.said()) {
		t.Error(wrong)
	}
	t.Logf("%.1f s in all", time.Since(start).Seconds())
}

// report makes an inner test a subtest of this one.
func report(t *testing.T, i *inner) {
	t.Helper()
	t.Run(i.name, func(t *testing.T) {
		for _, sub := range i.subs {
			report(t, sub)
		}
		switch i.result {
		case "pass":
			t.Logf("%.1f s inside", i.elapsed)
		case "skip":
			t.Skip(i.output.String())
		default:
			t.Errorf("inside, after %.1f s:\n%s", i.elapsed, i.output.String())
		}
	})
}

// verdict tells what is wrong with an inner run as a whole, besides tests that failed. said is what else level 1 printed.
func (r *results) verdict(said string) []string {
	var wrong []string
	for _, name := range r.running() {
		wrong = append(wrong, fmt.Sprintf("%s has not ended:\n%s", name, r.tests[name].output.String()))
	}
	switch {
	case r.exit == nil:
		wrong = append(wrong, fmt.Sprintf("the inner run has not come to its end; it said at last:\n%s\nlevel 1 said:\n%s", r.rest.String(), said))
	case len(r.tests) == 0:
		wrong = append(wrong, fmt.Sprintf("the inner run has run no test:\n%s\nlevel 1 said:\n%s", r.rest.String(), said))
	case *r.exit != 0 && !r.failed():
		wrong = append(wrong, fmt.Sprintf("the inner run has ended with exit status %d:\n%s\nlevel 1 said:\n%s", *r.exit, r.rest.String(), said))
	}
	return wrong
}
