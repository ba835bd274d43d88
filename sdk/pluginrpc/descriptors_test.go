package pluginrpc_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/virtplug/virtplug/sdk/internal/fdpass"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// startRaw starts a plugin and returns its service without our client, and the launcher's end of the descriptor socket as it is.
func startRaw(t *testing.T) (rpc pluginv1.DeviceClient, socket *os.File, pid int) {
	t.Helper()
	socket, child, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0]) //nolint:gosec // G204, G702: ourselves
	cmd.Env = []string{asPlugin + "=1", "TMPDIR=" + shortTemp(t)}
	cmd.ExtraFiles = []*os.File{child}
	host := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: pluginrpc.Handshake(), Plugins: pluginrpc.LauncherPlugins(nil), Cmd: cmd, SkipHostEnv: true,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC}, Logger: hclog.NewNullLogger(),
	})
	t.Cleanup(func() { host.Kill(); _ = socket.Close() })
	c, err := host.Client()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Close(); err != nil {
		t.Fatal(err)
	}
	g, ok := c.(*plugin.GRPCClient)
	if !ok {
		t.Fatalf("%T", c)
	}
	return pluginv1.NewDeviceClient(g.Conn), socket, cmd.Process.Pid
}

func sendMessage(t *testing.T, socket *os.File, token uint64, headerCount int, fds ...int) {
	t.Helper()
	b := binary.LittleEndian.AppendUint32(nil, fdpass.Magic)
	b = binary.LittleEndian.AppendUint32(b, uint32(headerCount)) //nolint:gosec // G115: small
	b = binary.LittleEndian.AppendUint64(b, token)
	if err := unix.Sendmsg(int(socket.Fd()), b, unix.UnixRights(fds...), nil, 0); err != nil {
		t.Fatal(err)
	}
}

func TestDescriptorsThatDoNotFitTheirRequest(t *testing.T) {
	t.Parallel()
	rpc, socket, pid := startRaw(t)
	ram := memfd(t, 1<<20)
	fd := int(ram.Fd())
	if _, err := rpc.Configure(t.Context(), &pluginv1.ConfigureRequest{ConfigJson: "{}"}); err != nil {
		t.Fatal(err)
	}
	attach := func(token uint64, count uint32, regions int) error {
		req := &pluginv1.AttachMemoryRequest{Descriptors: &pluginv1.Descriptors{Token: token, Count: count}}
		for i := range regions {
			req.Regions = append(req.Regions, &pluginv1.MemoryRegion{GuestAddress: uint64(i) << 20, Size: 1 << 20})
		}
		_, err := rpc.AttachMemory(t.Context(), req)
		return err
	}
	sendMessage(t, socket, 1, 1, fd)
	if err := attach(1, 1, 1); err != nil {
		t.Fatal(err)
	}
	before := pluginFDs(t, pid)
	token := uint64(100)
	for name, tc := range map[string]struct {
		send    func(token uint64)
		count   uint32
		regions int
		code    codes.Code
		says    string
	}{
		"twice":                                  {func(k uint64) { sendMessage(t, socket, k, 1, fd); sendMessage(t, socket, k, 1, fd) }, 1, 1, codes.InvalidArgument, "twice"},
		"the request says more than the message": {func(k uint64) { sendMessage(t, socket, k, 1, fd) }, 2, 2, codes.InvalidArgument, "wrong number"},
		"the header says more than came":         {func(k uint64) { sendMessage(t, socket, k, 2, fd) }, 2, 2, codes.InvalidArgument, "wrong number"},
		"more regions than descriptors":          {func(k uint64) { sendMessage(t, socket, k, 1, fd) }, 1, 2, codes.InvalidArgument, "want 2"},
		"token 0":                                {func(uint64) { token = 0 }, 1, 1, codes.InvalidArgument, "token 0"},
		"a token that was used":                  {func(uint64) { token = 1 }, 1, 1, codes.InvalidArgument, "twice"},
	} {
		was := token
		tc.send(token)
		err := attach(token, tc.count, tc.regions)
		if st := status.Convert(err); st.Code() != tc.code || !strings.Contains(st.Message(), tc.says) {
			t.Errorf("%s: %v: want %v and %q", name, err, tc.code, tc.says)
		}
		token = was + 1
	}
	if _, err := rpc.AttachMemory(t.Context(), &pluginv1.AttachMemoryRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no descriptors at all: %v", err)
	}
	began := time.Now()
	err := attach(9999, 1, 1)
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "9999") {
		t.Errorf("never came: %v: want DEADLINE_EXCEEDED", err)
	}
	if d := time.Since(began); d < fdpass.TakeTimeout || d > patience {
		t.Errorf("never came: after %v: want %v", d, fdpass.TakeTimeout)
	}
	sendMessage(t, socket, 10000, 1, fd) // and it goes on
	if err := attach(10000, 1, 1); err != nil {
		t.Error(err)
	}
	if after := pluginFDs(t, pid); after != before {
		t.Errorf("the plugin had %d descriptors, now %d", before, after)
	}
}

func TestFileGrantsThatDoNotFit(t *testing.T) {
	t.Parallel()
	rpc, socket, pid := startRaw(t)
	f := memfd(t, 0)
	before := pluginFDs(t, pid)
	for i, grants := range [][]*pluginv1.FileGrant{
		{{Attribute: "file", Index: 1}},
		{{Attribute: "file", Index: 0}, {Attribute: "closed", Index: 0}},
	} {
		token := uint64(i + 1)
		fds := make([]int, len(grants))
		for i := range fds {
			fds[i] = int(f.Fd())
		}
		sendMessage(t, socket, token, len(fds), fds...)
		_, err := rpc.Configure(t.Context(), &pluginv1.ConfigureRequest{
			ConfigJson: `{"file":"x","closed":"y"}`, Files: grants,
			Descriptors: &pluginv1.Descriptors{Token: token, Count: uint32(len(fds))}, //nolint:gosec // G115: small
		})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v: want INVALID_ARGUMENT", grants, err)
		}
	}
	if after := pluginFDs(t, pid); after != before {
		t.Errorf("the plugin had %d descriptors, now %d", before, after)
	}
}

func pluginFDs(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
