package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

func TestEventsAreCounted(t *testing.T) {
	t.Parallel()
	const p = `"Package":"github.com/virtplug/virtplug/sdk/x"`
	for _, c := range []struct {
		name, events    string
		passed, failed  int
		skipped, output string
	}{
		{"passed", `{"Action":"pass",` + p + `,"Test":"TestA"}{"Action":"pass",` + p + `}`, 1, 0, "", "ok   sdk/x"},
		{"failed", `{"Action":"output",` + p + `,"Test":"TestA","Output":"why\n"}{"Action":"fail",` + p + `,"Test":"TestA"}{"Action":"fail",` + p + `}`, 0, 1, "", "why"},
		{"skipped", `{"Action":"output",` + p + `,"Test":"TestA","Output":"    a_test.go:1: no kernel\n"}{"Action":"skip",` + p + `,"Test":"TestA"}`, 0, 0, "sdk/x.TestA: a_test.go:1: no kernel", ""},
		{"uninteresting seed", `{"Action":"skip",` + p + `,"Test":"FuzzA/seed#1"}`, 0, 0, "", ""},
		{"does not build", `{"ImportPath":"x","Action":"build-output","Output":"x.go:1: syntax error\n"}{"Action":"fail",` + p + `,"FailedBuild":"x"}`, 0, 1, "", "syntax error"},
		{"panicked", `{"Action":"pass",` + p + `,"Test":"TestA"}{"Action":"output",` + p + `,"Output":"panic: x\n"}{"Action":"fail",` + p + `}`, 1, 1, "", "panic: x"},
		{"no tests", `{"Action":"skip",` + p + `}`, 0, 0, "", ""},
		{"nothing", ``, 0, 0, "", ""},
	} {
		var w bytes.Buffer
		r, err := count(strings.NewReader(c.events), &w)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if r.passed != c.passed || r.failed != c.failed || strings.Join(r.skipped, ",") != c.skipped || !strings.Contains(w.String(), c.output) {
			t.Errorf("%s: %+v, printed %q", c.name, r, w.String())
		}
	}
	if _, err := count(strings.NewReader(`{"Action":"pa`), io.Discard); err == nil {
		t.Error("a cut stream: no error")
	}
}

func TestALevelWithoutPackagesRunsNothing(t *testing.T) {
	t.Parallel()
	r := level{name: "x", has: func(string) bool { return false }}.run(t.Context(), io.Discard, []string{"sdk"})
	if r.passed+r.failed != 0 {
		t.Errorf("got %+v", r)
	}
}

func TestEveryPackageIsInALevel(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{".", "sdk", "sdk/virtq", "core/device", "core/pluginhost", "cmd/virtplug", "tests/guest", "tests/kvm", "tests/kvm/parts", "tests/nested", "tests/session", "plugins/block", "tools/testlevels", "new/thing"} {
		n := 0
		for _, l := range levels() {
			if l.name != "race" && l.has(dir) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s: in %d levels, want 1", dir, n)
		}
	}
}

func TestUnknownLevel(t *testing.T) {
	t.Parallel()
	if _, err := choose([]string{"unti"}); err == nil {
		t.Error("no error")
	}
	if got, err := choose([]string{"guest", "unit"}); err != nil || len(got) != 2 || got[0].name != "unit" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestWhatDidNotRunIsTold(t *testing.T) {
	t.Parallel()
	why := []string{"tests/kvm.TestBare: no /dev/kvm"}
	for _, c := range []struct {
		name   string
		r      result
		ci     bool
		failed int
		note   string
	}{
		{"all well", result{passed: 3}, true, 0, ""},
		{"nothing ran, and nothing says why", result{}, false, 1, ""},
		{"all skipped", result{skipped: why}, false, 0, ": NOT RUN"},
		{"all skipped in CI", result{skipped: why}, true, 2, ""},
		{"one skipped", result{passed: 1, skipped: why}, false, 0, ""},
		{"one skipped in CI", result{passed: 1, skipped: why}, true, 1, ""},
	} {
		var w bytes.Buffer
		note := c.r.judge(&w, "machine", c.ci)
		if note != c.note || c.r.failed != c.failed {
			t.Errorf("%s: note %q, %d failed, want %q, %d", c.name, note, c.r.failed, c.note, c.failed)
		}
		if said := strings.Contains(w.String(), "level machine"); said != (c.note != "" || c.failed > 0) {
			t.Errorf("%s: printed %q", c.name, w.String())
		}
	}
}
