package pluginhost_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/pluginhost"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func TestStartVerifiesAndConfigures(t *testing.T) {
	t.Parallel()
	i := start(t, spec(t, "good"))
	if d := i.Description(); d.GetName() != "good" || d.GetVersion() != "1.2.3" {
		t.Errorf("description %v", d)
	}
	if o := i.Offer(); !slices.Equal(o.QueueSizes, []uint16{64}) || !o.Features.Has(virtio.FVersion1) {
		t.Errorf("offer %+v", o)
	}
	if err := i.Health(t.Context()); err != nil {
		t.Error(err)
	}
	for e := range i.Events() {
		if n, ok := e.(pluginrpc.Notice); ok {
			if n.Message != "ready" {
				t.Errorf("notice %+v", n)
			}
			break
		}
	}
	pid := i.PID()
	if err := i.Close(); err != nil {
		t.Error(err)
	}
	if err := i.Close(); err != nil {
		t.Error("second Close:", err)
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d after Close: %v", pid, err)
	}
	if err := i.Err(); !errors.Is(err, pluginhost.ErrExited) {
		t.Errorf("Err after Close: %v", err)
	}
}

func TestPluginInheritsNothingButItsSocket(t *testing.T) {
	t.Setenv("VIRTPLUG_TEST_SECRET", "leaked") // so not parallel
	s := spec(t, "good")
	i := start(t, s)
	out, err := i.Command(t.Context(), "env", nil)
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Env []string
		FDs map[string]string
		Exe string
		SID int
		PID int
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	for _, e := range r.Env {
		name, _, _ := strings.Cut(e, "=")
		if name != "TMPDIR" && name != pluginrpc.CookieKey && !strings.HasPrefix(name, "PLUGIN_") {
			t.Errorf("environment: %s", e)
		}
	}
	if r.FDs["0"] != "/dev/null" || !strings.HasPrefix(r.FDs["3"], "socket:") {
		t.Errorf("descriptors 0 and 3: %q, %q", r.FDs["0"], r.FDs["3"])
	}
	for n, link := range r.FDs {
		if strings.Contains(link, pluginhost.FilePrefix) {
			t.Errorf("descriptor %s is the program: %s", n, link)
		}
	}
	if r.Exe != s.Program.Path {
		t.Errorf("executable %q, want %q", r.Exe, s.Program.Path)
	}
	if r.SID != r.PID || r.PID != i.PID() {
		t.Errorf("session %d of process %d (host says %d): want its own", r.SID, r.PID, i.PID())
	}
}

func TestBadPluginsAreToldApart(t *testing.T) {
	t.Parallel()
	short := 5 * time.Second // but long enough for its last words on a slow machine
	for _, tc := range []struct {
		behaviour string
		change    func(*pluginhost.Spec)
		want      error
		text      string // regular expression
	}{
		{"crash", nil, pluginhost.ErrExited, `exited with status 3; its last words: the frobnicator is missing$`},
		{"panic", nil, pluginhost.ErrExited, `exited with status 2; .*a bug of the author|goroutine`},
		{"hang", func(s *pluginhost.Spec) { s.StartTimeout = short }, pluginhost.ErrStartTimeout, `not ready after 5s; its last words: waiting for nothing$`},
		{"noisy", nil, pluginhost.ErrHandshake, `wrote "hello, I am a plugin" there`},
		{"oldapi", nil, pluginhost.ErrAPIVersion, `it speaks 99 .* this launcher 1`},
		{"elsewhere", nil, pluginhost.ErrHandshake, `/tmp/not-its-own.sock" *, which is not in its directory`},
		{"nobody", func(s *pluginhost.Spec) { s.StartTimeout = short }, nil, `start plugin nobody: dev0: .*nobody`},
		{"quiet", nil, pluginhost.ErrHandshake, `Failed to read any lines`},
		{"alias", nil, pluginhost.ErrIdentity, `it says it is "good", its file name says "alias"`},
		{"good", func(s *pluginhost.Spec) { s.DeviceID = virtio.IDBlock }, pluginhost.ErrDeviceType, `serves device type 4, wanted is 2`},
		{"good", func(s *pluginhost.Spec) { s.SHA256 = strings.Repeat("0", 64) }, pluginhost.ErrHash, `pinned is 0000`},
		{"good", func(s *pluginhost.Spec) { s.SHA256 = "short" }, nil, `want 64 hexadecimal digits`},
		{"good", func(s *pluginhost.Spec) { s.Settings.ConfigJSON = []byte(`{"bad":true}`) }, nil, `these settings are bad`},
		{"good", func(s *pluginhost.Spec) { s.Program.Path += "-missing" }, os.ErrNotExist, `no such file`},
		{"good", func(s *pluginhost.Spec) {
			s.Program.Path = copyOf(s.Program.Path, 0o757)
		}, pluginhost.ErrUnsafe, `chmod o-w`},
		{"good", func(s *pluginhost.Spec) { s.Program.Path = filepath.Dir(s.Program.Path) }, nil, `is a directory`},
	} {
		t.Run(tc.behaviour+" "+tc.text, func(t *testing.T) {
			t.Parallel()
			s := spec(t, tc.behaviour)
			s.TempDir = shortDir(t)
			if tc.change != nil {
				tc.change(&s)
			}
			i, err := pluginhost.Start(t.Context(), s)
			if err == nil {
				t.Fatal("started", errors.Join(i.Close()))
			}
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("error %v: want %v", err, tc.want)
			}
			if ok, _ := regexp.MatchString(tc.text, err.Error()); !ok {
				t.Errorf("error %q: want %s", err, tc.text)
			}
			if left, _ := os.ReadDir(s.TempDir); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestSHA256PinOfTheRightProgram(t *testing.T) {
	t.Parallel()
	s := spec(t, "good")
	s.SHA256 = "SHA256:" + strings.ToUpper(hashOf(t, s.Program.Path))
	start(t, s)
}

func TestStartIsGivenUpWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err := pluginhost.Start(ctx, spec(t, "hang"))
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 20*time.Second {
		t.Errorf("after %v: %v", time.Since(begin), err)
	}
}

func TestEndOfARunningPluginIsAnExitError(t *testing.T) {
	t.Parallel()
	i := start(t, spec(t, "good"))
	if err := unix.Kill(i.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-i.Done()
	exit := (*pluginhost.ExitError)(nil)
	if err := i.Err(); !errors.As(err, &exit) || exit.Signal != unix.SIGKILL || exit.Reason != "" {
		t.Errorf("Err: %v", err)
	}
	for range i.Events() {
	}
	if err := i.Health(t.Context()); !errors.Is(err, device.ErrLost) || !errors.Is(err, pluginhost.ErrExited) {
		t.Errorf("RPC to the dead: %v", err)
	}
}

func TestExitDuringACallIsAnExitError(t *testing.T) {
	t.Parallel()
	i := start(t, spec(t, "good"))
	_, err := i.Command(t.Context(), "exit", nil)
	exit := (*pluginhost.ExitError)(nil)
	if !errors.As(err, &exit) || exit.Status != 7 || !strings.Contains(err.Error(), "told to exit") {
		t.Errorf("Command: %v", err)
	}
}

func TestAHungPluginIsEnded(t *testing.T) {
	t.Parallel()
	s := spec(t, "good")
	s.CallTimeout = 300 * time.Millisecond
	i := start(t, s)
	if err := unix.Kill(i.PID(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	err := i.Health(t.Context())
	if !errors.Is(err, device.ErrLost) || !strings.Contains(err.Error(), "did not answer Health within 300ms") {
		t.Errorf("Health: %v", err)
	}
	<-i.Done()
}

func TestCloseDoesNotWaitForAStoppedPlugin(t *testing.T) {
	t.Parallel()
	i := start(t, spec(t, "good"))
	if err := unix.Kill(i.PID(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := i.Close(); err != nil || time.Since(begin) > 10*time.Second {
		t.Errorf("Close: %v after %v", err, time.Since(begin))
	}
}

func TestAGrandchildThatHoldsThePipesHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	var log logBuffer
	s := spec(t, "holder")
	s.Log = log.logger()
	i := start(t, s)
	re := regexp.MustCompile(`grandchild (\d+)`)
	eventually(t, "the grandchild's number", func() bool { return re.MatchString(log.String()) })
	grandchild, err := strconv.Atoi(re.FindStringSubmatch(log.String())[1])
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(grandchild, unix.SIGKILL) //nolint:errcheck // it is ours, and alive: checked below
	begin := time.Now()
	if err := i.Close(); err != nil || time.Since(begin) > 10*time.Second {
		t.Errorf("Close: %v after %v", err, time.Since(begin))
	}
	if err := unix.Kill(grandchild, 0); err != nil {
		t.Error("the grandchild was gone: nothing was tested:", err)
	}
}

func TestALogFloodIsBounded(t *testing.T) {
	t.Parallel()
	for _, stream := range []string{"raw", "stderr"} {
		t.Run(stream, func(t *testing.T) {
			t.Parallel()
			var log logBuffer
			s := spec(t, "good")
			s.Log = log.logger()
			s.Settings.ConfigJSON = []byte(`{"flood":"` + stream + `"}`)
			i := start(t, s)
			eventually(t, "a word on dropped lines", func() bool { return strings.Contains(log.String(), "lines were dropped") })
			if n := strings.Count(log.String(), "flood "); n > 2000 {
				t.Errorf("%d lines logged", n)
			}
			if err := i.Health(t.Context()); err != nil {
				t.Error("while flooding:", err)
			}
			if err := i.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNoDescriptorIsLeftBehind(t *testing.T) { //nolint:paralleltest // counts the process's descriptors
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	good, crash := spec(t, "good"), spec(t, "crash")
	once := func() {
		i, err := pluginhost.Start(t.Context(), good)
		if err != nil {
			t.Fatal(err)
		}
		if err := i.Close(); err != nil {
			t.Error(err)
		}
		if _, err := pluginhost.Start(t.Context(), crash); err == nil {
			t.Error("crash started")
		}
	}
	once()
	before := count()
	for range 3 {
		once()
	}
	eventually(t, fmt.Sprintf("%d descriptors again", before), func() bool { return count() <= before })
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		behaviour string
		want      error
		text      string
	}{
		{"good", nil, ""},
		{"alias", pluginhost.ErrIdentity, `it says it is "good"`},
		{"crash", pluginhost.ErrExited, `status 4; its last words: cannot describe`},
		{"endless", nil, `printed more than 1048576 bytes`},
		{"noisy", pluginrpc.ErrAnswer, `describe plugin`},
	} {
		t.Run(tc.behaviour, func(t *testing.T) {
			t.Parallel()
			d, err := pluginhost.Describe(t.Context(), plugin(t, tc.behaviour))
			if tc.text == "" {
				if err != nil || d.GetName() != "good" {
					t.Errorf("%v, %v", d, err)
				}
				return
			}
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Fatalf("error %v: want %v", err, tc.want)
			}
			if ok, _ := regexp.MatchString(tc.text, err.Error()); !ok {
				t.Errorf("error %q: want %s", err, tc.text)
			}
		})
	}
	t.Run("context", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if _, err := pluginhost.Describe(ctx, plugin(t, "hang")); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}
