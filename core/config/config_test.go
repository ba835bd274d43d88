package config_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/sdk/virtio"
)

var update = flag.Bool("update", false, "rewrite golden files")

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path) //nolint:gosec // of the testdata
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("differs from %s (-want +got), -update rewrites it:\n%s", path, diff)
	}
}

func text(t *testing.T, err error) []byte {
	t.Helper()
	ce, ok := errors.AsType[*config.Error](err)
	if !ok {
		t.Fatalf("error is %T (%v), want *config.Error", err, err)
	}
	var buf bytes.Buffer
	if err := ce.WriteText(&buf, 100, false); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestBadFilesAreExplainedAllInOnePass(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/bad/*")
	if err != nil || len(files) < 5 {
		t.Fatalf("found %d files, %v", len(files), err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, ".golden") {
			continue
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			_, err := config.Load(t.Context(), config.Input{Path: path}, plugins(), config.Options{CheckFiles: strings.Contains(path, "files")})
			golden(t, path+".golden", text(t, err))
		})
	}
}

func TestBadFlagsAreExplainedAtTheFlag(t *testing.T) {
	t.Parallel()
	_, err := config.Load(t.Context(), config.Input{Flags: config.Flags{
		Name: "a b", Memory: "12Q", CPUs: "0", Machine: "kvmm",
		Devices: []config.DeviceFlag{
			config.BlockFlag("disk.img,read_onli=true"),
			config.BlockFlag("disk.img,queues=99,serial=a,serial=b"),
			config.BlockFlag("read_only"),
			{Flag: "--device", Value: "blok=x,path=y"},
			{Flag: "--device", Value: "console=con0,port.a.socket=x,port.a.soket=y,port.b.size=1Z,prot.a.socket=z"},
			{Flag: "--device", Value: "console=con0,ring.indirect=maybe"},
			{Flag: "--device", Value: ""},
			{Flag: "--device", Value: "liar"},
			config.ConsoleFlag("stdio"),
			config.ConsoleFlag("pty,port.x.backend=stdio"),
			config.ConsoleFlag("ptyy"),
		},
	}}, plugins(), config.Options{HostMemory: 1 << 30})
	golden(t, "testdata/bad/flags.golden", text(t, err))
}

const good = `
vm "demo" {
  memory  = "128MiB"
  cpus    = 2
  machine = "uml"
  kernel  = "linux"
  initrd  = "/boot/initrd"
  cmdline = "quiet"
}
plugin_dirs = ["plugins"]
device "block" "vdz" {
  path       = "disk.img"
  block_size = "4K"
  timeout    = "2s"
  tags       = ["a", "b"]
  weight     = 0.5
  plugin {
    path   = "bin/my-block"
    sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  }
  ring {
    indirect = false
  }
}
device "console" "con0" {
  port "a" {
    socket = "a.sock"
    filter {
      drop = "x"
    }
  }
  port "b" {}
  ring {
    event_idx = false
  }
}
`

const goodJSON = `{
  "vm": {"demo": {"memory": "128MiB", "cpus": 2, "machine": "uml", "kernel": "linux", "initrd": "/boot/initrd", "cmdline": "quiet"}},
  "plugin_dirs": ["plugins"],
  "device": {
    "block": {"vdz": {
      "path": "disk.img", "block_size": "4K", "timeout": "2s", "tags": ["a", "b"], "weight": 0.5,
      "plugin": {"path": "bin/my-block", "sha256": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"},
      "ring": {"indirect": false}
    }},
    "console": {"con0": {
      "port": [{"a": {"socket": "a.sock", "filter": {"drop": "x"}}}, {"b": {}}],
      "ring": {"event_idx": false}
    }}
  }
}`

func TestGoodFileBecomesAModel(t *testing.T) {
	t.Parallel()
	for name, src := range map[string]string{"etc/vm.hcl": good, "etc/vm.json": goodJSON} {
		vm, err := config.Parse(t.Context(), []byte(src), config.Input{Path: name}, plugins(), config.Options{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := []any{vm.Name, vm.MemoryBytes, vm.VCPUs, vm.Machine, vm.Kernel, vm.Initrd, vm.Cmdline, strings.Join(vm.PluginDirs, " ")}
		want := []any{"demo", uint64(128 << 20), 2, "uml", "etc/linux", "/boot/initrd", "quiet", "etc/plugins"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: vm (-want +got):\n%s", name, diff)
		}
		d := vm.Devices[0]
		wantJSON := `{"block_size":4096,"cache":"writeback","path":"etc/disk.img","queues":1,"read_only":false,"tags":["a","b"],"timeout":2000000000,"weight":0.5}`
		if string(d.ConfigJSON) != wantJSON {
			t.Errorf("%s: block's settings are %s\nwant %s", name, d.ConfigJSON, wantJSON)
		}
		if d.Name != "vdz" || d.Plugin.Path != "etc/bin/my-block" || !strings.HasPrefix(d.Plugin.SHA256, "0123") || d.Withheld != virtio.FIndirectDesc {
			t.Errorf("%s: device is %+v", name, d)
		}
		d = vm.Devices[1]
		wantJSON = `{"port":[{"filter":[{"drop":"x"}],"name":"a","socket":"etc/a.sock"},{"name":"b"}]}`
		if string(d.ConfigJSON) != wantJSON || d.Withheld != virtio.FEventIdx {
			t.Errorf("%s: console's settings are %s (withheld %v)\nwant %s", name, d.ConfigJSON, d.Withheld, wantJSON)
		}
	}
}

func TestFlagsGiveTheSameModelAndComeOverAFile(t *testing.T) {
	t.Parallel()
	in := config.Input{Path: "etc/vm.hcl", Flags: config.Flags{
		Name: "other", Memory: "64M", Kernel: "vmlinux", PluginDirs: []string{"mine"},
		Devices: []config.DeviceFlag{
			config.BlockFlag("a,,b.img,read_only,block_size=1K,tags=x,tags=y,timeout=1s"),
			config.BlockFlag("path=c=d.img,tags=one,weight=1,ring.event_idx=false,ring.busy_poll=50us,plugin.path=p"),
			{Flag: "--device", Value: "console,port.z.socket=s,port.z.filter.drop=q,port.y.filter.1.drop=r"},
			config.ConsoleFlag("socket:s2,,x,port.p.backend=null"),
			config.ConsoleFlag("stdio"),
			config.ConsoleFlag("pty,port.q.socket=x"),
		},
	}}
	vm, err := config.Parse(t.Context(), []byte(good), in, plugins(), config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if vm.Name != "other" || vm.MemoryBytes != 64<<20 || vm.Kernel != "vmlinux" || vm.VCPUs != 2 || strings.Join(vm.PluginDirs, " ") != "mine etc/plugins" {
		t.Errorf("vm is %+v", vm)
	}
	var got []string
	for _, d := range vm.Devices[2:] {
		got = append(got, d.Name+" "+d.Plugin.Path+" "+d.Withheld.String()+" "+string(d.ConfigJSON))
	}
	want := []string{
		`vda  {} {"block_size":1024,"cache":"writeback","path":"a,b.img","queues":1,"read_only":true,"tags":["x","y"],"timeout":1000000000}`,
		`vdb p {29} {"block_size":512,"cache":"writeback","path":"c=d.img","queues":1,"read_only":false,"tags":["one"],"timeout":1500000000,"weight":1}`,
		`console0  {} {"port":[{"filter":[{"drop":"q"}],"name":"z","socket":"s"},{"filter":[{},{"drop":"r"}],"name":"y"}]}`,
		// A second --console is a port of the first one's device.
		`con1  {} {"port":[{"backend":"null","name":"p"},{"backend":"stdio","console":true,"name":"con2","stdio":"terminal"}],"socket":"s2,x"}`,
		// Unless it has ports of its own.
		`con3  {} {"backend":"pty","port":[{"name":"q","socket":"x"}]}`,
	}
	if vm.Devices[2].BusyPoll != 0 || vm.Devices[3].BusyPoll != 50*time.Microsecond {
		t.Errorf("busy polls are %v and %v, want 0 and 50us", vm.Devices[2].BusyPoll, vm.Devices[3].BusyPoll)
	}
	if vm.Devices[5].Terminal != "port.1.stdio" || vm.Devices[6].Terminal != "" {
		t.Errorf("the terminal is given to %q and %q", vm.Devices[5].Terminal, vm.Devices[6].Terminal)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
}

func TestLaterErrorsFindTheirLine(t *testing.T) {
	t.Parallel()
	vm, err := config.Parse(t.Context(), []byte(good), config.Input{Path: "vm.hcl"}, plugins(), config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ device, attribute, want string }{
		{"vdz", "path", "vm.hcl:12:"},
		{"vdz", "queues", "vm.hcl:11:"}, // not written: the device
		{"vdz", "ring.0.indirect", "vm.hcl:22:"},
		{"con0", "port.0.socket", "vm.hcl:27:"},
		{"con0", "port.0.name", "vm.hcl:26:"},
		{"con0", "port.1.socket", "vm.hcl:32:"},
		{"con0", "", "vm.hcl:25:"},
		{"gone", "", "x"},
	} {
		if got := vm.At(c.device, c.attribute, errors.New("x")).Error(); !strings.HasPrefix(got, c.want) {
			t.Errorf("At(%q, %q) = %q, want prefix %q", c.device, c.attribute, got, c.want)
		}
	}
	if got := vm.AtVM("kernel", errors.New("x")).Error(); !strings.HasPrefix(got, "vm.hcl:6:") {
		t.Errorf("AtVM = %q", got)
	}
	joined := config.Join(vm.At("vdz", "path", errors.New("one")), nil, vm.At("con0", "", errors.New("two")))
	if out := string(text(t, joined)); !strings.Contains(out, "One") || !strings.Contains(out, "Two") {
		t.Errorf("joined:\n%s", out)
	}
}

func TestUnreadableFilesAreRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	big := filepath.Join(dir, "big.hcl")
	if err := os.WriteFile(big, bytes.Repeat([]byte("# x\n"), 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		dir:                            "is a directory",
		filepath.Join(dir, "none.hcl"): "no such file",
		big:                            "larger than",
		"/dev/zero":                    "larger than",
	} {
		_, err := config.Load(t.Context(), config.Input{Path: path}, plugins(), config.Options{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Load(%s) = %v, want %q", path, err, want)
		}
	}
}

func TestInterruptIsNoMistakeInTheConfiguration(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := config.Parse(ctx, []byte(`device "bogus" "x" {}`), config.Input{Path: "x.hcl"}, plugins(), config.Options{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Parse = %v", err)
	}
}

func TestDeepNestingIsRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"x.hcl", "x.json"} {
		_, err := config.Parse(t.Context(), bytes.Repeat([]byte("a=[\n"), 50_000), config.Input{Path: name}, plugins(), config.Options{})
		if err == nil || !strings.Contains(err.Error(), ":65: Nested too deeply") {
			t.Errorf("%s: %.200v", name, err)
		}
	}
}

func TestSizesAndTheirText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int64{
		"0": 0, "4096": 4096, "4096B": 4096, "512M": 512 << 20, "512m": 512 << 20, "10GiB": 10 << 30, "10 GiB": 10 << 30,
		"1K": 1024, "1T": 1 << 40, "7PiB": 7 << 50, "9223372036854775807": 1<<63 - 1,
	} {
		if got, err := config.ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "M", "-1", "1.5G", "12Q", "5MB", "5iB", "9223372036854775808", "8192P", "0x10", "1 2"} {
		if got, err := config.ParseSize(in); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", in, got)
		}
	}
	for n, want := range map[int64]string{0: "0", 1023: "1023", 1024: "1KiB", 256 << 20: "256MiB", 1<<30 + 1: "1073741825"} {
		if got := config.FormatSize(n); got != want {
			t.Errorf("FormatSize(%d) = %q, want %q", n, got, want)
		}
	}
}
