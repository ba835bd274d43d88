package pluginrpc_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func TestConfigurePassesFilesAndListeners(t *testing.T) {
	t.Parallel()
	in := start(t)
	file, log := memfd(t, 0), memfd(t, 0)
	path := filepath.Join(shortTemp(t), "s")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ul, ok := l.(*net.UnixListener)
	if !ok {
		t.Fatal("no unix listener")
	}
	lf, err := ul.File()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lf.Close() }()
	in.configure(t, fmt.Sprintf(`{"file":"/x/disk","socket":%q,"port":[{"name":"serial","log":"/x/log"}]}`, path),
		pluginrpc.FileGrant{Attribute: "socket", FD: int(lf.Fd())},
		pluginrpc.FileGrant{Attribute: "port.0.log", FD: int(log.Fd())},
		pluginrpc.FileGrant{Attribute: "file", FD: int(file.Fd())})
	for f, want := range map[*os.File]string{file: "hello from m0, /x/disk", log: "port 0 is serial"} {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(f); err != nil || string(got) != want {
			t.Errorf("%q, %v: want %q", got, err, want)
		}
	}
	c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if got, err := io.ReadAll(c); err != nil || string(got) != path {
		t.Errorf("socket says %q, %v", got, err)
	}
}

func TestWrongSettingsNameTheAttribute(t *testing.T) {
	t.Parallel()
	f := memfd(t, 0)
	grant := func(a string) []pluginrpc.FileGrant { return []pluginrpc.FileGrant{{Attribute: a, FD: int(f.Fd())}} }
	for name, tc := range map[string]struct {
		json      string
		files     []pluginrpc.FileGrant
		attribute string
	}{
		"the author's": {`{"wrong":true,"port":[{"name":"a","log":"l"}]}`, grant("port.0.log"), "port.0.log"},
		"unknown":      {`{"fiel":"x"}`, nil, "fiel"},
		"type":         {`{"hold":"yes"}`, nil, "hold"},
		"no file":      {`{"file":"x"}`, nil, "file"},
		"stray file":   {`{}`, grant("file"), "file"},
		"no listener":  {`{"socket":"x"}`, grant("socket"), "socket"},
		"two files":    {`{"file":"x"}`, append(grant("file"), grant("file")...), "file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := start(t)
			_, err := in.Configure(t.Context(), pluginrpc.Settings{DeviceName: "m0", ConfigJSON: []byte(tc.json), Files: tc.files})
			se, ok := errors.AsType[*pluginrpc.SettingError](err)
			if !ok || se.Attribute != tc.attribute || !errors.Is(err, pluginrpc.ErrInvalid) {
				t.Errorf("%v: want a SettingError of %s", err, tc.attribute)
			}
		})
	}
}

func TestEventsBringTheLatestConfigurationSpace(t *testing.T) {
	t.Parallel()
	in := start(t)
	in.configure(t, `{}`)
	for range 100 {
		if _, err := in.Command(t.Context(), "grow", []byte(`{"by": 1}`)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := in.Command(t.Context(), "fail", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Command(t.Context(), "flood", nil); err != nil {
		t.Fatal(err)
	}
	events, err := in.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var config []byte
	var failed, dropped, last bool
	n := 0
	for ; config == nil || !failed || !dropped || !last; n++ {
		switch e := next(t, events).(type) {
		case pluginrpc.ConfigChanged:
			config = e.Config
		case pluginrpc.DeviceError:
			failed = true
			if e.Queue != -1 || !e.NeedsReset || strings.Contains(e.Message, "\x1b") {
				t.Errorf("event %+v", e)
			}
		case pluginrpc.Notice:
			dropped = dropped || strings.Contains(e.Message, "dropped")
			last = last || e.Message == "notice 999"
		case nil:
			t.Fatalf("the stream ended: config %v, failed %t, dropped %t, last %t", config, failed, dropped, last)
		}
	}
	if n > 70 {
		t.Errorf("%d events were kept", n)
	}
	if config[0] != 101 {
		t.Errorf("configuration space %v: want the latest", config)
	}
	second, err := in.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if e := next(t, events); e != nil {
		t.Errorf("the first stream goes on: %+v", e)
	}
	if _, err := in.Command(t.Context(), "grow", []byte(`{"by": 1}`)); err != nil {
		t.Fatal(err)
	}
	if e, ok := next(t, second).(pluginrpc.ConfigChanged); !ok || e.Config[0] != 102 {
		t.Errorf("second stream: %+v", e)
	}
}

func TestConfigurationSpaceIsWrittenWithinItsBounds(t *testing.T) {
	t.Parallel()
	in := start(t)
	in.configure(t, `{}`)
	c, err := in.WriteConfig(t.Context(), 1, []byte{2})
	if err != nil || !bytes.Equal(c, []byte{1, 2, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("%v, %v", c, err)
	}
	if c2, err := in.ReadConfig(t.Context()); err != nil || !bytes.Equal(c, c2) {
		t.Errorf("%v, %v", c2, err)
	}
	for _, at := range []int{8, 4096, -1} {
		if _, err := in.WriteConfig(t.Context(), at, []byte{1}); !errors.Is(err, pluginrpc.ErrInvalid) {
			t.Errorf("at %d: %v", at, err)
		}
	}
}

func TestCommandsAreCheckedBeforeTheDeviceSeesThem(t *testing.T) {
	t.Parallel()
	in := start(t)
	in.configure(t, `{}`)
	if r, err := in.Command(t.Context(), "grow", []byte(`{"by": 4}`)); err != nil || string(r) != `{"size":5}` {
		t.Errorf("%s, %v", r, err)
	}
	for _, args := range []string{`{}`, `{"by":0}`, `{"by":1,"x":1}`, `[]`, `x`} {
		if _, err := in.Command(t.Context(), "grow", []byte(args)); !errors.Is(err, pluginrpc.ErrInvalid) {
			t.Errorf("%s: %v", args, err)
		}
	}
	if _, err := in.Command(t.Context(), "nothing", nil); !errors.Is(err, pluginrpc.ErrInvalid) {
		t.Errorf("unknown command: %v", err)
	}
}

func TestAPanicInAnRPCIsInternalAndTheProcessLives(t *testing.T) {
	t.Parallel()
	in := start(t)
	_, err := in.Configure(t.Context(), pluginrpc.Settings{DeviceName: "m0", ConfigJSON: []byte(`{"panic":true}`)})
	if e, ok := errors.AsType[*pluginrpc.RPCError](err); !ok || e.Code != codes.Internal || !strings.Contains(e.Message, "as asked") {
		t.Errorf("Configure: %v", err)
	}
	in = start(t)
	in.configure(t, `{}`)
	if _, err := in.Command(t.Context(), "panic", nil); !errors.Is(err, pluginrpc.ErrFailed) {
		t.Errorf("Command: %v", err)
	}
	if err := in.Health(t.Context()); err != nil {
		t.Errorf("Health: %v", err)
	}
	if _, err := in.SetFeatures(t.Context(), virtio.FVersion1); err != nil {
		t.Errorf("SetFeatures: %v", err)
	}
	eventually(t, "the stack in the log", func() bool { return strings.Contains(in.log.String(), "testplugin_test.go") })
}

func TestTheDeviceIsClosedOnceHoweverItEnds(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(t *testing.T, in *instance){
		"shutdown": func(_ *testing.T, in *instance) { in.host.Kill() },
		"SIGTERM": func(t *testing.T, in *instance) {
			t.Helper()
			if err := in.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		},
		"the launcher is gone": func(t *testing.T, in *instance) {
			t.Helper()
			if err := in.socket.Close(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in, g := start(t), newGuest(t, virtio.FVersion1)
			path := filepath.Join(t.TempDir(), "closed")
			f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600) //nolint:gosec // G304: in t.TempDir
			if err != nil {
				t.Fatal(err)
			}
			in.configure(t, `{"closed":"c"}`, pluginrpc.FileGrant{Attribute: "closed", FD: int(f.Fd())})
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			g.attach(t, in)
			g.roundTrip(t, "ab", "ba")
			if err := in.cmd.Process.Signal(syscall.SIGINT); err != nil { // Ctrl-C is the launcher's
				t.Fatal(err)
			}
			g.roundTrip(t, "ab", "ba")
			end(t, in)
			eventually(t, "the process's end", in.host.Exited)
			text, err := os.ReadFile(path) //nolint:gosec // G304: in t.TempDir
			if err != nil || string(text) != "closed\n" {
				t.Errorf("Close wrote %q, %v: want one line", text, err)
			}
			if s := in.cmd.ProcessState; s != nil && s.ExitCode() != 0 {
				t.Errorf("exit status %d", s.ExitCode())
			}
		})
	}
}

func TestALostProcessIsUnavailable(t *testing.T) {
	t.Parallel()
	in := startIn(t, t.TempDir())
	in.configure(t, `{}`)
	if _, err := in.Command(t.Context(), "exit", nil); !errors.Is(err, pluginrpc.ErrUnavailable) {
		t.Errorf("Command: %v: want ErrUnavailable", err)
	}
	eventually(t, "the process's end", in.host.Exited)
}

// runByHand runs the plugin program as a user would.
func runByHand(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...) //nolint:gosec // G204, G702: ourselves
	cmd.Env = []string{asPlugin + "=1"}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

func TestDescribeNeedsNoHost(t *testing.T) {
	t.Parallel()
	out, errOut, status := runByHand(t, "describe")
	d, err := pluginrpc.ParseDescription([]byte(out))
	if err != nil || status != 0 || errOut != "" || d.GetName() != "mirror" || len(d.GetCommands()) != 8 {
		t.Errorf("status %d, %q, %v: %v", status, errOut, err, d)
	}
	if again, _, _ := runByHand(t, "describe"); again != out {
		t.Errorf("describe is not stable:\n%s\n%s", out, again)
	}
	in := start(t)
	told, err := in.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text, err := pluginrpc.FormatDescription(told)
	if err != nil || string(text) != out {
		t.Errorf("the RPC tells something else: %s, %v", text, err)
	}
}

func TestStartedByHand(t *testing.T) {
	t.Parallel()
	out, errOut, status := runByHand(t)
	if status != 1 || out != "" || strings.Count(errOut, "\n") != 2 || !strings.Contains(errOut, "virtplug run") {
		t.Errorf("status %d, stdout %q, stderr %q", status, out, errOut)
	}
	if out, _, status := runByHand(t, "--version"); status != 0 || out != "mirror 1.2.3 (plugin API 1)\n" {
		t.Errorf("status %d, %q", status, out)
	}
	if out, _, status := runByHand(t, "--help"); status != 0 || !strings.Contains(out, "describe") {
		t.Errorf("status %d, %q", status, out)
	}
	if _, errOut, status := runByHand(t, "--hlep"); status != 2 || !strings.Contains(errOut, "--hlep") {
		t.Errorf("status %d, %q", status, errOut)
	}
}
