package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// result counts tests. A test with subtests counts as one more.
type result struct {
	passed, failed int
	// skipped names each skipped test and why.
	skipped []string
	summary string
	// summaries are those of the levels added.
	summaries []string
}

func (r *result) add(o result) {
	r.passed += o.passed
	r.failed += o.failed
	r.skipped = append(r.skipped, o.skipped...)
	if o.summary != "" {
		r.summaries = append(r.summaries, o.summary)
	}
}

// event is a line of `go test -json` (go doc test2json) or of a build (go help buildjson).
type event struct {
	Action, Package, Test, Output, ImportPath string
	FailedBuild                               string
	Elapsed                                   float64
}

// key names a test or, with an empty test, a package.
type key struct{ pkg, test string }

// count reads events until the end and prints the output of what failed, one line per tested package, and slow tests.
func count(r io.Reader, w io.Writer) (result, error) {
	var res result
	output := map[key][]string{}
	failedIn := map[string]bool{}
	d := json.NewDecoder(r)
	for {
		var e event
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			return res, nil
		} else if err != nil {
			return res, fmt.Errorf("read test events: %w", err)
		}
		k := key{e.Package, e.Test}
		switch e.Action {
		case "build-output":
			fmt.Fprint(w, e.Output)
		case "output":
			output[k] = append(output[k], e.Output)
		case "pass", "fail", "skip":
			if e.Test == "" {
				res.failed += endPackage(w, e, output[k], failedIn[e.Package])
			} else {
				res.endTest(w, e, output[k])
				failedIn[e.Package] = failedIn[e.Package] || e.Action == "fail"
			}
			delete(output, k)
		}
	}
}

// endTest counts a test that ended.
func (r *result) endTest(w io.Writer, e event, output []string) {
	name := strings.TrimPrefix(e.Package, module+"/") + "." + e.Test
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
		fmt.Fprintf(w, "FAIL %s (%.1f s)\n%s", name, e.Elapsed, strings.Join(output, ""))
	case "skip":
		if strings.HasPrefix(e.Test, "Fuzz") {
			return // an input that a fuzz target is not interested in
		}
		r.skipped = append(r.skipped, name+": "+skipReason(output))
	}
}

// endPackage prints how a package ended and returns 1 if it failed although none of its tests did: it did not build, it
// panicked outside a test, it timed out.
func endPackage(w io.Writer, e event, output []string, testFailed bool) int {
	name := strings.TrimPrefix(e.Package, module+"/")
	switch e.Action {
	case "pass":
		fmt.Fprintf(w, "ok   %s (%.1f s)\n", name, e.Elapsed)
	case "fail":
		fmt.Fprintf(w, "FAIL %s (%.1f s)\n", name, e.Elapsed)
		if !testFailed {
			fmt.Fprint(w, strings.Join(output, ""))
			return 1
		}
	}
	return 0
}

// skipReason is what t.Skip said, without the place.
func skipReason(output []string) string {
	lines := slices.DeleteFunc(slices.Clone(output), func(s string) bool {
		return strings.HasPrefix(strings.TrimSpace(s), "=== ") || strings.HasPrefix(strings.TrimSpace(s), "--- ")
	})
	return strings.TrimSpace(strings.Join(lines, ""))
}
