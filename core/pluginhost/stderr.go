package pluginhost

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/hashicorp/go-hclog"
)

// Bounds of what a plugin's standard error costs the launcher; arbitrary.
const (
	keptLines   = 20
	keptBytes   = 512  // of one kept line
	lineBytes   = 8192 // of one line; the rest is cut
	logBurst    = 200  // lines at once
	logPerSec   = 50   // lines a second, after that
	floodBytes  = 64 << 10
	floodPause  = 5 * time.Millisecond // per floodBytes while lines are being dropped: the flood waits, not we
	sayDropped  = time.Second          // at most so often
	maxLogPairs = 32
)

// logSink takes a plugin's standard error: it keeps the last lines and passes them to the log, at a bounded rate. Safe for
// concurrent use: one plugin has several streams.
type logSink struct {
	log hclog.Logger

	mu   sync.Mutex
	last []string

	tokens   float64
	refilled time.Time
	dropped  int
	said     time.Time
	inPanic  bool
}

func newLogSink(log hclog.Logger) *logSink {
	now := time.Now()
	return &logSink{log: log, tokens: logBurst, refilled: now, said: now}
}

// Lines are the last lines, oldest first.
func (s *logSink) Lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.last)
}

// consume reads r to its end.
func (s *logSink) consume(r io.Reader) {
	in := bufio.NewReaderSize(r, lineBytes)
	flood, continued := 0, false
	for {
		line, err := in.ReadSlice('\n')
		cut := errors.Is(err, bufio.ErrBufferFull)
		flood += len(line)
		if !continued && len(line) > 0 && s.take(strings.TrimRight(string(line), "\r\n"), cut) {
			flood = 0
		}
		if flood >= floodBytes {
			flood = 0
			time.Sleep(floodPause)
		}
		if continued = cut; err != nil && !cut {
			s.flush()
			return
		}
	}
}

// flush says what was dropped so far.
func (s *logSink) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tellDropped(true)
}

// stream is a writer whose lines go to the sink too: what a plugin prints after the handshake comes over gRPC.
func (s *logSink) stream() io.Writer { return &lineWriter{sink: s} }

type lineWriter struct {
	sink    *logSink
	partial []byte
	flood   int
}

// Write takes whole lines out of what came so far. It slows down whoever writes more than may be logged.
func (w *lineWriter) Write(p []byte) (int, error) {
	w.partial = append(w.partial, p...)
	w.flood += len(p)
	for {
		n := bytes.IndexByte(w.partial, '\n')
		cut := n < 0 && len(w.partial) >= lineBytes
		skip := n + 1
		if cut {
			n, skip = lineBytes, lineBytes
		} else if n < 0 {
			break
		}
		if w.sink.take(strings.TrimRight(string(w.partial[:n]), "\r"), cut) {
			w.flood = 0
		}
		w.partial = w.partial[skip:]
	}
	if w.flood >= floodBytes {
		w.flood = 0
		time.Sleep(floodPause)
	}
	return len(p), nil
}

// take handles one line; false: it was not logged.
func (s *logSink) take(line string, cut bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := clean(line, keptBytes)
	if e := parseEntry(line); e != nil {
		kept = clean(e.text(), keptBytes)
	}
	if len(s.last) == keptLines {
		s.last = slices.Delete(s.last, 0, 1)
	}
	s.last = append(s.last, kept)

	now := time.Now()
	s.tokens = min(logBurst, s.tokens+now.Sub(s.refilled).Seconds()*logPerSec)
	s.refilled = now
	if s.tokens < 1 {
		s.dropped++
		s.tellDropped(false)
		return false
	}
	s.tokens--
	s.tellDropped(false)
	s.write(line, cut)
	return true
}

// tellDropped says how many lines were dropped, now and then. The caller holds mu.
func (s *logSink) tellDropped(now bool) {
	if s.dropped == 0 || !now && time.Since(s.said) < sayDropped {
		return
	}
	s.log.Warn("plugin writes too much to its log: lines were dropped", "lines", s.dropped)
	s.dropped, s.said = 0, time.Now()
}

// write logs one line, in hclog's JSON form or plain.
func (s *logSink) write(line string, cut bool) {
	e := parseEntry(line)
	if e == nil {
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			s.inPanic = true
		}
		level := hclog.Info
		if s.inPanic {
			level = hclog.Error
		}
		if line = clean(line, lineBytes); cut {
			line += " […]"
		}
		if line != "" {
			s.log.Log(level, line)
		}
		return
	}
	level := hclog.LevelFromString(e.level)
	if level == hclog.NoLevel {
		level = hclog.Info
	}
	s.log.Log(level, clean(e.message, lineBytes), e.pairs...)
}

// entry is a line of hclog's JSON form.
type entry struct {
	level, message string
	pairs          []any
}

func (e *entry) text() string {
	if e.level == "" {
		return e.message
	}
	return "[" + strings.ToUpper(e.level) + "] " + e.message
}

// parseEntry reads hclog's JSON form; nil: the line is something else.
func parseEntry(line string) *entry {
	if !strings.HasPrefix(line, "{") {
		return nil
	}
	var m map[string]any
	if json.Unmarshal([]byte(line), &m) != nil {
		return nil
	}
	msg, ok := m["@message"].(string)
	if !ok {
		return nil
	}
	e := &entry{message: msg}
	e.level, _ = m["@level"].(string) // one without a level is logged as information
	keys := make([]string, 0, len(m))
	for k := range m {
		if !strings.HasPrefix(k, "@") {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys[:min(len(keys), maxLogPairs)] {
		v := m[k]
		if t, ok := v.(string); ok {
			v = clean(t, lineBytes)
		}
		e.pairs = append(e.pairs, clean(k, keptBytes), v)
	}
	return e
}

// clean makes a plugin's text fit for a terminal, and at most n bytes.
func clean(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || unicode.IsPrint(r):
			return r
		default:
			return '?'
		}
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
