//go:build !amd64 && !arm64

package shm

// Pause does nothing on processors whose hint we do not know.
func Pause() {}
