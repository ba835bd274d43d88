package launcher

import (
	"errors"
	"slices"
)

// undo is a stack of what is to be taken back. The zero value is empty.
type undo struct{ steps []func() error }

// add puts f on the stack.
func (u *undo) add(f func() error) { u.steps = append(u.steps, f) }

// run takes everything back, last first, and joins the errors.
func (u *undo) run() error {
	var errs []error
	for _, f := range slices.Backward(u.steps) {
		errs = append(errs, f())
	}
	u.steps = nil
	return errors.Join(errs...)
}
