package uml

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/virtplug/virtplug/core/machine"
)

const (
	// keptLines is how many lines of the kernel's output are kept for Exit.Detail; a panic's trace has about 40.
	keptLines = 100
	// keptLine bounds a line kept, in bytes; arbitrary.
	keptLine = 512
	// detailLines is how many lines of output explain a crash.
	detailLines = 10
)

// output takes the kernel's messages: to the guest's console writer, and the last lines for us.
type output struct {
	mu      sync.Mutex
	w       io.Writer // nil: dropped
	partial []byte
	tail    []string
	seen    chan struct{} // closed and replaced when lines came
}

func newOutput(w io.Writer) *output { return &output{w: w, seen: make(chan struct{})} }

// Write implements io.Writer; it never fails. If the console's writer fails it is not written to again.
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	o.partial = append(o.partial, b...)
	for {
		i := bytes.IndexByte(o.partial, '\n')
		if i < 0 && len(o.partial) > keptLine {
			i = keptLine // a line without end
		}
		if i < 0 {
			break
		}
		o.keep(o.partial[:i])
		o.partial = o.partial[min(i+1, len(o.partial)):]
	}
	close(o.seen)
	o.seen = make(chan struct{})
	w := o.w
	o.mu.Unlock()
	if w == nil {
		return len(b), nil
	}
	if _, err := w.Write(b); err != nil {
		o.close()
	}
	return len(b), nil
}

// keep adds a line. The caller holds mu.
func (o *output) keep(line []byte) {
	s := strings.TrimRight(string(line[:min(len(line), keptLine)]), "\r")
	if len(o.tail) == keptLines {
		o.tail = slices.Delete(o.tail, 0, 1)
	}
	o.tail = append(o.tail, s)
}

// close stops passing output on: the caller of Run may reuse its writer.
func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.w = nil
}

// lines are the last lines, the unfinished one included.
func (o *output) lines() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := slices.Clone(o.tail)
	if len(o.partial) > 0 {
		out = append(out, string(o.partial))
	}
	return out
}

// await waits until a kept line contains s, or done is closed, and tells whether it was seen.
func (o *output) await(s string, done <-chan struct{}) bool {
	for {
		o.mu.Lock()
		seen := o.seen
		found := slices.ContainsFunc(o.tail, func(l string) bool { return strings.Contains(l, s) })
		o.mu.Unlock()
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

// panicMark begins the line that tells why a kernel panicked.
const panicMark = "Kernel panic - not syncing:"

// explain derives why a guest ended from the shell's exit code (128+n: signal n) and the last output.
func explain(code int, lines []string) machine.Exit {
	last := func(mark string) string {
		for _, l := range slices.Backward(lines) {
			if strings.Contains(l, mark) {
				return strings.TrimSpace(l)
			}
		}
		return ""
	}
	ended := last("reboot: ") // what a kernel says last, when all is written and the devices are quiet
	if code == 0 {
		if strings.Contains(ended, "Restarting system") {
			return machine.Exit{Reason: machine.Reboot, Detail: ended}
		}
		return machine.Exit{Reason: machine.PowerOff, Detail: ended}
	}
	if l := last(panicMark); l != "" {
		return machine.Exit{Reason: machine.Panic, Detail: l}
	}
	// Now and then linux.uml 6.1 aborts while it tidies up its own process, after the guest has ended.
	if ended != "" {
		exit := explain(0, lines)
		exit.Detail += "; then linux.uml: " + codeText(code)
		return exit
	}
	detail := append([]string{"linux.uml: " + codeText(code)}, lines[max(0, len(lines)-detailLines):]...)
	return machine.Exit{Reason: machine.Crashed, Detail: strings.Join(detail, "\n")}
}
