// Package kernellog takes what a guest's kernel prints before anything else works: it passes the text on, keeps the last
// lines, and finds in them why the guest ended.
package kernellog

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"sync"
)

const (
	// keptLines is how many lines of the kernel's output are kept; a panic's trace has about 40.
	keptLines = 100
	// keptLine bounds a line kept, in bytes; arbitrary.
	keptLine = 512
)

// Marks of a kernel's last words.
const (
	// PanicMark begins the line that tells why a kernel panicked.
	PanicMark = "Kernel panic - not syncing:"
	// EndMark is in what a kernel says last, when all is written and the devices are quiet.
	EndMark = "reboot: "
)

// Log takes a kernel's messages: to a writer, and the last lines for us. Safe for concurrent use.
type Log struct {
	mu      sync.Mutex
	w       io.Writer // nil: dropped
	partial []byte
	tail    []string
	seen    chan struct{} // closed and replaced when lines came
}

// New makes a log that passes on to w; nil: to nobody.
func New(w io.Writer) *Log { return &Log{w: w, seen: make(chan struct{})} }

// Write implements io.Writer; it never fails. If the writer below fails it is not written to again.
func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	l.partial = append(l.partial, b...)
	for {
		i := bytes.IndexByte(l.partial, '\n')
		next := i + 1
		if i < 0 && len(l.partial) > keptLine { // a line without end
			i, next = keptLine, keptLine
		}
		if i < 0 {
			break
		}
		l.keep(l.partial[:i])
		l.partial = l.partial[next:]
	}
	close(l.seen)
	l.seen = make(chan struct{})
	w := l.w
	l.mu.Unlock()
	if w == nil {
		return len(b), nil
	}
	if _, err := w.Write(b); err != nil {
		l.Close()
	}
	return len(b), nil
}

// keep adds a line. The caller holds mu.
func (l *Log) keep(line []byte) {
	s := strings.TrimRight(string(line[:min(len(line), keptLine)]), "\r")
	if len(l.tail) == keptLines {
		l.tail = slices.Delete(l.tail, 0, 1)
	}
	l.tail = append(l.tail, s)
}

// Close stops passing output on: whoever gave the writer may reuse it. Lines are still kept.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w = nil
}

// Lines are the last lines, at most 100 and the unfinished one.
func (l *Log) Lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := slices.Clone(l.tail)
	if len(l.partial) > 0 {
		out = append(out, string(l.partial))
	}
	return out
}

// Last is the last of the kept lines that contains mark, without space around it; "" if there is none.
func (l *Log) Last(mark string) string { return Last(l.Lines(), mark) }

// Last is the last of lines that contains mark, without space around it; "" if there is none.
func Last(lines []string, mark string) string {
	for _, s := range slices.Backward(lines) {
		if strings.Contains(s, mark) {
			return strings.TrimSpace(s)
		}
	}
	return ""
}

// Await waits until a kept line contains s, or done is closed, and tells whether it was seen.
func (l *Log) Await(s string, done <-chan struct{}) bool {
	for {
		l.mu.Lock()
		seen := l.seen
		found := slices.ContainsFunc(l.tail, func(line string) bool { return strings.Contains(line, s) })
		l.mu.Unlock()
		if found {
			return true
		}
		select {
		case <-seen:
		case <-done:
			return false
		}
	}
}
