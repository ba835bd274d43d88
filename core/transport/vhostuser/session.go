package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// Options are settings of a server. The zero value suits User-Mode Linux.
type Options struct {
	// Protocol are the protocol features to offer, a subset of ProtoAll; 0: ProtoUML.
	Protocol ProtocolFeatures
	// Log receives what happens; nil: nothing is logged.
	Log hclog.Logger
	// EndTimeout bounds the stopping of the device after a front-end has gone; 0: 10 s.
	EndTimeout time.Duration
}

func (o Options) withDefaults() Options {
	if o.Protocol == 0 {
		o.Protocol = ProtoUML
	}
	o.Protocol &= ProtoAll
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.EndTimeout == 0 {
		o.EndTimeout = 10 * time.Second
	}
	return o
}

// lookahead is how many messages are read before the one in work is done, so that a disconnect is noticed meanwhile.
const lookahead = 8

// session is one front-end's connection.
type session struct {
	dev  Device
	conn *Conn
	log  hclog.Logger
	opts Options

	offered     virtio.Features
	features    virtio.Features // accepted, less bit 30
	featuresSet bool
	// startsDisabled: bit 30 was accepted, so rings run only when enabled.
	startsDisabled bool
	protocol       ProtocolFeatures
	table          *memTable
	rings          []ring
	// used: a ring has run since the device was last reset.
	used     bool
	notifier *notifier
}

// Serve serves dev to the front-end on sock until it disconnects (nil), ctx ends (ctx's error), or something goes wrong. It
// owns sock. When it returns no queue runs, the device was released, and every descriptor that came is closed. A device
// serves one session at a time.
func Serve(ctx context.Context, sock *net.UnixConn, dev Device, o Options) error {
	o = o.withDefaults()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &session{
		dev: dev, conn: NewConn(sock), log: o.Log, opts: o,
		offered: dev.Features(), rings: make([]ring, dev.QueueCount()),
	}
	s.notifier = newNotifier(s.log)
	stop := context.AfterFunc(ctx, func() { _ = s.conn.Close() })
	defer stop()

	dev.OnConfigChange(func([]byte) { s.notifier.changed() })
	dev.OnNeedsReset(func() {
		s.log.Warn("device needs a reset, which vhost-user cannot tell this front-end: reload its driver")
	})
	msgs := s.read(cancel)
	err := s.loop(ctx, msgs)
	_ = s.conn.Close()
	for m := range msgs { // until the reader has ended
		m.closeFDs()
	}
	return errors.Join(err, s.end())
}

// errGone is the cause that ends the device call in work when the front-end goes.
var errGone = errors.New("front-end disconnected")

// read passes messages on until the connection ends, which it tells by cancel.
func (s *session) read(cancel context.CancelCauseFunc) <-chan *Message {
	msgs := make(chan *Message, lookahead)
	go func() {
		defer close(msgs)
		for {
			m, err := s.conn.Receive()
			if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
				err = errGone
			}
			if err != nil {
				cancel(err)
				return
			}
			msgs <- m // Serve drains the channel
		}
	}()
	return msgs
}

// loop handles messages until the connection or ctx ends.
func (s *session) loop(ctx context.Context, msgs <-chan *Message) error {
	for m := range msgs {
		err := s.handle(ctx, m)
		m.closeFDs()
		if err != nil {
			if cause := context.Cause(ctx); cause != nil && !errors.Is(err, ErrProtocol) {
				return goneOr(cause) // the call failed because the connection did
			}
			return fmt.Errorf("%s: %v: %w", s.dev.Name(), m.Request, err)
		}
	}
	return goneOr(context.Cause(ctx))
}

// goneOr is nil for an orderly disconnect.
func goneOr(cause error) error {
	if errors.Is(cause, errGone) {
		return nil
	}
	return cause
}

// end stops everything, whatever the connection's context says.
func (s *session) end() error {
	s.notifier.close()
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.EndTimeout)
	defer cancel()
	var errs []error
	for i := range s.rings {
		errs = append(errs, s.stop(ctx, i))
	}
	errs = append(errs, s.dev.Release(ctx))
	s.table.close()
	return errors.Join(errs...)
}

// refusal is an error that a front-end which asked for an acknowledgement is told, and the session goes on.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// handle answers one message. Descriptors that it does not take it leaves in m.
func (s *session) handle(ctx context.Context, m *Message) error {
	if m.Flags&FlagReply != 0 {
		return fmt.Errorf("%w: a reply, but nothing was asked", ErrProtocol)
	}
	s.log.Trace("message", "request", m.Request, "size", m.Size, "descriptors", len(m.FDs))
	reply, err := s.dispatch(ctx, m)
	if m.Request.hasReply() && err == nil {
		return s.conn.Send(m.Request, replyFlags, reply)
	}
	// SET_PROTOCOL_FEATURES itself is acknowledged once it has been applied: so User-Mode Linux expects.
	acked := m.Flags&FlagNeedReply != 0 && s.protocol&ProtoReplyAck != 0 && !m.Request.hasReply()
	var refused refusal
	switch {
	case err == nil && acked:
		return s.conn.Send(m.Request, replyFlags, EncodeU64(0))
	case acked && errors.As(err, &refused):
		s.log.Warn("request refused", "request", m.Request, "error", err)
		return s.conn.Send(m.Request, replyFlags, EncodeU64(1))
	}
	return err
}
