package pluginrpc_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// inRegion starts an instance with a state region, and a file, which comes first among the descriptors.
func inRegion(t *testing.T, region *os.File) *instance {
	t.Helper()
	in := startIn(t, t.TempDir())
	_, err := in.Configure(t.Context(), pluginrpc.Settings{
		DeviceName: "m0", ConfigJSON: []byte(`{"file":"x"}`), State: int(region.Fd()), Identity: [16]byte{0xab, 15: 0xcd},
		Files: []pluginrpc.FileGrant{{Attribute: "file", FD: int(memfd(t, 0).Fd())}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func (in *instance) features(t *testing.T) {
	t.Helper()
	if _, err := in.SetFeatures(t.Context(), virtio.FVersion1); err != nil {
		t.Fatal(err)
	}
}

func (in *instance) keep(t *testing.T, state string) {
	t.Helper()
	args, err := json.Marshal(map[string]string{"state": state})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Command(t.Context(), "keep", args); err != nil {
		t.Fatal(err)
	}
}

func (in *instance) kept(t *testing.T) (state, identity string) {
	t.Helper()
	b, err := in.Command(t.Context(), "kept", nil)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]string
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m["state"], m["identity"]
}

func (in *instance) kill(t *testing.T) {
	t.Helper()
	if err := in.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	in.host.Kill() // waits for its end
}

func TestStateAndIdentityReachTheNextProcess(t *testing.T) {
	t.Parallel()
	region := memfd(t, 64<<10)
	in := inRegion(t, region)
	in.features(t)
	in.keep(t, "one")
	in.keep(t, "two")
	if s, id := in.kept(t); s != "two" || id != "ab0000000000000000000000000000cd" {
		t.Errorf("state %q, identity %s", s, id)
	}
	in.kill(t)

	in = inRegion(t, region)
	if s, _ := in.kept(t); s != "" {
		t.Errorf("before the features: state %q", s)
	}
	in.features(t)
	if s, _ := in.kept(t); s != "two" {
		t.Errorf("after a kill: state %q", s)
	}
	if err := in.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	in.keep(t, "late")
	in.kill(t)

	in = inRegion(t, region)
	in.features(t)
	if s, _ := in.kept(t); s != "" {
		t.Errorf("after a reset: state %q", s)
	}
	in.keep(t, "unknown")
	in.kill(t)

	in = inRegion(t, region)
	if _, err := in.SetFeatures(t.Context(), virtio.FVersion1); err == nil || !strings.Contains(err.Error(), "does not know") {
		t.Errorf("a state that nobody knows: %v", err)
	}
}

func TestWithoutRegionAndIdentityThereIsNone(t *testing.T) {
	t.Parallel()
	in := start(t)
	in.configure(t, "{}")
	in.features(t)
	in.keep(t, "nowhere")
	if s, id := in.kept(t); s != "nowhere" || id != strings.Repeat("0", 32) {
		t.Errorf("state %q, identity %s", s, id)
	}
}

func TestAStateOrIdentityThatDoesNotFit(t *testing.T) {
	t.Parallel()
	rpc, socket, pid := startRaw(t)
	fd := int(memfd(t, 64<<10).Fd())
	before := pluginFDs(t, pid)
	at := func(i uint32) *uint32 { return &i }
	file := []*pluginv1.FileGrant{{Attribute: "file", Index: 0}}
	token := uint64(0)
	for name, tc := range map[string]struct {
		req  *pluginv1.ConfigureRequest
		fds  int
		says string
	}{
		"no such descriptor":    {&pluginv1.ConfigureRequest{State: at(2), Files: file}, 2, "state region"},
		"that of a file":        {&pluginv1.ConfigureRequest{State: at(0), Files: file}, 2, "state region"},
		"fewer descriptors":     {&pluginv1.ConfigureRequest{State: at(0), Files: file}, 1, "want 2"},
		"no descriptors":        {&pluginv1.ConfigureRequest{State: at(0)}, 0, "want 1"},
		"a short identity":      {&pluginv1.ConfigureRequest{Identity: make([]byte, 15)}, 0, "identity of 15 bytes"},
		"and the fds are freed": {&pluginv1.ConfigureRequest{Identity: make([]byte, 17), State: at(1), Files: file}, 2, "identity of 17 bytes"},
	} {
		tc.req.ConfigJson = "{}"
		if tc.fds > 0 {
			token++
			fds := []int{fd, fd}[:tc.fds]
			sendMessage(t, socket, token, len(fds), fds...)
			tc.req.Descriptors = &pluginv1.Descriptors{Token: token, Count: uint32(len(fds))} //nolint:gosec // G115: small
		}
		_, err := rpc.Configure(t.Context(), tc.req)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v: want INVALID_ARGUMENT and %q", name, err, tc.says)
		}
	}
	if after := pluginFDs(t, pid); after != before {
		t.Errorf("the plugin had %d descriptors, now %d", before, after)
	}
}
