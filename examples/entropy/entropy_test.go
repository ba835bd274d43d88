package main

import (
	"testing"

	"github.com/virtplug/virtplug/sdk/devicetest"
)

// The whole test that a device needs to know that it keeps the rules.
func TestConformance(t *testing.T) {
	t.Parallel()
	devicetest.Run(t, plugin(), devicetest.Options{})
}
