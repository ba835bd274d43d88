// Command testlevels runs the tests by level (design: "What is tested where") and counts them. A level that ran no test
// fails, and so does, in CI (CI=true), a test that was skipped: CI has all that the tests need.
//
//	go run ./tools/testlevels [-o FILE] [LEVEL…]    levels: unit race process guest; none: all
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

func run(ctx context.Context, w io.Writer, names []string, output string) int {
	ci := os.Getenv("CI") == "true"
	chosen, err := choose(names)
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
		if r.passed+r.failed == 0 {
			r.failed++
			fmt.Fprintf(w, "FAIL: level %s ran no test\n", l.name)
		}
		if ci && len(r.skipped) > 0 {
			fmt.Fprintf(w, "FAIL: level %s skipped tests, and CI lacks nothing:\n", l.name)
			r.failed += len(r.skipped)
		}
		for _, s := range r.skipped {
			fmt.Fprintf(w, "    SKIPPED %s\n", s)
		}
		r.summary = fmt.Sprintf("%-8s %5d passed, %d failed, %d skipped in %.1f s", l.name, r.passed, r.failed, len(r.skipped), time.Since(start).Seconds())
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

// choose returns the named levels in their order; all if none is named.
func choose(names []string) ([]level, error) {
	all := levels()
	if len(names) == 0 {
		return all, nil
	}
	for _, n := range names {
		if !slices.ContainsFunc(all, func(l level) bool { return l.name == n }) {
			return nil, fmt.Errorf("level %q: unknown; want unit, race, process or guest", n)
		}
	}
	return slices.DeleteFunc(all, func(l level) bool { return !slices.Contains(names, l.name) }), nil
}
