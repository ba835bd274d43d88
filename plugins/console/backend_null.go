package main

import "context"

// null takes all output and has no input.
type null struct{}

func (null) Run(ctx context.Context, opened func(bool)) {
	opened(true)
	<-ctx.Done()
}

func (null) Read(ctx context.Context, _ []byte) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

func (null) Write(_ context.Context, p []byte) (int, error) { return len(p), nil }

func (null) Counters(func(string, uint64)) {}

func (null) Close() error { return nil }
