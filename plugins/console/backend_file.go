package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// logFile appends all output to a file and has no input.
type logFile struct {
	null
	f    *os.File
	path string
}

func (l *logFile) Write(_ context.Context, p []byte) (int, error) {
	n, err := l.f.Write(p)
	return n, l.named("write", err)
}

func (l *logFile) Close() error { return l.named("close", l.f.Close()) }

// named puts the file's configured path in place of the descriptor's name.
func (l *logFile) named(op string, err error) error {
	if err == nil {
		return nil
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	return fmt.Errorf("%s console log: %s: %w", op, l.path, err)
}
