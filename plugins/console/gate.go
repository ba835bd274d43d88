package main

import (
	"context"
	"sync"
)

// gate lets pass while it is open. Safe for concurrent use.
type gate struct {
	mu      sync.Mutex
	open    bool
	changed chan struct{} // closed, and replaced, at each change
}

func newGate() *gate { return &gate{changed: make(chan struct{})} }

func (g *gate) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open != open {
		g.open = open
		close(g.changed)
		g.changed = make(chan struct{})
	}
}

func (g *gate) isOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open
}

// enter waits until the gate is open; the context it returns ends with ctx or when the gate is closed. leave releases it.
func (g *gate) enter(ctx context.Context) (open context.Context, leave func(), err error) {
	for {
		g.mu.Lock()
		is, changed := g.open, g.changed
		g.mu.Unlock()
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		if is {
			open, cancel := context.WithCancel(ctx)
			go func() {
				select {
				case <-changed:
					cancel()
				case <-open.Done():
				}
			}()
			return open, cancel, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}
