package pluginhost_test

import (
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/virtplug/virtplug/core/pluginhost"
	"github.com/virtplug/virtplug/core/tap/taptest"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

func tapSchema() *pluginv1.Schema {
	in := &pluginv1.Schema{Attributes: []*pluginv1.Attribute{
		{Name: "tap", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP, Tap: &pluginv1.TapAccess{QueuePairs: "pairs", Bridge: "bridge", Addresses: "address", Mtu: "mtu"}},
		{Name: "pairs", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_INT},
		{Name: "bridge", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING},
		{Name: "address", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING_LIST},
		{Name: "mtu", Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_INT, Max: proto.Int64(1400)},
	}}
	return &pluginv1.Schema{Attributes: in.GetAttributes(), Blocks: []*pluginv1.Block{{Name: "nic", Schema: in}}}
}

func TestOpenFilesMakesTaps(t *testing.T) {
	t.Parallel()
	if !taptest.InNamespace(t) {
		return
	}
	config := []byte(`{"tap":"vp%d","pairs":2,"mtu":1300,"serial":12345678901234567890,"nic":[{},{"tap":"vp%d","mtu":0,"address":["10.0.0.1/24"]}]}`)
	f, err := pluginhost.OpenFiles(tapSchema(), config)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, g := range f.Grants {
		got = append(got, g.Attribute)
		flags(t, g.FD)
	}
	if d := cmp.Diff([]string{"tap", "tap", "nic.1.tap"}, got); d != "" {
		t.Error(d)
	}
	full, err := f.Complete(config)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"mtu":1300,"nic":[{},{"address":["10.0.0.1/24"],"mtu":1400,"tap":"vp1"}],"pairs":2,"serial":12345678901234567890,"tap":"vp0"}`
	if string(full) != want {
		t.Errorf("complete: %s\nwant      %s", full, want)
	}
	if i, err := net.InterfaceByName("vp0"); err != nil || i.MTU != 1300 || i.Flags&net.FlagUp == 0 {
		t.Errorf("%+v, %v", i, err)
	}
	if _, err := f.Complete([]byte(`{"nic":[]}`)); err == nil {
		t.Error("other settings were completed")
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := net.InterfaceByName("vp1"); err == nil {
		t.Error("the interface is left")
	}
}

func TestTapErrorsNameTheirSetting(t *testing.T) {
	t.Parallel()
	if !taptest.InNamespace(t) {
		return
	}
	for _, tc := range []struct{ config, attr, text string }{
		{`{"tap":"lo"}`, "tap", "is no tap"},
		{`{"tap":7}`, "tap", "want the name of an interface"},
		{`{"nic":[{"tap":"a b"}]}`, "nic.0.tap", "spaces"},
		{`{"nic":[{"tap":"a","bridge":"none"}]}`, "nic.0.bridge", "no such interface"},
		{`{"tap":"a","address":["10.0.0.1"]}`, "address", "prefix"},
		{`{"tap":"a","mtu":3}`, "mtu", "want 68"},
		{`{"tap":"a","pairs":1000}`, "pairs", "want 1 to 256"},
	} {
		f, err := pluginhost.OpenFiles(tapSchema(), []byte(tc.config))
		if err == nil {
			t.Fatal("accepted", f.Close())
		}
		wrong := (*pluginrpc.SettingError)(nil)
		if !errors.As(err, &wrong) || wrong.Attribute != tc.attr || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v: want %s: %s", tc.config, err, tc.attr, tc.text)
		}
	}
}

func TestSettingsWithoutTapsStayAsTheyAre(t *testing.T) {
	t.Parallel()
	config := json.RawMessage(`{ "b": 1, "a": 2 }`)
	f, err := pluginhost.OpenFiles(schema(), config)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := f.Complete(config); err != nil || string(got) != string(config) {
		t.Errorf("%s, %v", got, err)
	}
}
