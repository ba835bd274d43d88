package kvm

import (
	"bytes"
	"sync"
	"testing"
	"time"
)

// patience is for what must happen, on a host that has more to do; a guest that hangs fails after it.
const patience = 60 * time.Second

// poll waits until ok, which must become true.
func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not seen: " + what)
		}
	}
}

// text is a console that many goroutines may use.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (c *text) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.Write(p)
}

func (c *text) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.String()
}
