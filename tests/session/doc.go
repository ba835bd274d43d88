// Package session runs `virtplug run` in tests as a user does: on a terminal of its own, by typing and reading. Afterwards
// it checks that no process, no file and no terminal mode is left behind.
//
//	New ── Launch or Boot ── Expect, Type, Must … ── PowerOff or Ended
//
// A Network is a network namespace to start it in, with the test's own servers beside it.
//
// It is for tests only, and reports through testing.TB.
package session
