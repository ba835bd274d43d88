package pluginhost_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/pluginhost"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

func fileAttr(name string, a *pluginv1.FileAccess) *pluginv1.Attribute {
	return &pluginv1.Attribute{Name: name, Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_FILE, File: a}
}

func schema() *pluginv1.Schema {
	return &pluginv1.Schema{
		Attributes: []*pluginv1.Attribute{
			fileAttr("disk", &pluginv1.FileAccess{Write: true, ReadOnlyIf: "ro", BlockDevice: true}),
			fileAttr("log", &pluginv1.FileAccess{Append: true, Create: true}),
			fileAttr("kernel", nil),
			fileAttr("any", &pluginv1.FileAccess{Write: true, AnyKind: true}),
			{Name: "ro", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_BOOL},
		},
		Blocks: []*pluginv1.Block{{Name: "port", Schema: &pluginv1.Schema{Attributes: []*pluginv1.Attribute{
			{Name: "socket", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_LISTENER},
			fileAttr("file", nil),
		}}}},
	}
}

func flags(t *testing.T, fd int) int {
	t.Helper()
	f, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || c&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor %d: not close-on-exec", fd)
	}
	return f & (unix.O_ACCMODE | unix.O_APPEND | unix.O_NONBLOCK)
}

func TestOpenFiles(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	disk, log, sock := filepath.Join(dir, "disk"), filepath.Join(dir, "log"), filepath.Join(dir, "sock")
	if err := os.WriteFile(disk, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := pluginhost.OpenFiles(schema(), []byte(`{"disk":"`+disk+`","ro":false,"log":"`+log+`","kernel":"","any":"/dev/null",
		"port":[{"name":"a"},{"socket":"`+sock+`","file":"`+disk+`"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, g := range f.Grants {
		got[g.Attribute] = g.FD
	}
	for attr, want := range map[string]int{
		"disk": unix.O_RDWR, "log": unix.O_WRONLY | unix.O_APPEND, "any": unix.O_RDWR | unix.O_NONBLOCK,
		"port.1.file": unix.O_RDONLY, "port.1.socket": unix.O_RDWR,
	} {
		fd, ok := got[attr]
		if !ok {
			t.Errorf("%s: no grant", attr)
			continue
		}
		if fl := flags(t, fd); fl != want {
			t.Errorf("%s: flags %#x: want %#x", attr, fl, want)
		}
	}
	if len(got) != 5 {
		t.Errorf("grants %v", got)
	}
	for _, p := range []string{log, sock} {
		if st, err := os.Stat(p); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", p, st, err)
		}
	}
	c, err := net.Dial("unix", sock) //nolint:noctx // a test
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	for range 2 {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(sock); !errors.Is(err, os.ErrNotExist) {
		t.Error("the socket's path is left:", err)
	}
}

func TestReadOnlyIf(t *testing.T) {
	t.Parallel()
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	f, err := pluginhost.OpenFiles(schema(), []byte(`{"disk":"`+disk+`","ro":true}`))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // checked elsewhere
	if fl := flags(t, f.Grants[0].FD); fl != unix.O_RDONLY {
		t.Errorf("flags %#x", fl)
	}
}

func TestOpenFilesTellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	live, err := net.Listen("unix", filepath.Join(dir, "live")) //nolint:noctx // a test
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the subtests
		if _, err := os.Stat(plain); err != nil {
			t.Error("a file that was in the way is gone:", err)
		}
		c, err := net.Dial("unix", filepath.Join(dir, "live")) //nolint:noctx // a test
		if err != nil {
			t.Error("the live socket is gone:", err)
		} else {
			_ = c.Close()
		}
		_ = live.Close()
	})
	for _, tc := range []struct{ name, config, attr, text string }{
		{"missing", `{"disk":"` + dir + `/missing"}`, "disk", "no such file"},
		{"directory", `{"disk":"` + dir + `"}`, "disk", "is a directory"},
		{"fifo", `{"kernel":"` + fifo + `"}`, "kernel", "is a FIFO, not a regular file"},
		{"character device", `{"disk":"/dev/null"}`, "disk", "is a character device, not a regular file or a block device"},
		{"socket", `{"any":"` + dir + `/live"}`, "any", "is a socket"},
		{"component no directory", `{"disk":"` + plain + `/x"}`, "disk", "not a directory"},
		{"no string", `{"disk":7}`, "disk", "want a path"},
		{"socket in use", `{"port":[{},{"socket":"` + dir + `/live"}]}`, "port.1.socket", "a running program listens there"},
		{"no socket there", `{"port":[{"socket":"` + plain + `"}]}`, "port.0.socket", "already a file that is no socket"},
		{"long path", `{"port":[{"socket":"` + dir + "/" + strings.Repeat("x", 108) + `"}]}`, "port.0.socket", "choose a shorter one"},
		{"no directory", `{"port":[{"socket":"` + dir + `/none/s"}]}`, "port.0.socket", "no such file"},
		{"blocks", `{"port":{}}`, "port", "want a list of blocks"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f, err := pluginhost.OpenFiles(schema(), []byte(tc.config))
			if err == nil {
				t.Fatal("accepted", f.Close())
			}
			wrong := (*pluginrpc.SettingError)(nil)
			if !errors.As(err, &wrong) || wrong.Attribute != tc.attr || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %v: want %s: %s", err, tc.attr, tc.text)
			}
		})
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	if err := old.Close(); err != nil { // as a killed process leaves it
		t.Fatal(err)
	}
	f, err := pluginhost.OpenFiles(schema(), []byte(`{"port":[{"socket":"`+path+`"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path) //nolint:noctx // a test
	if err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestNothingStaysOpenAfterAnError(t *testing.T) { //nolint:paralleltest // looks at the process's descriptors
	dir := shortDir(t)
	sock := filepath.Join(dir, "s")
	if _, err := pluginhost.OpenFiles(schema(), []byte(`{"port":[{"socket":"`+sock+`"},{"file":"`+dir+`/missing"}]}`)); err == nil {
		t.Fatal("accepted")
	}
	if _, err := os.Lstat(sock); !errors.Is(err, os.ErrNotExist) {
		t.Error("the socket's path is left:", err)
	}
}
