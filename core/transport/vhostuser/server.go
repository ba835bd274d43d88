package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"net"
)

// Server serves one device to one front-end after another on a listening socket.
type Server struct {
	listener *net.UnixListener
	dev      Device
	opts     Options
}

// Listen makes a socket at path, mode 0600 by the directory's protection: the directory must be private. A path must be
// shorter than 108 bytes, the kernel's limit.
func Listen(path string, dev Device, o Options) (*Server, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", dev.Name(), err)
	}
	return &Server{listener: l, dev: dev, opts: o.withDefaults()}, nil
}

// Run serves until ctx ends or Close is called; then it returns nil. Each connection's end is logged, and the next one is
// accepted: a front-end that misbehaves costs only its own connection.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.listener.Close() })
	defer stop()
	for {
		sock, err := s.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve %s: %w", s.dev.Name(), err)
		}
		switch err := Serve(ctx, sock, s.dev, s.opts); {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.opts.Log.Error("front-end's connection closed", "device", s.dev.Name(), "error", err)
		default:
			s.opts.Log.Debug("front-end disconnected", "device", s.dev.Name())
		}
	}
}

// Close closes the listener and removes its socket; the session under way goes on until Run's ctx ends.
func (s *Server) Close() error {
	if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close %s: %w", s.dev.Name(), err)
	}
	return nil
}
