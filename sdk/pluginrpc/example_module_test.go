package pluginrpc_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/eventfd"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// The example is built as a third party would: a copy outside this repository, in a module of its own.
func TestAThirdPartysModuleBuildsAndServes(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("SKIPPED: -short: builds a program")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(root, "examples/entropy"))); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "virtplug-plugin-entropy")
	for _, args := range [][]string{
		{"mod", "edit", "-replace=github.com/virtplug/virtplug=" + root},
		{"build", "-o", program, "."},
	} {
		cmd := exec.CommandContext(t.Context(), "go", args...) //nolint:gosec // G204: the arguments above
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %v: %v\n%s", args, err, out)
		}
	}
	in, g := startProgram(t, shortTemp(t), program), newGuest(t, virtio.FVersion1)
	if d, err := in.Describe(t.Context()); err != nil || d.GetName() != "entropy" || d.GetDeviceId() != uint32(virtio.IDEntropy) {
		t.Fatalf("%v, %v", d, err)
	}
	in.configure(t, `{}`)
	g.attach(t, in)
	buf, err := g.arena.Buffer(256)
	if err != nil {
		t.Fatal(err)
	}
	g.q.Add(nil, []driver.Buffer{buf})
	g.q.Publish()
	if err := eventfd.Signal(int(g.kick.Fd())); err != nil {
		t.Fatal(err)
	}
	var written uint32
	eventually(t, "random bytes", func() bool {
		_, n, ok := g.q.Used()
		written = n
		return ok
	})
	if written != 256 || bytes.Count(g.arena.Bytes(buf), []byte{0}) > 64 {
		t.Errorf("%d bytes, %x", written, g.arena.Bytes(buf))
	}
}
