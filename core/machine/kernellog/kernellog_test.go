package kernellog

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestALogKeepsABoundedTailOfLines(t *testing.T) {
	t.Parallel()
	o := New(nil)
	for range 3 * keptLines {
		_, _ = o.Write([]byte("one line\r\nan"))
		_, _ = o.Write([]byte("other\n"))
	}
	_, _ = o.Write([]byte(strings.Repeat("x", 1<<20)))
	_, _ = o.Write([]byte("\nend"))
	lines := o.Lines()
	if len(lines) != keptLines+1 || lines[keptLines] != "end" {
		t.Errorf("%d lines, last %q: want %d and the unfinished one", len(lines), lines[len(lines)-1], keptLines)
	}
	for _, l := range lines {
		if len(l) > keptLine {
			t.Errorf("a line of %d bytes was kept", len(l))
		}
	}
}

func TestALogPassesOnUntilItsWriterFailsOrItIsClosed(t *testing.T) {
	t.Parallel()
	var w failing
	l := New(&w)
	_, _ = l.Write([]byte("one\n"))
	w.err = errors.New("gone")
	_, _ = l.Write([]byte("two\n"))
	w.err = nil
	_, _ = l.Write([]byte("three\n"))
	if got := w.String(); got != "one\n" {
		t.Errorf("passed on %q: want what came before the failure", got)
	}
	if got := l.Last("t"); got != "three" {
		t.Errorf("last line with a t: %q", got)
	}
	l = New(&w)
	l.Close()
	_, _ = l.Write([]byte("four\n"))
	if strings.Contains(w.String(), "four") {
		t.Error("a closed log passes on")
	}
}

func TestAwaitSeesALineThatComesLater(t *testing.T) {
	t.Parallel()
	l := New(nil)
	got := make(chan bool)
	go func() { got <- l.Await("ready", nil) }()
	_, _ = l.Write([]byte("get re"))
	_, _ = l.Write([]byte("ready\n"))
	if !<-got {
		t.Error("not seen")
	}
	done := make(chan struct{})
	close(done)
	if l.Await("never", done) {
		t.Error("saw what was not there")
	}
}

// failing is a writer that fails when told.
type failing struct {
	bytes.Buffer
	err error
}

func (f *failing) Write(b []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return f.Buffer.Write(b)
}
