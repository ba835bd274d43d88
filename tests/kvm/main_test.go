package kvm_test

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/virtplug/virtplug/core/machine"
	"github.com/virtplug/virtplug/core/machine/kvm"
	"github.com/virtplug/virtplug/tests/kvm/parts"
	"github.com/virtplug/virtplug/tests/session"
)

// partsVariable names a directory with parts that exist already: in a machine without a compiler (tests/nested).
const partsVariable = "VIRTPLUG_TEST_PARTS"

// repository is where the sources are, seen from here.
const repository = "../.."

const mebi = 1 << 20

var (
	// built are the parts; missing says why there are none for Linux guests.
	built   parts.Dir
	linux   = sync.OnceValue(prepareLinux)
	bare    = sync.OnceValue(canRunBare)
	prepare = func() error { return nil }
)

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if dir := os.Getenv(partsVariable); dir != "" {
		built = parts.Dir(dir)
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "virtplug-kvm-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	ctx := context.Background()
	if built, err = parts.Build(ctx, repository, dir); err != nil {
		fmt.Fprintf(os.Stderr, "tests/kvm: %v\n", err)
		return 1
	}
	prepare = func() error { return built.BuildLinux(ctx, repository) }
	return m.Run()
}

// canRunBare tells why no guest at all can run here.
func canRunBare() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: KVM must be there and you must be allowed to use it; `virtplug doctor` tells more", err)
	}
	return f.Close()
}

// prepareLinux tells why no Linux guest can run here.
func prepareLinux() error {
	if err := bare(); err != nil {
		return err
	}
	if err := prepare(); err != nil {
		return err
	}
	for _, part := range []string{built.Kernel(), built.Initrd(), built.Data()} {
		if _, err := os.Stat(part); err != nil {
			return err
		}
	}
	g := machine.Guest{MemoryBytes: 256 * mebi, VCPUs: 1, Kernel: built.Kernel(), Initrd: built.Initrd()}
	return kvm.New(kvm.Options{}).Check(g)
}

// needBare skips a test, loudly, where no guest can run.
func needBare(t *testing.T) {
	t.Helper()
	if err := bare(); err != nil {
		t.Skipf("MISSING: %v", err)
	}
}

// needLinux skips a test, loudly, where no Linux guest can run.
func needLinux(t *testing.T) {
	t.Helper()
	if err := linux(); err != nil {
		t.Skipf("MISSING: %v", err)
	}
}

// newBare makes a run of a freestanding guest, with the flags that all of them have.
func newBare(t *testing.T) *session.VM {
	t.Helper()
	needBare(t)
	v := session.New(t, built.Bin())
	v.Args = []string{"--machine", "kvm", "--memory", "64M", "--kernel", built.Guest()}
	return v
}

// newLinux makes a run of Linux. What its kernel has to say goes to the file "kernel" of the test; only important things, for each
// byte on the serial port costs two exits, and in an emulator all of a boot's messages take longer than the boot.
func newLinux(t *testing.T) *session.VM {
	t.Helper()
	needLinux(t)
	v := session.New(t, built.Bin())
	v.Args = []string{"--machine", "kvm", "--memory", "256M", "--kernel", built.Kernel(), "--initrd", built.Initrd(), "--kernel-output", v.Path("kernel"), "--cmdline", "quiet"}
	t.Cleanup(func() {
		if t.Failed() {
			b, err := os.ReadFile(v.Path("kernel"))
			t.Logf("the guest's kernel said (%v):\n%s", err, session.Tail(b, 4000))
		}
	})
	return v
}

// disk makes a disk image with content.
func disk(t *testing.T, v *session.VM, name string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(v.Path(name), content, 0o600); err != nil {
		t.Fatal(err)
	}
	return v.Path(name)
}

// read reads a file of the host.
func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name) //nolint:gosec // G304: a file of this test
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// equal tells whether two contents are the same, and where they are not.
func equal(got, want []byte) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d bytes, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Errorf("byte %#x is %#x, want %#x", i, got[i], want[i])
		}
	}
	return nil
}

// A test that compares by equal must see one wrong bit, and a missing byte.
func TestBareComparisonSeesOneBit(t *testing.T) {
	t.Parallel()
	needBare(t)
	a, b := session.Pattern(1, mebi), session.Pattern(1, mebi)
	if err := equal(a, b); err != nil {
		t.Error(err)
	}
	b[12345] ^= 0x10
	if equal(a, b) == nil || equal(a, a[1:]) == nil {
		t.Error("a difference was not seen")
	}
}
