//go:build amd64 || arm64

package shm

// Pause tells the processor that this is a busy-wait: 25 ns on amd64, and the sibling thread gets the core.
func Pause()
