// Command testlevels runs the tests by level (design: "What is tested where") and counts them. In CI (CI=true), which has all that
// the tests need, a skipped test is a failure, and so is a level that ran no test. Elsewhere a level all of whose tests were skipped
// is told as not run.
//
//	go run ./tools/testlevels [-o FILE] [LEVEL…]    levels: unit race process guest machine nested; none: all
//
// The last line printed is "N passed, N failed"; -o writes the same line to FILE.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	output := flag.String("o", "", "write the last line to this `file` too")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Stdout, flag.Args(), *output)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, w io.Writer, wanted []string, output string) int {
	ci := os.Getenv("CI") == "true"
	chosen, err := choose(wanted)
	if err != nil {
		fmt.Fprintf(w, "testlevels: %v\n", err)
		return 2
	}
	all, err := listPackages(ctx)
	if err != nil {
		fmt.Fprintf(w, "testlevels: %v\n", err)
		return 1
	}
	var total result
	for _, l := range chosen {
		start := time.Now()
		fmt.Fprintf(w, "=== %s: %s\n", l.name, l.what)
		r := l.run(ctx, w, all)
		note := r.judge(w, l.name, ci)
		for _, s := range r.skipped {
			fmt.Fprintf(w, "    SKIPPED %s\n", s)
		}
		r.summary = fmt.Sprintf("%-8s %5d passed, %d failed, %d skipped in %.1f s%s", l.name, r.passed, r.failed, len(r.skipped), time.Since(start).Seconds(), note)
		fmt.Fprintf(w, "--- %s\n\n", r.summary)
		total.add(r)
	}
	fmt.Fprintln(w, strings.Join(total.summaries, "\n"))
	last := fmt.Sprintf("%d passed, %d failed", total.passed, total.failed)
	fmt.Fprintln(w, last)
	if output != "" {
		if err := os.WriteFile(output, []byte(last+"\n"), 0o600); err != nil {
			fmt.Fprintf(w, "testlevels: %v\n", err)
			return 1
		}
	}
	if total.failed > 0 {
		return 1
	}
	return 0
}

// judge adds failures for what a level did not run, and says so. The note belongs in the level's summary.
func (r *result) judge(w io.Writer, level string, ci bool) (note string) {
	switch {
	case r.passed+r.failed > 0:
	case len(r.skipped) > 0 && !ci:
		note = ": NOT RUN"
		fmt.Fprintf(w, "NOT RUN: level %s: this host lacks what it needs\n", level)
	default:
		r.failed++
		fmt.Fprintf(w, "FAIL: level %s ran no test\n", level)
	}
	if ci && len(r.skipped) > 0 {
		fmt.Fprintf(w, "FAIL: level %s skipped tests, and CI lacks nothing:\n", level)
		r.failed += len(r.skipped)
	}
	return note
}

// names lists levels for people.
func names(levels []level) string {
	list := make([]string, len(levels))
	for i, l := range levels {
		list[i] = l.name
	}
	return strings.Join(list[:len(list)-1], ", ") + " or " + list[len(list)-1]
}

// choose returns the named levels in their order; all if none is named.
func choose(chosen []string) ([]level, error) {
	all := levels()
	if len(chosen) == 0 {
		return all, nil
	}
	for _, n := range chosen {
		if !slices.ContainsFunc(all, func(l level) bool { return l.name == n }) {
			return nil, fmt.Errorf("level %q: unknown; want %s", n, names(all))
		}
	}
	return slices.DeleteFunc(all, func(l level) bool { return !slices.Contains(chosen, l.name) }), nil
}
