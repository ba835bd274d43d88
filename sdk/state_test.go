package sdk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// keeping is a device with a state.
type keeping struct {
	env      *Env
	restored [][]byte
	refuse   error
	explode  bool
	order    []string
	onReset  func()
	onSet    func()
}

func (*keeping) Spec() Spec                                              { return Spec{QueueSizes: []uint16{8}} }
func (*keeping) HandleChain(context.Context, *Queue, *virtq.Chain) error { return nil }

func (k *keeping) SetFeatures(virtio.Features) error {
	k.order = append(k.order, "features")
	if k.onSet != nil {
		k.onSet()
	}
	return nil
}

func (k *keeping) RestoreState(b []byte) error {
	k.order = append(k.order, "restore")
	if k.explode {
		_ = b[len(k.restored)+len(b)]
	}
	k.restored = append(k.restored, b)
	return k.refuse
}

func (k *keeping) Reset() error {
	if k.onReset != nil {
		k.onReset()
	}
	return nil
}

// silent is a device that keeps nothing.
type silent struct{ scripted }

func stateful(t *testing.T, log hclog.Logger, dev func(*Env) Device) *deviceRuntime {
	t.Helper()
	d, err := define(Plugin[NoConfig]{
		Name: "x", Version: "1.0.0", Device: virtio.IDEntropy, State: true,
		New: func(env *Env, _ NoConfig) (Device, error) { return dev(env), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if log == nil {
		log = hclog.NewNullLogger()
	}
	rt := newRuntime(d, log)
	t.Cleanup(func() { _ = rt.Close(context.Background()) })
	return rt
}

// configured is an instance over region.
func configured(t *testing.T, region *os.File) (*deviceRuntime, *keeping) {
	t.Helper()
	k := &keeping{}
	rt := stateful(t, nil, func(env *Env) Device { k.env = env; return k })
	if _, err := rt.Configure(t.Context(), settingsWith(t, region)); err != nil {
		t.Fatal(err)
	}
	return rt, k
}

func settingsWith(t *testing.T, region *os.File) pluginrpc.Settings {
	t.Helper()
	fd, err := unix.FcntlInt(region.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return pluginrpc.Settings{DeviceName: "d", ConfigJSON: []byte("{}"), State: fd, Identity: [16]byte{1, 2}}
}

func regionFile(t *testing.T, size int64) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "state")
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func negotiate(t *testing.T, rt *deviceRuntime) {
	t.Helper()
	_, err := rt.SetFeatures(t.Context(), virtio.FVersion1)
	must(t, err)
}

func TestTheNextInstanceContinuesWithTheStateOnce(t *testing.T) {
	t.Parallel()
	region := regionFile(t, 64<<10)
	rt, a := configured(t, region)
	if !a.env.KeepsState() {
		t.Error("with a region, nothing is kept")
	}
	if a.env.Identity != [16]byte{1, 2} {
		t.Errorf("identity %x", a.env.Identity)
	}
	must(t, a.env.SaveState([]byte("too early"))) // nothing was negotiated
	negotiate(t, rt)
	must(t, a.env.SaveState([]byte("one")))
	state := bytes.Repeat([]byte("two"), 1000)
	must(t, a.env.SaveState(state))
	if len(a.restored) != 0 {
		t.Errorf("the first instance was given %q", a.restored)
	}

	rt, b := configured(t, region) // the first did not end in good order: it is not needed
	if len(b.restored) != 0 {
		t.Error("restored before the features are known")
	}
	must(t, b.env.SaveState([]byte("of one that has not taken over")))
	b.onSet = func() { must(t, b.env.SaveState([]byte("nor now"))) }
	negotiate(t, rt)
	negotiate(t, rt)
	if len(b.restored) != 1 || !bytes.Equal(b.restored[0], state) || strings.Join(b.order, " ") != "features restore features" {
		t.Errorf("%v: restored %q", b.order, b.restored)
	}
	b.onSet = nil
	negotiate(t, rt)

	rt, c := configured(t, region)
	negotiate(t, rt)
	if len(c.restored) != 1 || string(c.restored[0]) != "nor now" { // the second SetFeatures' save counted
		t.Errorf("third: restored %q", c.restored)
	}
}

func TestTheDriversResetForgetsTheState(t *testing.T) {
	t.Parallel()
	region := regionFile(t, 64<<10)
	rt, a := configured(t, region)
	negotiate(t, rt)
	must(t, a.env.SaveState([]byte("one")))
	must(t, a.env.SaveState([]byte("two")))
	a.onReset = func() { must(t, a.env.SaveState([]byte("while it is reset"))) }
	must(t, rt.Reset(t.Context()))
	must(t, a.env.SaveState([]byte("late")))
	negotiate(t, rt)
	if len(a.restored) != 0 {
		t.Errorf("restored after a reset: %q", a.restored)
	}
	rt, b := configured(t, region)
	negotiate(t, rt)
	if len(b.restored) != 0 {
		t.Errorf("the next instance was given %q", b.restored)
	}
	must(t, b.env.SaveState([]byte("anew")))
	rt, c := configured(t, region)
	negotiate(t, rt)
	if len(c.restored) != 1 || string(c.restored[0]) != "anew" {
		t.Errorf("after it: %q", c.restored)
	}
}

func TestAStateThatCannotBeRestoredRefusesTheFeatures(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*keeping){
		"format 7 is unknown": func(k *keeping) { k.refuse = errors.New("format 7 is unknown") },
		"panicked":            func(k *keeping) { k.explode = true },
	} {
		region := regionFile(t, 64<<10)
		rt, a := configured(t, region)
		negotiate(t, rt)
		must(t, a.env.SaveState([]byte("of another version")))
		rt, b := configured(t, region)
		spoil(b)
		for range 2 { // until it is reset
			if _, err := rt.SetFeatures(t.Context(), virtio.FVersion1); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %v", name, err)
			}
		}
		must(t, b.env.SaveState([]byte("defaults"))) // must not take its place
		rt2, c := configured(t, region)
		negotiate(t, rt2)
		if len(c.restored) != 1 || string(c.restored[0]) != "of another version" {
			t.Errorf("%s: the state is %q after it", name, c.restored)
		}
		must(t, rt.Reset(t.Context()))
		negotiate(t, rt)
	}
}

func TestAGarbageRegionIsIgnoredAndTold(t *testing.T) {
	t.Parallel()
	region := regionFile(t, 64<<10)
	garbage := bytes.Repeat([]byte{0x5a}, 64<<10)
	if _, err := region.WriteAt(garbage, 0); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	k := &keeping{}
	rt := stateful(t, hclog.New(&hclog.LoggerOptions{Output: &log}), func(env *Env) Device { k.env = env; return k })
	_, err := rt.Configure(t.Context(), settingsWith(t, region))
	must(t, err)
	negotiate(t, rt)
	if len(k.restored) != 0 || !strings.Contains(log.String(), "what nobody saved") {
		t.Errorf("restored %q, log %q", k.restored, log.String())
	}
	must(t, k.env.SaveState([]byte("good")))
	rt, b := configured(t, region)
	negotiate(t, rt)
	if len(b.restored) != 1 || string(b.restored[0]) != "good" {
		t.Errorf("after it: %q", b.restored)
	}
}

// Whatever becomes of Configure, the descriptor is closed: the other end of a pipe tells.
func TestAWrongRegionIsRefusedAndClosed(t *testing.T) {
	t.Parallel()
	keeps := func(env *Env) Device { return &keeping{env: env} }
	for name, tc := range map[string]struct {
		dev  func(*Env) Device
		size int64 // 0: a pipe
		says string
	}{
		"a pipe":           {keeps, 0, "want a memfd of"},
		"too small":        {keeps, stateRegionMin - 1, "4095 bytes"},
		"too large":        {keeps, stateRegionMax + 1, "1048577 bytes"},
		"no StateRestorer": {func(*Env) Device { return &silent{} }, 64 << 10, "no StateRestorer"},
	} {
		rt := stateful(t, nil, tc.dev)
		s := pluginrpc.Settings{DeviceName: "d", ConfigJSON: []byte("{}")}
		r, w, err := os.Pipe()
		must(t, err)
		if tc.size == 0 {
			s.State, err = unix.FcntlInt(w.Fd(), unix.F_DUPFD_CLOEXEC, 3)
			must(t, err)
		} else {
			s.State = settingsWith(t, regionFile(t, tc.size)).State
		}
		must(t, w.Close())
		if _, err := rt.Configure(t.Context(), s); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v: want %q", name, err, tc.says)
		}
		if n, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("%s: the descriptor is still open: %d, %v", name, n, err)
		}
		must(t, r.Close())
	}
}

func TestSaveStateTellsMistakes(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		state  bool
		region int64
		bytes  int
		says   string
	}{
		"too long":                {true, 64 << 10, MaxStateBytes + 1, "want at most 32752"},
		"too long for the region": {true, 4096, 2048 - 15, "has room for 2032"},
		"not declared":            {false, 0, 1, "Plugin.State"},
		"the longest":             {true, 64 << 10, MaxStateBytes, ""},
		"no region":               {true, 0, 5, ""},
	} {
		k := &keeping{}
		d, err := define(Plugin[NoConfig]{
			Name: "x", Version: "1.0.0", Device: virtio.IDEntropy, State: tc.state,
			New: func(env *Env, _ NoConfig) (Device, error) { k.env = env; return k, nil },
		})
		must(t, err)
		rt := newRuntime(d, hclog.NewNullLogger())
		s := pluginrpc.Settings{DeviceName: "d", ConfigJSON: []byte("{}")}
		if tc.region > 0 {
			s = settingsWith(t, regionFile(t, tc.region))
		}
		_, err = rt.Configure(t.Context(), s)
		must(t, err)
		negotiate(t, rt)
		if k.env.KeepsState() != (tc.region > 0) {
			t.Errorf("%s: kept: %t", name, k.env.KeepsState())
		}
		err = k.env.SaveState(make([]byte, tc.bytes))
		if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v: want %q", name, err, tc.says)
		}
		must(t, rt.Close(t.Context()))
		if err := k.env.SaveState([]byte{1}); tc.state && err != nil { // from a goroutine that is late
			t.Errorf("%s: after Close: %v", name, err)
		}
	}
	if err := (&Env{}).SaveState(make([]byte, MaxStateBytes+1)); err == nil {
		t.Error("an Env of a test takes anything")
	}
	if err := (&Env{}).SaveState(nil); err != nil || (&Env{}).KeepsState() {
		t.Error(err)
	}
}

// A launcher may give a region to whom it need not.
func TestAPluginThatKeepsNothingClosesTheRegion(t *testing.T) {
	t.Parallel()
	rt := runtimeOf(t, &scripted{})
	r, w, err := os.Pipe()
	must(t, err)
	fd, err := unix.FcntlInt(w.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	must(t, errors.Join(err, w.Close()))
	_, err = rt.Configure(t.Context(), pluginrpc.Settings{DeviceName: "d", ConfigJSON: []byte("{}"), State: fd})
	must(t, err)
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Error("the descriptor is still open:", err)
	}
	must(t, r.Close())
}

func TestTheCapabilityIsDeclared(t *testing.T) {
	t.Parallel()
	for _, state := range []bool{false, true} {
		p := Plugin[NoConfig]{Name: "x", Version: "1.0.0", Device: virtio.IDEntropy, State: state, New: func(*Env, NoConfig) (Device, error) { return mute{}, nil }}
		d, err := define(p)
		must(t, err)
		has := false
		for _, c := range d.description.GetCapabilities() {
			has = has || c == pluginv1.Capability_CAPABILITY_STATE
		}
		if has != state {
			t.Errorf("State %t: capability %t", state, has)
		}
	}
}

// Saves from several goroutines, resets and restores: for the race detector, on heap memory, where it sees all.
func TestSavesAtOnce(t *testing.T) {
	t.Parallel()
	mem := heapState(64 << 10)
	dev := &keeping{}
	for round := range 20 {
		k := &stateKeeper{declared: true, region: newStateRegion(mem), unmap: func() error { return nil }}
		must(t, k.restore(dev, hclog.NewNullLogger()))
		var wg sync.WaitGroup
		for n := range uint64(4) {
			wg.Go(func() {
				for i := range uint64(50) {
					b := binary.NativeEndian.AppendUint64(nil, n<<32|i)
					if err := k.save(bytes.Repeat(b, int(i)+1)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Go(func() {
			if round%4 == 3 {
				k.forget()
			}
		})
		wg.Wait()
		must(t, k.close())
	}
	for _, b := range dev.restored {
		if len(b)%8 != 0 || !bytes.Equal(b, bytes.Repeat(b[:8], len(b)/8)) {
			t.Errorf("a mix: %x", b)
		}
	}
	if len(dev.restored) < 10 {
		t.Errorf("restored %d times: nothing is tested", len(dev.restored))
	}
}
