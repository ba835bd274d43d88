package sdk_test

import (
	"context"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

type withTap struct {
	Tap sdk.Tap  `config:"tap" tap:"queue_pairs=n"`
	N   int      `config:"n" default:"1"`
	Log sdk.File `config:"log"`
}

// idle is a device without queues.
type idle struct{}

func (idle) Spec() sdk.Spec { return sdk.Spec{} }
func (idle) HandleChain(context.Context, *sdk.Queue, *virtq.Chain) error {
	return nil
}

// newPipe returns two descriptors that somebody else will own.
func newPipe(t *testing.T) [2]int {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	return p
}

// configure makes a device with files, and returns its settings.
func configure(t *testing.T, json string, files ...pluginrpc.FileGrant) (got withTap, err error) {
	t.Helper()
	i, err := sdk.NewInstance(sdk.Plugin[withTap]{
		Name: "x", Version: "1.0.0", Device: virtio.IDNet,
		New: func(_ *sdk.Env, c withTap) (sdk.Device, error) {
			got = c
			return idle{}, nil
		},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.Close(t.Context()) })
	_, err = i.Service().Configure(t.Context(), pluginrpc.Settings{DeviceName: "x0", ConfigJSON: []byte(json), Files: files})
	return got, err
}

func closed(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err != nil
}

func TestATapHasADescriptorForEachQueuePair(t *testing.T) { //nolint:paralleltest // looks at descriptors by number
	p, q := newPipe(t), newPipe(t)
	got, err := configure(t, `{"tap":"vp0","n":3}`, pluginrpc.FileGrant{Attribute: "tap", FD: p[0]}, pluginrpc.FileGrant{Attribute: "tap", FD: q[1]}, pluginrpc.FileGrant{Attribute: "tap", FD: p[1]})
	if err != nil || got.Tap.Name != "vp0" || len(got.Tap.Queues) != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	for i, want := range []int{p[0], q[1], p[1]} {
		if fd := int(got.Tap.Queues[i].Fd()); fd != want {
			t.Errorf("queue %d: descriptor %d, want %d", i, fd, want)
		}
		if err := got.Tap.Queues[i].Close(); err != nil {
			t.Error(err)
		}
	}
	_ = unix.Close(q[0])
	if got, err := configure(t, `{}`); err != nil || got.Tap.Name != "" || got.Tap.Queues != nil {
		t.Errorf("no tap: %+v, %v", got, err)
	}
}

func TestGrantsThatDoNotFitAreClosed(t *testing.T) { //nolint:paralleltest // looks at descriptors by number
	for _, tc := range []struct{ json, first, second, want string }{
		{`{"tap":"vp0"}`, "tup", "tup", "tap: the launcher passed no descriptor"},
		{`{"tap":""}`, "tap", "tap", "tap: want the name of an interface"},
		{`{"tap":["vp0"]}`, "tap", "tap", "tap: want the name of an interface"},
		{`{"tap":"vp0","log":"l"}`, "tap", "tap", "log: the launcher passed no opened file"},
		{`{"log":"l"}`, "log", "log", "log: the launcher passed several files"},
		{`{"tap":"vp0"}`, "tap", "other", "other: the launcher passed a file that nothing asks for"},
	} {
		p := newPipe(t)
		_, err := configure(t, tc.json, pluginrpc.FileGrant{Attribute: tc.first, FD: p[0]}, pluginrpc.FileGrant{Attribute: tc.second, FD: p[1]})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v: want %q", tc.json, err, tc.want)
		}
		if !closed(p[0]) || !closed(p[1]) {
			t.Errorf("%s: a descriptor was left open", tc.json)
		}
	}
}
