package pluginrpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// Errors that cross the contract: ToStatus and FromStatus map them to gRPC status codes and back, with errors.Is.
// context.DeadlineExceeded and context.Canceled cross too.
var (
	// ErrInvalid: the request is wrong (INVALID_ARGUMENT).
	ErrInvalid = errors.New("invalid request")
	// ErrState: the request is out of order (FAILED_PRECONDITION).
	ErrState = errors.New("out of order")
	// ErrUnsupported: the plugin lacks an optional part (UNIMPLEMENTED).
	ErrUnsupported = errors.New("not supported by the plugin")
	// ErrFailed: the device failed (INTERNAL, and whatever else a plugin may answer).
	ErrFailed = errors.New("the device failed")
	// ErrUnavailable: the connection to the plugin is lost (UNAVAILABLE). Only at the launcher.
	ErrUnavailable = errors.New("the plugin does not answer")
	// ErrAnswer: the plugin answered what the contract does not allow. Only at the launcher.
	ErrAnswer = errors.New("the plugin's answer breaks the contract")
)

// SettingError tells which setting of a configuration is wrong, so that the launcher can show its line.
type SettingError struct {
	// Attribute is the path of the setting: "path", "port.0.socket"; empty: the configuration as a whole.
	Attribute string
	// Message is for people.
	Message string
	// Err is the cause, if there is one; it does not cross the contract.
	Err error
}

// Error is "attribute: message".
func (e *SettingError) Error() string {
	if e.Attribute == "" {
		return e.Message
	}
	return e.Attribute + ": " + e.Message
}

// Unwrap returns the cause.
func (e *SettingError) Unwrap() error { return e.Err }

// Is makes every SettingError an ErrInvalid.
func (e *SettingError) Is(target error) bool { return target == ErrInvalid }

// codeOf lists what crosses, the first match wins. A function: there is no package state.
func codeOf(err error) codes.Code {
	for _, m := range []struct {
		err  error
		code codes.Code
	}{
		{ErrInvalid, codes.InvalidArgument},
		{ErrState, codes.FailedPrecondition},
		{ErrUnsupported, codes.Unimplemented},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
	} {
		if errors.Is(err, m.err) {
			return m.code
		}
	}
	return codes.Internal
}

// ToStatus is the plugin's half of the mapper: err as a gRPC status error. A *SettingError travels as a ConfigError detail.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	st := status.New(codeOf(err), cleanText(err.Error(), maxMessage))
	if se, ok := errors.AsType[*SettingError](err); ok {
		detailed, err := st.WithDetails(&pluginv1.ConfigError{
			Attribute: cleanText(se.Attribute, maxPath), Message: cleanText(se.Message, maxMessage),
		})
		if err == nil { // it fails only for codes.OK
			st = detailed
		}
	}
	return st.Err()
}

// RPCError is an error that a plugin answered, or a lost connection.
type RPCError struct {
	// Op is the RPC: "Configure".
	Op string
	// Code is the gRPC status code.
	Code codes.Code
	// Message is what the plugin wrote, without control characters and bounded.
	Message string

	cause error
}

// Error is "op: message".
func (e *RPCError) Error() string { return e.Op + ": " + e.Message }

// Unwrap returns the sentinel of the code, or the *SettingError.
func (e *RPCError) Unwrap() error { return e.cause }

// FromStatus is the launcher's half of the mapper: what an RPC returned, as an *RPCError that wraps a sentinel or a
// *SettingError. It trusts nothing in it.
func FromStatus(op string, err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("%s: %w", op, err)
	}
	e := &RPCError{Op: op, Code: st.Code(), Message: cleanText(st.Message(), maxMessage)}
	switch st.Code() { //nolint:exhaustive // the rest are failures of the device
	case codes.InvalidArgument:
		e.cause = ErrInvalid
	case codes.FailedPrecondition:
		e.cause = ErrState
	case codes.Unimplemented:
		e.cause = ErrUnsupported
	case codes.DeadlineExceeded:
		e.cause = context.DeadlineExceeded
	case codes.Canceled:
		e.cause = context.Canceled
	case codes.Unavailable:
		e.cause = ErrUnavailable
	default:
		e.cause = ErrFailed
	}
	if e.Message == "" {
		e.Message = e.cause.Error()
	}
	for _, d := range st.Details() {
		if ce, ok := d.(*pluginv1.ConfigError); ok && e.Code == codes.InvalidArgument {
			e.cause = &SettingError{Attribute: cleanText(ce.GetAttribute(), maxPath), Message: cleanText(ce.GetMessage(), maxMessage)}
			break
		}
	}
	return e
}

// cleanText makes a peer's text safe to show: valid UTF-8, no control characters but newline and tab, at most limit bytes.
func cleanText(s string, limit int) string {
	cut := len(s) > limit
	if cut {
		s = s[:limit]
		for s != "" && !utf8.RuneStart(s[len(s)-1]) {
			s = s[:len(s)-1]
		}
		if s != "" && s[len(s)-1] >= utf8.RuneSelf {
			s = s[:len(s)-1] // the first byte of a rune that was cut
		}
	}
	s = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsGraphic(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
	if cut {
		s += " …"
	}
	return s
}
