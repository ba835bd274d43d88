package sdk_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// settings has every type and tag.
type settings struct {
	Path     sdk.File      `config:"path,required" file:"write,read_only_if=read_only,block_device" help:"The image."`
	ReadOnly bool          `config:"read_only" default:"false"`
	Mode     string        `config:"mode" default:"fast" oneof:"fast|safe"`
	Queues   uint16        `config:"queues" default:"1" min:"1" max:"8"`
	Offset   int64         `config:"offset"`
	Big      uint64        `config:"big"`
	Ratio    float64       `config:"ratio" default:"0.5" max:"1"`
	Cache    sdk.Size      `config:"cache" default:"64MiB" min:"4K"`
	Timeout  time.Duration `config:"timeout" default:"1.5s" min:"1ms"`
	Tags     []string      `config:"tags" default:"[\"a\"]"`
	Tap      sdk.Tap       `config:"tap" tap:"queue_pairs=queues,bridge=bridge,addresses=hosts,mtu=offset"`
	Bridge   string        `config:"bridge"`
	Hosts    []string      `config:"hosts"`
	Ports    []port        `config:"port" max:"2" help:"A port."`
	Skipped  chan int      `config:"-"`
}

type port struct {
	Name   string       `config:"name,label"`
	Socket sdk.Listener `config:"socket"`
	Log    sdk.File     `config:"log" file:"create,append"`
	Rows   int8         `config:"rows" default:"24"`
}

func TestSchemaOfHasWhatTheTagsSay(t *testing.T) {
	t.Parallel()
	got, err := sdk.SchemaOf[settings]()
	if err != nil {
		t.Fatal(err)
	}
	want := &pluginv1.Schema{}
	text := `{"attributes": [
		{"name":"path","type":"ATTRIBUTE_TYPE_FILE","required":true,"description":"The image.","file":{"write":true,"readOnlyIf":"read_only","blockDevice":true}},
		{"name":"read_only","type":"ATTRIBUTE_TYPE_BOOL","defaultJson":"false"},
		{"name":"mode","type":"ATTRIBUTE_TYPE_STRING","defaultJson":"\"fast\"","oneOf":["fast","safe"]},
		{"name":"queues","type":"ATTRIBUTE_TYPE_INT","defaultJson":"1","min":1,"max":8},
		{"name":"offset","type":"ATTRIBUTE_TYPE_INT"},
		{"name":"big","type":"ATTRIBUTE_TYPE_INT","min":0},
		{"name":"ratio","type":"ATTRIBUTE_TYPE_FLOAT","defaultJson":"0.5","max":1},
		{"name":"cache","type":"ATTRIBUTE_TYPE_SIZE","defaultJson":"67108864","min":4096},
		{"name":"timeout","type":"ATTRIBUTE_TYPE_DURATION","defaultJson":"1500000000","min":1000000},
		{"name":"tags","type":"ATTRIBUTE_TYPE_STRING_LIST","defaultJson":"[\"a\"]"},
		{"name":"tap","type":"ATTRIBUTE_TYPE_TAP","tap":{"queuePairs":"queues","bridge":"bridge","addresses":"hosts","mtu":"offset"}},
		{"name":"bridge","type":"ATTRIBUTE_TYPE_STRING"},
		{"name":"hosts","type":"ATTRIBUTE_TYPE_STRING_LIST"}],
	  "blocks": [{"name":"port","label":"name","maxItems":2,"description":"A port.","schema":{"attributes":[
		{"name":"socket","type":"ATTRIBUTE_TYPE_LISTENER"},
		{"name":"log","type":"ATTRIBUTE_TYPE_FILE","file":{"create":true,"append":true}},
		{"name":"rows","type":"ATTRIBUTE_TYPE_INT","defaultJson":"24","min":-128,"max":127}]}}]}`
	if err := protojson.Unmarshal([]byte(text), want); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", protojson.Format(got), protojson.Format(want))
	}
	if err := pluginrpc.CheckSchema(got); err != nil {
		t.Errorf("the launcher would refuse it: %v", err)
	}
}

func TestSchemaOfNoConfigIsEmpty(t *testing.T) {
	t.Parallel()
	got, err := sdk.SchemaOf[sdk.NoConfig]()
	if err != nil || proto.Size(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}

type recursive struct {
	Inner []recursive `config:"inner"`
}

func TestBadTagsAreErrorsThatNameTheField(t *testing.T) {
	t.Parallel()
	check := func(name string, f func() (*pluginv1.Schema, error), field string) {
		t.Helper()
		if _, err := f(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v: want an error that has %q", name, err, field)
		}
	}
	check("no struct", sdk.SchemaOf[int], "int")
	check("no tag", sdk.SchemaOf[struct{ X int }], "field X")
	check("bad name", sdk.SchemaOf[struct {
		X int `config:"X-1"`
	}], "field X")
	check("bad option", sdk.SchemaOf[struct {
		X int `config:"x,requird"`
	}], "requird")
	check("twice", sdk.SchemaOf[struct {
		X int `config:"x"`
		Y int `config:"x"`
	}], `"x"`)
	check("unexported", sdk.SchemaOf[struct {
		x int `config:"x"`
	}], "field x")
	check("type", sdk.SchemaOf[struct {
		X map[string]int `config:"x"`
	}], "map[string]int")
	check("pointer", sdk.SchemaOf[struct {
		X *int `config:"x"`
	}], "*int")
	check("default of the wrong type", sdk.SchemaOf[struct {
		X bool `config:"x" default:"maybe"`
	}], "default")
	check("default outside the bounds", sdk.SchemaOf[struct {
		X int `config:"x" default:"9" max:"8"`
	}], "default")
	check("default no oneof", sdk.SchemaOf[struct {
		X string `config:"x" default:"c" oneof:"a|b"`
	}], "default")
	check("default of a required one", sdk.SchemaOf[struct {
		X int `config:"x,required" default:"1"`
	}], "default")
	check("default of a file", sdk.SchemaOf[struct {
		X sdk.File `config:"x" default:"y"`
	}], "default")
	check("bounds of a string", sdk.SchemaOf[struct {
		X string `config:"x" min:"1"`
	}], "min")
	check("bound outside the type", sdk.SchemaOf[struct {
		X uint8 `config:"x" max:"256"`
	}], "max")
	check("min above max", sdk.SchemaOf[struct {
		X int `config:"x" min:"2" max:"1"`
	}], "min 2")
	check("oneof of a number", sdk.SchemaOf[struct {
		X int `config:"x" oneof:"1|2"`
	}], "oneof")
	check("path prefixes of a number", sdk.SchemaOf[struct {
		X int `config:"x" path:"unix:"`
	}], "path")
	check("file of a string", sdk.SchemaOf[struct {
		X string `config:"x" file:"write"`
	}], "file")
	check("file option", sdk.SchemaOf[struct {
		X sdk.File `config:"x" file:"wrote"`
	}], "wrote")
	check("write and append", sdk.SchemaOf[struct {
		X sdk.File `config:"x" file:"write,append"`
	}], "append")
	check("read_only_if of nothing", sdk.SchemaOf[struct {
		X sdk.File `config:"x" file:"write,read_only_if=ro"`
	}], "ro")
	check("tap of a string", sdk.SchemaOf[struct {
		X string `config:"x" tap:"mtu=y"`
	}], "field X: tag tap")
	check("tap option", sdk.SchemaOf[struct {
		X sdk.Tap `config:"x" tap:"mut=y"`
	}], "mut=y")
	check("tap that names nothing", sdk.SchemaOf[struct {
		X sdk.Tap `config:"x" tap:"mtu=y"`
	}], "attribute x: tap: mtu=y: no attribute of type int")
	check("tap that names another type", sdk.SchemaOf[struct {
		X sdk.Tap `config:"x" tap:"addresses=y"`
		Y string  `config:"y"`
	}], "addresses=y: no attribute of type string_list")
	check("default of a tap", sdk.SchemaOf[struct {
		X sdk.Tap `config:"x" default:"tap0"`
	}], "default")
	check("label outside a block", sdk.SchemaOf[struct {
		X string `config:"x,label"`
	}], "label")
	check("label is no string", sdk.SchemaOf[struct {
		B []struct {
			X int `config:"x,label"`
		} `config:"b"`
	}], "label")
	check("a block inside itself", sdk.SchemaOf[recursive], "inside itself")
	check("default of a block", sdk.SchemaOf[struct {
		B []struct{} `config:"b" default:"[]"`
	}], "default")
}

func TestDecodeArgsFillsDefaultsAndIsStrict(t *testing.T) {
	t.Parallel()
	type args struct {
		Size  sdk.Size      `config:"size,required" min:"512"`
		Force bool          `config:"force"`
		Wait  time.Duration `config:"wait" default:"1s"`
		Steps []struct {
			Name string `config:"name,label"`
			N    uint8  `config:"n" default:"3"`
		} `config:"step" min:"1" max:"2"`
	}
	a, err := sdk.DecodeArgs[args]([]byte(`{"size": 1024, "step": [{"name": "a"}, {"n": 255, "name": "b"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if a.Size != 1024 || a.Wait != time.Second || len(a.Steps) != 2 || a.Steps[0].N != 3 || a.Steps[1].N != 255 || a.Steps[1].Name != "b" {
		t.Errorf("got %+v", a)
	}
	for text, attribute := range map[string]string{
		`{"step":[{"name":"a"}]}`:                                  "size",
		`{"size":1,"step":[{"name":"a"}]}`:                         "size",
		`{"size":"1K","step":[{"name":"a"}]}`:                      "size",
		`{"size":1e3,"step":[{"name":"a"}]}`:                       "size",
		`{"size":-1,"step":[{"name":"a"}]}`:                        "size",
		`{"size":+1024,"step":[{"name":"a"}]}`:                     "",
		`{"size":null,"step":[{"name":"a"}]}`:                      "size",
		`{"size":1024,"step":[{"name":"a"}],"force":1}`:            "force",
		`{"size":1024,"step":[{"name":"a"}],"farce":true}`:         "farce",
		`{"size":1024,"step":[]}`:                                  "step",
		`{"size":1024}`:                                            "step",
		`{"size":1024,"step":null}`:                                "step",
		`{"size":1024,"step":{"name":"a"}}`:                        "step",
		`{"size":1024,"step":[{"name":"a"},{"name":"b"},{}]}`:      "step",
		`{"size":1024,"step":[{}]}`:                                "step.0.name",
		`{"size":1024,"step":[{"name":"a"},{"name":"b","n":256}]}`: "step.1.n",
		`{"size":1024,"step":[{"name":"a","m":1}]}`:                "step.0.m",
		`{"size":1024,"size":1024,"step":[{"name":"a"}]}`:          "",
		`{"size":1024,"step":[{"name":"a"}]} {}`:                   "",
		`[]`:                                                       "",
		``:                                                         "",
		`{"size":`:                                                 "",
	} {
		_, err := sdk.DecodeArgs[args]([]byte(text))
		se, ok := errors.AsType[*pluginrpc.SettingError](err)
		if !ok || !strings.HasPrefix(se.Attribute, attribute) || attribute == "" && se.Attribute != "" {
			t.Errorf("%s: %v: want a SettingError of %q", text, err, attribute)
		}
	}
}

func TestParseSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]sdk.Size{
		"0": 0, "4096": 4096, "1K": 1024, "512M": 512 << 20, "10GiB": 10 << 30, "7EiB": 7 << 60,
	} {
		got, err := sdk.ParseSize(text)
		if err != nil || got != want {
			t.Errorf("%s: %d, %v: want %d", text, got, err, want)
		}
		if again, err := sdk.ParseSize(got.String()); err != nil || again != got {
			t.Errorf("%s: String is %s: %d, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"", "K", "1KB", "1iB", "1.5G", "-1", "+1", "8E", "1 K", "1KK", "99999999999999999999", "i", "BiB"} {
		if got, err := sdk.ParseSize(text); err == nil {
			t.Errorf("%q: %d: want an error", text, got)
		}
	}
}

// FuzzSettings: whatever JSON comes, decoding neither panics nor lets a value outside its bounds through.
func FuzzSettings(f *testing.F) {
	type inner struct {
		Name string `config:"name,label"`
		N    int8   `config:"n" min:"-3" max:"3"`
	}
	type all struct {
		B bool          `config:"b" default:"true"`
		S string        `config:"s" default:"x" oneof:"x|y"`
		U uint16        `config:"u" max:"1000"`
		F float64       `config:"f" min:"-1" max:"1"`
		Z sdk.Size      `config:"z" default:"1K"`
		D time.Duration `config:"d"`
		L []string      `config:"l"`
		I []inner       `config:"i" max:"3"`
	}
	f.Add([]byte(`{"b":false,"s":"y","u":1000,"f":0.25,"z":4096,"d":-5,"l":["a",""],"i":[{"name":"p","n":-3}]}`))
	f.Add([]byte(`{"u":-1}`))
	f.Add([]byte(`{"f":1e400}`))
	f.Add([]byte(`{"i":[{"name":"a"},{"name":"b"},{"name":"c"},{"name":"d"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := sdk.DecodeArgs[all](text)
		if err != nil {
			if _, ok := errors.AsType[*pluginrpc.SettingError](err); !ok {
				t.Fatalf("%v: no SettingError", err)
			}
			return
		}
		if a.S != "x" && a.S != "y" || a.U > 1000 || !(a.F >= -1 && a.F <= 1) || a.Z > 1<<63-1 || len(a.I) > 3 {
			t.Fatalf("%s: %+v", text, a)
		}
		for _, i := range a.I {
			if i.N < -3 || i.N > 3 {
				t.Fatalf("%s: %+v", text, a)
			}
		}
	})
}

func TestSettingErrorKeepsItsCause(t *testing.T) {
	t.Parallel()
	err := sdk.SettingError("path", "open it: %w", os.ErrNotExist)
	if err.Error() != "path: open it: file does not exist" || !errors.Is(err, os.ErrNotExist) || !errors.Is(err, pluginrpc.ErrInvalid) {
		t.Errorf("%v", err)
	}
}
