package pluginrpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// hostile is a connection to a plugin that answers what it was given.
type hostile struct {
	grpc.ClientConnInterface
	answer proto.Message
	err    error
}

func (h hostile) Invoke(_ context.Context, _ string, _, reply any, _ ...grpc.CallOption) error {
	if m, ok := reply.(proto.Message); ok && h.answer != nil {
		proto.Merge(m, h.answer)
	}
	return h.err
}

func clientOf(t *testing.T, h hostile) *pluginrpc.Client {
	t.Helper()
	s, child, err := pluginrpc.NewSocketPair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(); _ = child.Close() })
	return pluginrpc.NewClient(h, s)
}

func TestAnAnswerThatBreaksTheContractIsRefused(t *testing.T) {
	t.Parallel()
	const v1 = uint64(virtio.FVersion1)
	configure := func(ctx context.Context, c *pluginrpc.Client) error {
		_, err := c.Configure(ctx, pluginrpc.Settings{})
		return err
	}
	stop := func(ctx context.Context, c *pluginrpc.Client) error { _, err := c.StopQueue(ctx, 0); return err }
	read := func(ctx context.Context, c *pluginrpc.Client) error { _, err := c.ReadConfig(ctx); return err }
	stats := func(ctx context.Context, c *pluginrpc.Client) error { _, err := c.Statistics(ctx); return err }
	command := func(ctx context.Context, c *pluginrpc.Client) error { _, err := c.Command(ctx, "x", nil); return err }
	startQ := func(ctx context.Context, c *pluginrpc.Client) error {
		_, err := c.StartQueue(ctx, pluginrpc.QueueStart{Size: 8, Recover: true})
		return err
	}
	many := make(map[string]uint64)
	for i := range 1000 {
		many[fmt.Sprint("c", i)] = 1
	}
	for name, tc := range map[string]struct {
		call   func(context.Context, *pluginrpc.Client) error
		answer proto.Message
		fine   bool
	}{
		"offer":                       {configure, &pluginv1.ConfigureResponse{Features: v1, QueueSizes: []uint32{1, 32768}, Config: make([]byte, 4096)}, true},
		"queue size 0":                {configure, &pluginv1.ConfigureResponse{Features: v1, QueueSizes: []uint32{0}}, false},
		"queue size 3":                {configure, &pluginv1.ConfigureResponse{Features: v1, QueueSizes: []uint32{3}}, false},
		"queue size 65536":            {configure, &pluginv1.ConfigureResponse{Features: v1, QueueSizes: []uint32{65536}}, false},
		"1025 queues":                 {configure, &pluginv1.ConfigureResponse{Features: v1, QueueSizes: repeat(8, 1025)}, false},
		"configuration space":         {configure, &pluginv1.ConfigureResponse{Features: v1, Config: make([]byte, 4097)}, false},
		"no VERSION_1":                {configure, &pluginv1.ConfigureResponse{}, false},
		"stop":                        {stop, &pluginv1.StopQueueResponse{NextAvail: 65535, UsedIndex: 65535}, true},
		"index of 17 bits":            {stop, &pluginv1.StopQueueResponse{NextAvail: 65536}, false},
		"used index of 17 bits":       {stop, &pluginv1.StopQueueResponse{UsedIndex: 65536}, false},
		"read":                        {read, &pluginv1.ReadConfigResponse{Config: make([]byte, 4096)}, true},
		"read too much":               {read, &pluginv1.ReadConfigResponse{Config: make([]byte, 4097)}, false},
		"resubmitted":                 {startQ, &pluginv1.StartQueueResponse{Resubmitted: 8}, true},
		"resubmitted more than fit":   {startQ, &pluginv1.StartQueueResponse{Resubmitted: 9}, false},
		"statistics":                  {stats, &pluginv1.StatisticsResponse{Counters: map[string]uint64{"ok": 1}}, true},
		"bad counter":                 {stats, &pluginv1.StatisticsResponse{Counters: map[string]uint64{"a b": 1}}, false},
		"many counters":               {stats, &pluginv1.StatisticsResponse{Counters: many}, false},
		"statistics of no such queue": {stats, &pluginv1.StatisticsResponse{Queues: []*pluginv1.QueueStatistics{{Index: 1024}}}, false},
		"result":                      {command, &pluginv1.CommandResponse{ResultJson: `{"a":1}`}, true},
		"result no object":            {command, &pluginv1.CommandResponse{ResultJson: `[]`}, false},
		"result no JSON":              {command, &pluginv1.CommandResponse{ResultJson: `{`}, false},
		"no result":                   {command, &pluginv1.CommandResponse{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := tc.call(t.Context(), clientOf(t, hostile{answer: tc.answer}))
			if tc.fine && err != nil || !tc.fine && !errors.Is(err, pluginrpc.ErrAnswer) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func repeat(v uint32, n int) []uint32 {
	s := make([]uint32, n)
	for i := range s {
		s[i] = v
	}
	return s
}

func TestWithheldFeaturesAreNeverOffered(t *testing.T) {
	t.Parallel()
	all := &pluginv1.ConfigureResponse{Features: ^uint64(0)}
	o, err := clientOf(t, hostile{answer: all}).Configure(t.Context(), pluginrpc.Settings{Withheld: virtio.FRingPacked})
	if err != nil || o.Features != ^virtio.FRingPacked {
		t.Errorf("%v, %v", o.Features, err)
	}
}

func TestADescriptionThatBreaksTheContractIsRefused(t *testing.T) {
	t.Parallel()
	good := func() *pluginv1.DescribeResponse {
		return &pluginv1.DescribeResponse{Name: "x", Version: "1.0.0-rc.1+b", ApiVersions: []uint32{1}, DeviceId: 4, Schema: &pluginv1.Schema{
			Attributes: []*pluginv1.Attribute{{Name: "a", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING, DefaultJson: `"x"`}},
		}}
	}
	if d, err := clientOf(t, hostile{answer: good()}).Describe(t.Context()); err != nil || !proto.Equal(d, good()) {
		t.Fatalf("%v, %v", d, err)
	}
	deep := &pluginv1.Schema{}
	for range 10 {
		deep = &pluginv1.Schema{Blocks: []*pluginv1.Block{{Name: "b", Schema: deep}}}
	}
	for name, change := range map[string]func(d *pluginv1.DescribeResponse){
		"no name":          func(d *pluginv1.DescribeResponse) { d.Name = "" },
		"name with escape": func(d *pluginv1.DescribeResponse) { d.Name = "x\x1b[2J" },
		"name too long":    func(d *pluginv1.DescribeResponse) { d.Name = strings.Repeat("x", 33) },
		"version":          func(d *pluginv1.DescribeResponse) { d.Version = "one" },
		"long version":     func(d *pluginv1.DescribeResponse) { d.Version = "1.0.0-" + strings.Repeat("x", 100) },
		"no API":           func(d *pluginv1.DescribeResponse) { d.ApiVersions = nil },
		"device ID 0":      func(d *pluginv1.DescribeResponse) { d.DeviceId = 0 },
		"long description": func(d *pluginv1.DescribeResponse) { d.Description = strings.Repeat("x", 5000) },
		"attribute name":   func(d *pluginv1.DescribeResponse) { d.Schema.Attributes[0].Name = "A" },
		"attribute type":   func(d *pluginv1.DescribeResponse) { d.Schema.Attributes[0].Type = 99 },
		"default":          func(d *pluginv1.DescribeResponse) { d.Schema.Attributes[0].DefaultJson = "{" },
		"default of a tap": func(d *pluginv1.DescribeResponse) {
			d.Schema.Attributes[0].Type = pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP
		},
		"tap of a string": func(d *pluginv1.DescribeResponse) { d.Schema.Attributes[0].Tap = &pluginv1.TapAccess{} },
		"file of a tap": func(d *pluginv1.DescribeResponse) {
			d.Schema.Attributes[0] = &pluginv1.Attribute{Name: "a", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP, File: &pluginv1.FileAccess{}}
		},
		"tap of another type": func(d *pluginv1.DescribeResponse) {
			d.Schema.Attributes = append(d.Schema.Attributes, &pluginv1.Attribute{
				Name: "t", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP, Tap: &pluginv1.TapAccess{Mtu: "a"},
			})
		},
		"bridge that the user did not name": func(d *pluginv1.DescribeResponse) {
			d.Schema.Attributes = append(d.Schema.Attributes,
				&pluginv1.Attribute{Name: "br", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING, DefaultJson: `"br0"`},
				&pluginv1.Attribute{Name: "t", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP, Tap: &pluginv1.TapAccess{Bridge: "br"}})
		},
		"address that the user did not name": func(d *pluginv1.DescribeResponse) {
			d.Schema.Attributes = append(d.Schema.Attributes,
				&pluginv1.Attribute{Name: "ad", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING_LIST, DefaultJson: `["10.0.0.1/24"]`},
				&pluginv1.Attribute{Name: "t", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP, Tap: &pluginv1.TapAccess{Addresses: "ad"}})
		},
		"deep schema":   func(d *pluginv1.DescribeResponse) { d.Schema = deep },
		"command name":  func(d *pluginv1.DescribeResponse) { d.Commands = []*pluginv1.CommandSpec{{Name: "a b"}} },
		"command twice": func(d *pluginv1.DescribeResponse) { d.Commands = []*pluginv1.CommandSpec{{Name: "a"}, {Name: "a"}} },
	} {
		d := good()
		change(d)
		if _, err := clientOf(t, hostile{answer: d}).Describe(t.Context()); !errors.Is(err, pluginrpc.ErrAnswer) {
			t.Errorf("%s: %v: want ErrAnswer", name, err)
		}
	}
	if _, err := pluginrpc.ParseDescription([]byte(`{"name":"x","future":1}`)); !errors.Is(err, pluginrpc.ErrAnswer) {
		t.Errorf("ParseDescription: %v", err)
	}
}

func TestErrorsCrossTheContract(t *testing.T) {
	t.Parallel()
	for _, sentinel := range []error{
		pluginrpc.ErrInvalid, pluginrpc.ErrState, pluginrpc.ErrUnsupported, context.DeadlineExceeded, context.Canceled,
	} {
		err := pluginrpc.FromStatus("Reset", pluginrpc.ToStatus(fmt.Errorf("reset: %w", sentinel)))
		if !errors.Is(err, sentinel) || !strings.HasPrefix(err.Error(), "Reset: reset: ") {
			t.Errorf("%v: came as %v", sentinel, err)
		}
	}
	if err := pluginrpc.FromStatus("Reset", pluginrpc.ToStatus(io.ErrUnexpectedEOF)); !errors.Is(err, pluginrpc.ErrFailed) {
		t.Errorf("any other: %v", err)
	}
	if pluginrpc.ToStatus(nil) != nil || pluginrpc.FromStatus("x", nil) != nil {
		t.Error("nil is not nil")
	}
	evil := status.Error(codes.Code(999), "\x1b]0;owned\a"+strings.Repeat("ä", 10000)+"\xff")
	err := pluginrpc.FromStatus("Reset", evil)
	if len(err.Error()) > 5000 || strings.ContainsAny(err.Error(), "\x1b\a") || !utf8.ValidString(err.Error()) || !errors.Is(err, pluginrpc.ErrFailed) {
		t.Errorf("%q", err)
	}
}
