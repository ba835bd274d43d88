package initrd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ErrNoKernel means that no User-Mode Linux kernel was found.
var ErrNoKernel = errors.New("no kernel: install the Debian package user-mode-linux, or name one with --kernel")

// maxKernelSize bounds what Release reads; the largest distribution kernel (vmlinux) is far below. Arbitrary.
const maxKernelSize = 1 << 30

// maxReleaseLen is __NEW_UTS_LEN of Linux: utsname.release without its NUL.
const maxReleaseLen = 64

// DefaultKernel finds the User-Mode Linux program that Debian installs. The error is ErrNoKernel.
func DefaultKernel() (string, error) {
	p, err := exec.LookPath("linux.uml")
	if err != nil {
		return "", ErrNoKernel
	}
	return filepath.Abs(p)
}

// Release reads a kernel image's release, "6.1.176", from an ELF program (vmlinux, User-Mode Linux) or an x86 bzImage. The
// image is not run.
func Release(kernel string) (string, error) {
	f, err := os.Open(kernel) //nolint:gosec // G304: the kernel is the caller's choice.
	if err != nil {
		return "", fmt.Errorf("read kernel: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	if st, err := f.Stat(); err != nil {
		return "", fmt.Errorf("read kernel: %w", err)
	} else if !st.Mode().IsRegular() {
		return "", fmt.Errorf("read kernel: %s: is not a regular file", kernel)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKernelSize))
	if err != nil {
		return "", fmt.Errorf("read kernel: %w", err)
	}
	release := parseRelease(data)
	if release == "" {
		return "", fmt.Errorf("read kernel: %s: has no \"Linux version …\" text; is it an uncompressed ELF kernel or a bzImage?", kernel)
	}
	return release, nil
}

// parseRelease finds the release in a kernel image; "" if there is none.
func parseRelease(image []byte) string {
	if s := bzImageVersion(image); s != "" {
		return firstWord(s)
	}
	// linux_banner, init/version.c. A format string of the same beginning ("Linux version %s") may come first.
	const banner = "Linux version "
	for {
		i := bytes.Index(image, []byte(banner))
		if i < 0 {
			return ""
		}
		image = image[i+len(banner):]
		if r := firstWord(string(image[:min(len(image), maxReleaseLen+1)])); r != "" {
			return r
		}
	}
}

// bzImageVersion reads kernel_version of the x86 setup header (Linux, Documentation/arch/x86/boot.rst): a u16 at 0x20e that
// points, less 0x200, to a NUL-terminated text.
func bzImageVersion(image []byte) string {
	if len(image) < 0x210 || !bytes.Equal(image[0x202:0x206], []byte("HdrS")) {
		return ""
	}
	off := int(binary.LittleEndian.Uint16(image[0x20e:])) + 0x200
	if off == 0x200 || off >= len(image) {
		return ""
	}
	return string(image[off:min(len(image), off+maxReleaseLen+1)])
}

// firstWord returns the release that s begins with: digits first, ended by a blank or NUL; "" if it is none.
func firstWord(s string) string {
	end := strings.IndexAny(s, " \x00\n")
	if end <= 0 || s[0] < '0' || s[0] > '9' {
		return ""
	}
	for _, c := range s[:end] {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_+~", c) {
			return ""
		}
	}
	return s[:end]
}
