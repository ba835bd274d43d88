package memory

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// maxSize is half of a 47-bit user address space: no machine can map more.
const maxSize = 1 << 46

// CheckSize compares n bytes of guest memory with what the host has free now. ErrTooLarge says what to do.
func CheckSize(n uint64) error {
	if n > maxSize {
		return fmt.Errorf("%w: %d bytes: no machine can map more than %d TiB: ask for less", ErrTooLarge, n, maxSize>>40)
	}
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil //nolint:nilerr // cannot tell: let the allocation decide
	}
	if free, ok := available(text); ok && n > free {
		return fmt.Errorf("%w: asked for %d MiB, available are %d MiB: ask for less, or end something else", ErrTooLarge, n>>20, free>>20)
	}
	return nil
}

// available is MemAvailable plus SwapFree of a /proc/meminfo, in bytes.
func available(meminfo []byte) (n uint64, ok bool) {
	for s := bufio.NewScanner(bytes.NewReader(meminfo)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 2 || f[0] != "MemAvailable:" && f[0] != "SwapFree:" {
			continue
		}
		kib, err := strconv.ParseUint(f[1], 10, 54)
		if err != nil {
			return 0, false
		}
		n += kib << 10
		ok = ok || f[0] == "MemAvailable:"
	}
	return n, ok
}
