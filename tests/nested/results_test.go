package nested_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// event is a line of `go tool test2json`; without -t it tells no times.
type event struct {
	Action, Test, Output string
	Elapsed              float64
}

// inner is one inner test and those in it.
type inner struct {
	name string
	// result is "pass", "fail", "skip", or "" while it runs.
	result  string
	elapsed float64
	output  strings.Builder
	subs    []*inner
}

// results collects what an inner run prints.
type results struct {
	tests map[string]*inner
	// rest is what belongs to no test.
	rest strings.Builder
	// exit is the inner run's exit status; nil until it has ended.
	exit *int
}

func newResults() *results { return &results{tests: map[string]*inner{}} }

// follow reads an inner run's output until its end, and calls ended for each test that has no test above it when it has ended.
func (r *results) follow(output io.Reader, ended func(*inner)) error {
	convert := exec.Command("go", "tool", "test2json", "-t") //nolint:noctx // it ends with its input
	in, err := convert.StdinPipe()
	if err != nil {
		return err
	}
	events, err := convert.StdoutPipe()
	if err != nil {
		return err
	}
	if err := convert.Start(); err != nil {
		return fmt.Errorf("go tool test2json: %w", err)
	}
	copied := make(chan error, 1)
	go func() {
		copied <- errors.Join(r.split(output, in), in.Close())
	}()
	d := json.NewDecoder(events)
	for {
		var e event
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			_, _ = io.Copy(io.Discard, events) // so that it ends
			return errors.Join(fmt.Errorf("go tool test2json: %w", err), <-copied, convert.Wait())
		}
		if t := r.take(e); t != nil {
			ended(t)
		}
	}
	return errors.Join(<-copied, convert.Wait())
}

// split passes an inner run's output on, without the line that is ours.
func (r *results) split(output io.Reader, to io.Writer) error {
	s := bufio.NewReader(output)
	for {
		line, err := s.ReadString('\n')
		if status, ours := strings.CutPrefix(strings.TrimSpace(line), exitMark); ours {
			n, err := strconv.Atoi(status)
			if err != nil {
				return fmt.Errorf("inner run: exit status: %w", err)
			}
			r.exit = &n
			line = ""
		}
		if _, err := io.WriteString(to, line); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// take notes an event, and returns the test that it ends if there is none above it.
func (r *results) take(e event) *inner {
	if e.Test == "" {
		r.rest.WriteString(e.Output)
		return nil
	}
	t := r.tests[e.Test]
	if t == nil {
		t = &inner{name: e.Test}
		r.tests[e.Test] = t
		if above, name, ok := cutLast(e.Test); ok && r.tests[above] != nil {
			t.name = name
			r.tests[above].subs = append(r.tests[above].subs, t)
		}
	}
	switch e.Action {
	case "output":
		t.output.WriteString(e.Output)
	case "pass", "fail", "skip":
		t.result, t.elapsed = e.Action, e.Elapsed
		if !strings.Contains(e.Test, "/") {
			return t
		}
	}
	return nil
}

// failed tells whether a test failed.
func (r *results) failed() bool {
	for _, t := range r.tests {
		if t.result == "fail" {
			return true
		}
	}
	return false
}

// running are the tests that have begun and not ended.
func (r *results) running() []string {
	var names []string
	for name, t := range r.tests {
		if t.result == "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func cutLast(name string) (above, last string, ok bool) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "", name, false
	}
	return name[:i], name[i+1:], true
}

// What an inner run prints becomes what this package reports; an inner run that is cut short is never a good one.
func TestInnerRunsAreJudged(t *testing.T) {
	t.Parallel()
	const (
		run    = "\x16=== RUN   TestA\n\x16=== RUN   TestA/x_y\n"
		output = "    a_test.go:1: why\n"
		passed = "\x16--- PASS: TestA/x_y (1.50s)\n\x16--- PASS: TestA (2.00s)\n"
		failed = output + "\x16--- FAIL: TestA/x_y (1.50s)\n\x16--- FAIL: TestA (2.00s)\n"
		end0   = "\x16PASS\n" + exitMark + "0\n"
		end1   = "\x16FAIL\n" + exitMark + "1\n"
	)
	for _, c := range []struct{ name, output, want, wrong string }{
		{"passed", run + passed + end0, "TestA pass 2.0: x_y pass 1.5", ""},
		{"failed", run + failed + end1, "TestA fail 2.0: x_y fail 1.5", ""},
		{"skipped", "\x16=== RUN   TestA\n" + output + "\x16--- SKIP: TestA (0.00s)\n" + end0, "TestA skip 0.0:", ""},
		{"exit status and no failed test", run + passed + end1, "TestA pass 2.0: x_y pass 1.5", "exit status 1"},
		{"panicked", run + "panic: x\n\ngoroutine 1 [running]:\n" + exitMark + "2\n", "", "TestA has not ended"},
		{"level 1 was lost", run + output, "", "has not come to its end"},
		{"lost in a line", run + passed + "PA", "", "has not come to its end"},
		{"nothing", "", "", "has not come to its end"},
		{"no tests", "testing: warning: no tests to run\nPASS\n" + exitMark + "0\n", "", "no test"},
		{"a program that does not start", "/parts/kvm.test: not found\n" + exitMark + "127\n", "", "no test"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newResults()
			var got []string
			if err := r.follow(strings.NewReader(c.output), func(i *inner) {
				text := fmt.Sprintf("%s %s %.1f:", i.name, i.result, i.elapsed)
				for _, s := range i.subs {
					text += fmt.Sprintf(" %s %s %.1f", s.name, s.result, s.elapsed)
				}
				got = append(got, text)
			}); err != nil {
				t.Fatal(err)
			}
			if s := strings.Join(got, "; "); !strings.Contains(s, c.want) || (c.want == "" && s != "" && !strings.Contains(s, "fail")) {
				t.Errorf("tests: %q, want %q", s, c.want)
			}
			if wrong := strings.Join(r.verdict("level 1's words"), "\n"); !strings.Contains(wrong, c.wrong) || (c.wrong == "") != (wrong == "") {
				t.Errorf("verdict: %q, want %q", wrong, c.wrong)
			}
			if strings.HasPrefix(c.name, "failed") && !strings.Contains(r.tests["TestA/x_y"].output.String()+r.tests["TestA"].output.String(), "a_test.go:1: why") {
				t.Error("the output of a failed test is lost")
			}
		})
	}
}
