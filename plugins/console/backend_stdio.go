package main

import (
	"context"
	"fmt"
	"os"
)

// stdio is a connected socket whose other end the launcher pumps from and to the user's terminal. The other end is always
// there; when it does not take output the port waits.
type stdio struct {
	f *os.File
}

func newStdio(f *os.File) (*stdio, error) {
	g, err := pollable(f)
	if err != nil {
		return nil, err
	}
	return &stdio{g}, nil
}

func (s *stdio) Run(ctx context.Context, opened func(bool)) { null{}.Run(ctx, opened) }

func (s *stdio) Read(ctx context.Context, p []byte) (int, error) { return readStream(ctx, s.f, p) }

func (s *stdio) Write(ctx context.Context, p []byte) (int, error) {
	n, err := writeStream(ctx, s.f, p)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("write to the terminal: %w", err)
	}
	return n, err
}

func (s *stdio) Counters(func(string, uint64)) {}

func (s *stdio) Close() error { return s.f.Close() }
