package session

import "bytes"

// Pattern makes n bytes that differ by seed and position: another byte, or one in another place, is seen.
func Pattern(seed uint64, n int) []byte {
	b := make([]byte, n)
	x := seed*0x9e3779b97f4a7c15 | 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x >> 32 & 0xff)
	}
	return b
}

// Escaped doubles what is taken out on the way from the user's terminal to the guest's first console: Ctrl-A, which the
// launcher's escape key is made of, and Ctrl-O, which is Linux's SysRq key on a virtio console that the kernel logs to.
func Escaped(b []byte) []byte {
	b = bytes.ReplaceAll(b, []byte{0x01}, []byte{0x01, 0x01})
	return bytes.ReplaceAll(b, []byte{0x0f}, []byte{0x0f, 0x0f})
}
