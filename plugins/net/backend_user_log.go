package main

import (
	"io"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/sirupsen/logrus"
)

// What gvisor-tap-vsock's servers log is mostly about what the guest sent: no more than userLogLines in userLogTime.
const (
	userLogLines = 10
	userLogTime  = 10 * time.Second
)

// userLog passes what is logged through logrus on.
type userLog struct {
	to hclog.Logger

	mu      sync.Mutex
	since   time.Time
	lines   int
	dropped int
}

// redirectLog makes logrus, which has one logger for the whole process, pass on to l.
func redirectLog(l hclog.Logger) {
	logrus.SetOutput(io.Discard)
	hooks := logrus.LevelHooks{}
	hooks.Add(&userLog{to: l})
	logrus.StandardLogger().ReplaceHooks(hooks)
}

// Levels is logrus.Hook's.
func (l *userLog) Levels() []logrus.Level { return logrus.AllLevels }

// Fire is logrus.Hook's.
func (l *userLog) Fire(e *logrus.Entry) error {
	pass, dropped := l.admit(time.Now())
	if dropped > 0 {
		l.to.Debug("user-mode network: messages left out", "count", dropped)
	}
	if !pass {
		return nil
	}
	if e.Level <= logrus.FatalLevel {
		l.to.Warn("user-mode network: " + e.Message)
	} else {
		l.to.Debug("user-mode network: "+e.Message, "level", e.Level.String())
	}
	return nil
}

// admit tells whether a line may pass, and how many did not since the last time.
func (l *userLog) admit(now time.Time) (pass bool, dropped int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.since) >= userLogTime {
		l.since, l.lines = now, 0
		dropped, l.dropped = l.dropped, 0
	}
	if l.lines++; l.lines > userLogLines {
		l.dropped++
		return false, dropped
	}
	return true, dropped
}
