package boot_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/core/boot"
)

// cloudKernel is Debian's kernel for virtual machines.
func cloudKernel(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob("/boot/vmlinuz-*-cloud-amd64")
	if err != nil || len(found) == 0 {
		t.Skip("MISSING: no /boot/vmlinuz-*-cloud-amd64: apt-get install linux-image-cloud-amd64")
	}
	return found[0]
}

// bigVM has 128 MiB of RAM.
func bigVM(t *testing.T) *vm {
	t.Helper()
	return newVM(t, 128*mib)
}

func TestDebiansKernelIsLoaded(t *testing.T) {
	t.Parallel()
	name := cloudKernel(t)
	f, size := openFile(t, name)
	k, err := boot.Inspect(f, size)
	if err != nil {
		t.Fatal(err)
	}
	release := strings.TrimPrefix(filepath.Base(name), "vmlinuz-")
	if k.Format != boot.BzImage || k.Protocol < 0x20f || !strings.HasPrefix(k.Version, release+" ") || k.CmdlineMax != 2047 {
		t.Errorf("%v %#x %q %d", k.Format, k.Protocol, k.Version, k.CmdlineMax)
	}
	v := bigVM(t)
	initrd, initrdSize := openFile(t, name) // any file
	v.Initrd, v.InitrdSize = initrd, initrdSize
	e := mustLoad(t, k, v)
	if uint64(e.Kernel.Start) != 16*mib || e.Initrd.Size != uint64(initrdSize) { //nolint:gosec // G115: a file's size
		t.Errorf("%+v", e)
	}
	if p := v.at(t, e.RSI, page); le.Uint64(p[0x258:]) != 16*mib || le.Uint64(p[0x70:]) != acpiStart {
		t.Errorf("pref_address %#x, RSDP %#x", le.Uint64(p[0x258:]), le.Uint64(p[0x70:]))
	}
	v = newVM(t, 64*mib)
	if _, err := k.Load(v.Request); !errors.Is(err, boot.ErrNoRoom) {
		t.Errorf("with 64 MiB: %v", err)
	}
}

func TestDebiansKernelUnpackedHasAPVHEntry(t *testing.T) {
	t.Parallel()
	f, size := openFile(t, cloudKernel(t))
	raw := make([]byte, size)
	if _, err := f.ReadAt(raw, 0); err != nil {
		t.Fatal(err)
	}
	start := (int(raw[0x1f1])+1)*512 + int(le.Uint32(raw[0x248:]))
	payload := raw[start : start+int(le.Uint32(raw[0x24c:]))]
	vmlinux, err := unpackLZ4(payload)
	if err != nil {
		t.Fatalf("the kernel's payload: %v", err)
	}
	k := mustInspect(t, vmlinux)
	if k.Format != boot.ELFPVH || k.Entry < 16*mib {
		t.Fatalf("%v at %v", k.Format, k.Entry)
	}
	v := bigVM(t)
	e := mustLoad(t, k, v)
	if e.Mode != boot.Protected32 || uint64(e.Kernel.Start) != 16*mib || !bytes.Contains(v.at(t, uint64(e.Kernel.Start), e.Kernel.Size), []byte("Linux version ")) {
		t.Errorf("%+v", e)
	}
}

// unpackLZ4 unpacks the format that the kernel's build makes: a magic number, then blocks of a length and as many bytes, at
// last perhaps the unpacked length.
func unpackLZ4(b []byte) ([]byte, error) {
	bad := errors.New("not LZ4 of the legacy frame format")
	if len(b) < 4 || le.Uint32(b) != 0x184c2102 {
		return nil, bad
	}
	var out []byte
	for b = b[4:]; len(b) >= 8; {
		n := int(binary.LittleEndian.Uint32(b))
		if n > len(b)-4 {
			return nil, bad
		}
		block := b[4 : 4+n]
		b = b[4+n:]
		base := len(out)
		length := func(n int) int {
			for c := byte(255); n >= 15 && c == 255 && len(block) > 0; n += int(c) {
				c, block = block[0], block[1:]
			}
			return n
		}
		for len(block) > 0 {
			token := block[0]
			block = block[1:]
			n := length(int(token >> 4))
			if n > len(block) {
				return nil, bad
			}
			out = append(out, block[:n]...)
			if block = block[n:]; len(block) < 2 {
				break // the last sequence has no match
			}
			back := int(block[0]) | int(block[1])<<8
			block = block[2:]
			n = length(int(token&15)) + 4
			if back == 0 || back > len(out)-base {
				return nil, bad
			}
			for range n {
				out = append(out, out[len(out)-back])
			}
		}
	}
	return out, nil
}
