package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/spf13/cobra"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/launcher"
)

// usageError is a mistake in the command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// exitStatus ends a command with a status that is not an error's; what there is to say was said.
type exitStatus struct {
	code int
	// message is printed, if not empty.
	message string
}

func (e exitStatus) Error() string { return e.message }

// codeOf is the exit status for an error.
func codeOf(err error) int {
	var status exitStatus
	var usage usageError
	var ce *config.Error
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &status):
		return status.code
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &usage), errors.As(err, &ce):
		return exitUsage
	case errors.Is(err, launcher.ErrDevice):
		return exitDevice
	}
	return exitError
}

// report prints a command's error, once, and returns the exit status.
func (a *app) report(cmd *cobra.Command, err error) int {
	if err == nil {
		return exitOK
	}
	code := codeOf(err)
	var usage usageError
	if !a.started || errors.As(err, &usage) {
		fmt.Fprintf(a.stderr, "%s%v\nRun '%s --help' for usage.\n", a.prefix(), err, cmd.CommandPath())
		return exitUsage
	}
	if ce, ok := errors.AsType[*config.Error](err); ok {
		_ = ce.WriteText(a.stderr, a.width, a.colour) // there is nowhere to tell that standard error is gone
		for _, other := range others(err, ce) {
			fmt.Fprintf(a.stderr, "%s%v\n", a.prefix(), other)
		}
		return code
	}
	if err.Error() != "" {
		fmt.Fprintf(a.stderr, "%s%v\n", a.prefix(), err)
	}
	return code
}

// others are the errors joined to ce in err.
func others(err error, ce *config.Error) []error {
	joined, ok := err.(interface{ Unwrap() []error }) // only the outermost is taken apart
	if !ok {
		return nil
	}
	var out []error
	for _, e := range joined.Unwrap() {
		if got, ok := e.(*config.Error); !ok || got != ce { //nolint:errorlint // this very one
			out = append(out, e)
		}
	}
	return out
}

func (a *app) prefix() string {
	if a.colour {
		return "\x1b[1;31mvirtplug:\x1b[0m "
	}
	return "virtplug: "
}

// switchWriter is a writer whose target can be changed.
type switchWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *switchWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

// set changes the target.
func (s *switchWriter) set(w io.Writer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.w = w
}
