package vhostuser

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/virtio"
)

// Two regions at different offsets of user, guest-physical and file space, as real front-ends have.
const (
	mib   = 1 << 20
	user0 = 0x7f0000000000
	user1 = 0x7e0000000000
	gpa1  = 1 << 32
)

func twoRegions() []MemRegion {
	return []MemRegion{
		{GPA: 0, Size: mib, UserAddr: user0, MmapOffset: 0},
		{GPA: gpa1, Size: mib, UserAddr: user1, MmapOffset: mib},
	}
}

func addr(i uint32) VringAddr {
	return VringAddr{Index: i, Desc: user1 + 0x1000, Avail: user1 + 0x2000, Used: user0 + 0x3000, Log: ^uint64(0)}
}

// negotiate does what comes before memory and rings.
func (f *frontend) negotiate() {
	f.t.Helper()
	f.send(ReqSetOwner, 0, nil)
	f.u64(ReqGetFeatures)
	p := f.u64(ReqGetProtocolFeatures)
	f.ok(ReqSetProtocolFeatures, EncodeU64(p)) // acknowledged already: so User-Mode Linux expects
	f.ok(ReqSetFeatures, EncodeU64(accepted))
}

const accepted = uint64(virtio.FVersion1) | FProtocolFeatures

// step is one message of a set-up.
type step struct {
	r       Request
	payload []byte
	fds     []int
}

func ringSteps(t *testing.T, i uint32) map[string]step {
	t.Helper()
	file := memfd(t, 2*mib)
	return map[string]step{
		"memory":   {ReqSetMemTable, EncodeMemTable(twoRegions()), []int{file, file}},
		"features": {ReqSetFeatures, EncodeU64(accepted), nil},
		"num":      {ReqSetVringNum, VringState{i, 256}.Encode(), nil},
		"base":     {ReqSetVringBase, VringState{i, 0}.Encode(), nil},
		"addr":     {ReqSetVringAddr, addr(i).Encode(), nil},
		"call":     {ReqSetVringCall, EncodeU64(uint64(i)), []int{eventfd(t)}},
		"kick":     {ReqSetVringKick, EncodeU64(uint64(i)), []int{eventfd(t)}},
		"enable":   {ReqSetVringEnable, VringState{i, 1}.Encode(), nil},
	}
}

func (f *frontend) startRing(t *testing.T, i uint32) {
	t.Helper()
	s := ringSteps(t, i)
	for _, name := range []string{"memory", "call", "num", "base", "addr", "kick", "enable"} {
		f.ok(s[name].r, s[name].payload, s[name].fds...)
	}
}

func TestUserModeLinuxSetsUpAndStops(t *testing.T) {
	t.Parallel()
	d := newFake(256)
	f := connect(t, d, Options{})
	if got := f.u64(ReqGetFeatures); got != uint64(d.features)|FProtocolFeatures {
		t.Errorf("features %#x", got)
	}
	if got := f.u64(ReqGetProtocolFeatures); got != 0x229 {
		t.Errorf("protocol features %#x: want MQ, REPLY_ACK, BACKEND_REQ, CONFIG and no INBAND_NOTIFICATIONS", got)
	}
	f.negotiate()
	// User-Mode Linux sends room for two regions, with one of them used.
	mem := append(EncodeMemTable([]MemRegion{{GPA: 0x8b7000, Size: mib, UserAddr: 0x8b7000, MmapOffset: 0x1000}}), make([]byte, 32)...)
	f.ok(ReqSetMemTable, mem, memfd(t, 2*mib))
	f.ok(ReqSetVringCall, EncodeU64(0), eventfd(t))
	f.ok(ReqSetVringNum, VringState{0, 256}.Encode())
	f.ok(ReqSetVringBase, VringState{0, 0}.Encode())
	f.ok(ReqSetVringAddr, VringAddr{Desc: 0x8b8000, Used: 0x8ba000, Avail: 0x8b9000}.Encode())
	f.ok(ReqSetVringKick, EncodeU64(0), eventfd(t))
	if d.runs() {
		t.Error("ring runs before it is enabled")
	}
	f.ok(ReqSetVringEnable, VringState{0, 1}.Encode())
	want := []string{"features {32}", "memory 1", "queue 0 size 256 at 0x8b8000 0x8b9000 0x8ba000", "start 0 base 0"}
	if got := d.took(); !slices.Equal(got, want) {
		t.Errorf("device saw %q: want %q", got, want)
	}
	f.ok(ReqSetVringEnable, VringState{0, 0}.Encode())
	f.ok(ReqSetVringEnable, VringState{0, 1}.Encode())
	if got := d.took(); !slices.Contains(got, "start 0 base 7") || slices.Contains(got, "reset") {
		t.Errorf("after disable and enable the device saw %q: want a start at base 7, no reset", got)
	}
	if err := f.end(); err != nil {
		t.Errorf("orderly end: %v", err)
	}
	if got := d.took(); !slices.Equal(got, []string{"stop 0", "release"}) {
		t.Errorf("at the end the device saw %q", got)
	}
}

func TestRingStartsWhateverTheOrder(t *testing.T) {
	t.Parallel()
	names := []string{"memory", "features", "num", "base", "addr", "call", "kick", "enable"}
	for n := range len(names) {
		order := append(slices.Clone(names[n:]), names[:n]...)
		for _, order := range [][]string{order, reversed(order)} {
			t.Run(strings.Join(order, "-"), func(t *testing.T) {
				t.Parallel()
				d := newFake(256)
				f := connect(t, d, Options{})
				f.ok(ReqSetProtocolFeatures, EncodeU64(uint64(ProtoReplyAck)))
				steps := ringSteps(t, 0)
				for _, name := range order {
					if name == "base" && d.runs() {
						continue // it is 0 anyway
					}
					if d.runs() && name != "call" {
						t.Fatalf("ring runs before %s", name)
					}
					f.ok(steps[name].r, steps[name].payload, steps[name].fds...)
				}
				if !d.runs() {
					t.Error("ring does not run")
				}
				if want := "queue 0 size 256 at 0x100001000 0x100002000 0x3000"; !slices.Contains(d.took(), want) {
					t.Errorf("areas not translated: want %q", want)
				}
				if err := f.end(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func reversed(s []string) []string {
	s = slices.Clone(s)
	slices.Reverse(s)
	return s
}

func TestGetVringBaseStopsUntilTheNextKick(t *testing.T) {
	t.Parallel()
	d := newFake(256, 256)
	f := connect(t, d, Options{})
	f.negotiate()
	f.startRing(t, 1)
	got, err := DecodeVringState(f.ask(ReqGetVringBase, 0, VringState{Index: 1}.Encode()))
	if err != nil || got != (VringState{1, 7}) || d.runs() {
		t.Errorf("base %+v, error %v, running %v: want 7, stopped", got, err, d.runs())
	}
	f.ok(ReqSetVringEnable, VringState{1, 1}.Encode())
	if d.runs() {
		t.Error("ring runs again without a kick descriptor")
	}
	d.took()
	f.ok(ReqSetVringKick, EncodeU64(1), eventfd(t))
	if got := d.took(); !slices.Contains(got, "start 1 base 7") || slices.Contains(got, "reset") {
		t.Errorf("device saw %q: want it to go on at 7 without a reset", got)
	}
	// A ring that was never set up answers too: QEMU asks for all.
	if got, err := DecodeVringState(f.ask(ReqGetVringBase, 0, VringState{Index: 0}.Encode())); err != nil || got != (VringState{0, 0}) {
		t.Errorf("base %+v, error %v: want 0", got, err)
	}
}

func TestANewDriverResetsTheDevice(t *testing.T) {
	t.Parallel()
	d := newFake(256)
	f := connect(t, d, Options{})
	f.negotiate()
	f.startRing(t, 0)
	f.ok(ReqSetVringEnable, VringState{0, 0}.Encode())
	d.took()
	f.ok(ReqSetFeatures, EncodeU64(accepted))
	f.startRing(t, 0) // from base 0: a driver that was loaded again
	got := d.took()
	r, s := slices.Index(got, "reset"), slices.Index(got, "start 0 base 0")
	if r < 0 || s < r || slices.Index(got, "features {32}") < r {
		t.Errorf("device saw %q: want reset, features again, start at 0", got)
	}
}

func TestWithoutProtocolFeaturesRingsBeginEnabledAndNothingIsAcknowledged(t *testing.T) {
	t.Parallel()
	d := newFake(256)
	f := connect(t, d, Options{})
	s := ringSteps(t, 0)
	f.send(ReqSetFeatures, FlagNeedReply, EncodeU64(uint64(virtio.FVersion1)))
	for _, name := range []string{"memory", "num", "addr", "kick"} {
		f.send(s[name].r, FlagNeedReply, s[name].payload, s[name].fds...)
	}
	if got := f.u64(ReqGetQueueNum); got != 1 { // the first reply of all is this one's
		t.Errorf("queues %d: want 1", got)
	}
	if !d.runs() {
		t.Error("ring does not run")
	}
}

func TestMemoryAndFeaturesMayChangeWhileRingsRun(t *testing.T) {
	t.Parallel()
	d := newFake(256)
	f := connect(t, d, Options{})
	f.negotiate()
	f.startRing(t, 0)
	d.took()
	file := memfd(t, 3*mib)
	more := append(twoRegions(), MemRegion{GPA: 2 << 32, Size: mib, UserAddr: 0x7d0000000000, MmapOffset: 2 * mib})
	f.ok(ReqSetMemTable, EncodeMemTable(more), file, file, file)
	if got := d.took(); !slices.Equal(got, []string{"memory 3"}) { // the device stops and starts its queues around it
		t.Errorf("device saw %q", got)
	}
	f.ok(ReqSetFeatures, EncodeU64(accepted|uint64(virtio.FEventIdx)))
	if got := d.took(); !slices.Equal(got[:2], []string{"stop 0", "features {29,32}"}) || !slices.Contains(got, "start 0 base 7") {
		t.Errorf("device saw %q: want stop, features, start", got)
	}
	f.send(ReqSetMemTable, FlagNeedReply, EncodeMemTable(more[:1]), file)
	if err := <-f.done; !errors.Is(err, ErrProtocol) {
		t.Errorf("a table without the running ring: %v", err)
	}
}

func TestConfigurationSpace(t *testing.T) {
	t.Parallel()
	d := newFake(256)
	f := connect(t, d, Options{})
	f.negotiate()
	for _, c := range []struct {
		off  uint32
		n    int
		want string
	}{{0, 4, "0123"}, {10, 6, "abcdef"}, {14, 4, "ef\x00\x00"}, {16, 2, "\x00\x00"}, {1 << 31, 1, "\x00"}, {0, 0, ""}, {^uint32(0), 4, "\x00\x00\x00\x00"}} {
		req := ConfigAccess{Offset: c.off, Data: make([]byte, c.n)}
		got, err := DecodeConfig(f.ask(ReqGetConfig, 0, req.Encode()))
		if err != nil || got.Offset != c.off || string(got.Data) != c.want {
			t.Errorf("%d bytes at %d: %q, %v: want %q", c.n, c.off, got.Data, err, c.want)
		}
	}
	f.ok(ReqSetConfig, ConfigAccess{Offset: 14, Data: []byte("XY")}.Encode())
	if string(d.ConfigSpace()) != "0123456789abcdXY" {
		t.Errorf("space %q", d.ConfigSpace())
	}
	if f.do(ReqSetConfig, ConfigAccess{Offset: 15, Data: []byte("XY")}.Encode()) == 0 {
		t.Error("a write past the end was acknowledged")
	}
	d.mu.Lock()
	d.refuse = errors.New("read-only")
	d.mu.Unlock()
	if f.do(ReqSetConfig, ConfigAccess{Data: []byte("Z")}.Encode()) == 0 {
		t.Error("a refused write was acknowledged")
	}
	d.mu.Lock()
	d.refuse = nil
	d.mu.Unlock()
	f.ok(ReqSetConfig, ConfigAccess{Data: []byte("Z")}.Encode()) // the session goes on
}

func TestConfigChangesAreTold(t *testing.T) {
	t.Parallel()
	d := newFake(256)
	f := connect(t, d, Options{})
	f.negotiate()
	a, b := pair(t)
	file, err := b.File()
	if err != nil {
		t.Fatal(err)
	}
	f.ok(ReqSetBackendReqFD, nil, int(file.Fd()))
	_, _ = file.Close(), b.Close()
	back := NewConn(a)
	defer func() { _ = back.Close() }()
	for range 3 {
		d.mu.Lock()
		d.onChange(nil)
		d.mu.Unlock()
		m, err := back.Receive()
		if err != nil || m.Request != BackendConfigChange || m.Flags != FlagVersion|FlagNeedReply || m.Size != 0 {
			t.Fatalf("message %+v, error %v", m, err)
		}
		f.u64(ReqGetFeatures) // is answered though our answer to the change is outstanding
		if err := back.Send(BackendConfigChange, replyFlags, EncodeU64(0)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.end(); err != nil {
		t.Error(err)
	}
	if _, err := back.Receive(); err == nil {
		t.Error("the back-end's descriptor is still open")
	}
}

func TestADisconnectEndsTheCallInWork(t *testing.T) {
	t.Parallel()
	d := newFake(256)
	d.stopBlock = make(chan struct{}) // a plugin that hangs
	f := connect(t, d, Options{EndTimeout: time.Millisecond})
	f.negotiate()
	f.startRing(t, 0)
	f.send(ReqGetVringBase, 0, VringState{}.Encode())
	_ = f.c.Close()
	select {
	case err := <-f.done:
		if err == nil {
			t.Error("nobody hears that the queue could not be stopped")
		}
	case <-time.After(time.Minute):
		t.Fatal("the session hangs with the plugin")
	}
}

// badInput are single messages that end the connection, after a ring was started.
func badInput(t *testing.T) map[string]step {
	t.Helper()
	file, kick := memfd(t, 2*mib), eventfd(t)
	table := func(change func([]MemRegion)) []byte {
		r := twoRegions()
		change(r)
		return EncodeMemTable(r)
	}
	huge := binary.NativeEndian.AppendUint64(nil, 1<<31)
	u := EncodeU64
	return map[string]step{
		"unknown request":        {Request(999), nil, nil},
		"request 0":              {Request(0), nil, nil},
		"not offered request":    {Request(31), make([]byte, 20), nil},
		"not negotiated reset":   {ReqResetDevice, nil, nil},
		"features short":         {ReqSetFeatures, make([]byte, 7), nil},
		"features long":          {ReqSetFeatures, make([]byte, 9), nil},
		"features not offered":   {ReqSetFeatures, u(1 << 50), nil},
		"protocol not offered":   {ReqSetProtocolFeatures, u(1 << 14), nil},
		"owner with payload":     {ReqSetOwner, u(1), nil},
		"owner with descriptor":  {ReqSetOwner, nil, []int{file}},
		"table empty":            {ReqSetMemTable, EncodeMemTable(nil), nil},
		"table cut":              {ReqSetMemTable, EncodeMemTable(twoRegions())[:50], []int{file, file}},
		"table huge":             {ReqSetMemTable, append(huge, make([]byte, 64)...), []int{file, file}},
		"table no payload":       {ReqSetMemTable, nil, nil},
		"table fd missing":       {ReqSetMemTable, EncodeMemTable(twoRegions()), []int{file}},
		"table no fd":            {ReqSetMemTable, EncodeMemTable(twoRegions()), nil},
		"table fd surplus":       {ReqSetMemTable, EncodeMemTable(twoRegions()), []int{file, file, file}},
		"table overlap gpa":      {ReqSetMemTable, table(func(r []MemRegion) { r[1].GPA = mib - 4096 }), []int{file, file}},
		"table overlap user":     {ReqSetMemTable, table(func(r []MemRegion) { r[1].UserAddr = user0 }), []int{file, file}},
		"table unaligned":        {ReqSetMemTable, table(func(r []MemRegion) { r[0].Size-- }), []int{file, file}},
		"table unaligned offset": {ReqSetMemTable, table(func(r []MemRegion) { r[1].MmapOffset = 8 }), []int{file, file}},
		"table wraps":            {ReqSetMemTable, table(func(r []MemRegion) { r[0].GPA = ^uint64(0) &^ 4095; r[0].Size = 8192 }), []int{file, file}},
		"table past its file":    {ReqSetMemTable, table(func(r []MemRegion) { r[1].Size = 2 * mib }), []int{file, file}},
		"table offset huge":      {ReqSetMemTable, table(func(r []MemRegion) { r[1].MmapOffset = ^uint64(0) &^ 4095 }), []int{file, file}},
		"table of eventfds":      {ReqSetMemTable, EncodeMemTable(twoRegions()), []int{kick, kick}},
		"ring 1 of 1":            {ReqSetVringNum, VringState{1, 256}.Encode(), nil},
		"ring huge":              {ReqSetVringEnable, VringState{1 << 31, 1}.Encode(), nil},
		"size no power of two":   {ReqSetVringNum, VringState{0, 100}.Encode(), nil},
		"size 0":                 {ReqSetVringNum, VringState{0, 0}.Encode(), nil},
		"size too big":           {ReqSetVringNum, VringState{0, 512}.Encode(), nil},
		"size 65536":             {ReqSetVringNum, VringState{0, 1 << 16}.Encode(), nil},
		"size while running":     {ReqSetVringNum, VringState{0, 128}.Encode(), nil},
		"base while running":     {ReqSetVringBase, VringState{0, 3}.Encode(), nil},
		"base too big":           {ReqSetVringBase, VringState{0, 1 << 16}.Encode(), nil},
		"addr while running":     {ReqSetVringAddr, VringAddr{Desc: user0, Avail: user0, Used: user0}.Encode(), nil},
		"addr short":             {ReqSetVringAddr, make([]byte, 39), nil},
		"enable 2":               {ReqSetVringEnable, VringState{0, 2}.Encode(), nil},
		"kick without fd":        {ReqSetVringKick, u(0), nil},
		"kick to poll":           {ReqSetVringKick, u(0x100), nil},
		"kick two fds":           {ReqSetVringKick, u(0), []int{kick, kick}},
		"kick nofd with fd":      {ReqSetVringCall, u(0x100), []int{kick}},
		"kick unknown bits":      {ReqSetVringKick, u(0x200), []int{kick}},
		"call of ring 9":         {ReqSetVringCall, u(9), []int{kick}},
		"get with fd":            {ReqGetFeatures, nil, []int{kick}},
		"config cut":             {ReqGetConfig, make([]byte, 11), nil},
		"config size lies":       {ReqGetConfig, append(binary.NativeEndian.AppendUint32(make([]byte, 4), 9999), make([]byte, 4)...), nil},
		"backend fd no socket":   {ReqSetBackendReqFD, nil, []int{kick}},
		"backend fd missing":     {ReqSetBackendReqFD, nil, nil},
	}
}

func TestBadInputEndsTheConnectionAndSaysWhy(t *testing.T) {
	t.Parallel()
	for name, bad := range badInput(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newFake(256)
			f := connect(t, d, Options{})
			f.negotiate()
			f.startRing(t, 0)
			f.send(bad.r, FlagNeedReply, bad.payload, bad.fds...)
			if m, err := f.c.Receive(); err == nil {
				t.Errorf("answered with %+v", m)
			}
			err := <-f.done
			if !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), bad.r.String()) {
				t.Errorf("error %v: want a violation that names %v", err, bad.r)
			}
			if calls := d.took(); d.runs() || calls[len(calls)-1] != "release" {
				t.Errorf("device not released: %q", calls)
			}
		})
	}
}

func TestRingsOutsideMemoryAreRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*VringAddr){
		"desc nowhere":          func(a *VringAddr) { a.Desc = 0x1000 },
		"desc past its region":  func(a *VringAddr) { a.Desc = user1 + mib - 256*16 + 16 },
		"avail past its region": func(a *VringAddr) { a.Avail = user1 + mib - 6 - 2*256 + 2 },
		"used past its region":  func(a *VringAddr) { a.Used = user0 + mib - 6 - 8*256 + 2 },
		"desc unaligned":        func(a *VringAddr) { a.Desc += 8 },
		"avail unaligned":       func(a *VringAddr) { a.Avail++ },
		"used unaligned":        func(a *VringAddr) { a.Used += 2 },
		"gpa instead of user":   func(a *VringAddr) { a.Desc = gpa1 },
		"wraps":                 func(a *VringAddr) { a.Desc = ^uint64(15) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newFake(256)
			f := connect(t, d, Options{})
			f.negotiate()
			s := ringSteps(t, 0)
			a := addr(0)
			change(&a)
			for _, n := range []string{"memory", "num", "kick"} {
				f.ok(s[n].r, s[n].payload, s[n].fds...)
			}
			f.ok(ReqSetVringAddr, a.Encode())
			f.send(ReqSetVringEnable, FlagNeedReply, VringState{0, 1}.Encode())
			if err := <-f.done; !errors.Is(err, ErrProtocol) {
				t.Errorf("error %v: want a violation", err)
			}
			if slices.ContainsFunc(d.took(), func(c string) bool { return strings.HasPrefix(c, "start") }) {
				t.Error("ring was started")
			}
		})
	}
}

func TestBrokenStreams(t *testing.T) {
	t.Parallel()
	long := AppendMessage(nil, ReqSetFeatures, FlagVersion, nil)
	binary.NativeEndian.PutUint32(long[8:], MaxPayload+1)
	for name, c := range map[string]struct {
		raw []byte
		bad bool
	}{
		"nothing":        {nil, false},
		"half a header":  {[]byte{1, 0, 0}, true},
		"half a payload": {AppendMessage(nil, ReqSetFeatures, FlagVersion, EncodeU64(0))[:15], true},
		"no payload":     {AppendMessage(nil, ReqSetFeatures, FlagVersion, EncodeU64(0))[:12], true},
		"version 2":      {AppendMessage(nil, ReqGetFeatures, 2, nil), true},
		"a reply":        {AppendMessage(nil, ReqGetFeatures, replyFlags, nil), true},
		"too long":       {long, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := connect(t, newFake(256), Options{})
			if _, err := f.c.sock.Write(c.raw); err != nil {
				t.Fatal(err)
			}
			if err := f.c.sock.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if err := <-f.done; (err != nil) != c.bad {
				t.Errorf("error %v: want one: %v", err, c.bad)
			}
		})
	}
}

func TestMessagesMayComeInPieces(t *testing.T) {
	t.Parallel()
	f := connect(t, newFake(256), Options{})
	raw := AppendMessage(nil, ReqSetFeatures, FlagVersion, EncodeU64(accepted))
	raw = AppendMessage(raw, ReqGetQueueNum, FlagVersion, nil)
	for _, b := range raw {
		if _, err := f.c.sock.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := f.c.Receive(); err != nil || m.Request != ReqGetQueueNum {
		t.Errorf("reply %+v, error %v", m, err)
	}
}

// openFDs counts this process's descriptors.
func openFDs(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestNoDescriptorIsLeaked(t *testing.T) { //nolint:paralleltest // it counts the process's descriptors
	bad := badInput(t)
	file := memfd(t, mib)
	many := make([]int, maxFDs)
	for i := range many {
		many[i] = file
	}
	bad["as many descriptors as possible"] = step{ReqSetOwner, nil, many}
	bad["none"] = step{ReqGetQueueNum, nil, nil}
	d := newFake(256)
	before := openFDs(t)
	for name, b := range bad {
		a, sock := pair(t)
		f := &frontend{t: t, c: NewConn(a), done: make(chan error, 1)}
		go func() { f.done <- Serve(t.Context(), sock, d, Options{}) }()
		kick, mem := eventfd(t), memfd(t, 2*mib)
		f.send(ReqSetMemTable, 0, EncodeMemTable(twoRegions()), mem, mem)
		f.send(ReqSetVringKick, 0, EncodeU64(0), kick)
		f.send(ReqSetVringCall, 0, EncodeU64(0), kick)
		f.send(ReqSetVringErr, 0, EncodeU64(0), kick)
		f.send(b.r, 0, b.payload, b.fds...)
		for range 2 * lookahead { // what waits unread is to be closed too
			_ = f.c.Send(ReqSetVringCall, FlagVersion, EncodeU64(0), kick)
		}
		_ = f.end()
		_, _ = unix.Close(kick), unix.Close(mem)
		if after := openFDs(t); after != before {
			t.Fatalf("%s: %d descriptors before, %d after", name, before, after)
		}
	}
}

func TestServerServesTheNextFrontEndAfterABadOne(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "vu") //nolint:usetesting // t.TempDir's names are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := newFake(256)
	s, err := Listen(filepath.Join(dir, "s"), d, Options{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context()) }()
	for _, bad := range []Request{999, 0, ReqGetFeatures} {
		f := &frontend{t: t, c: NewConn(dial(t, filepath.Join(dir, "s")))}
		if got := f.u64(ReqGetQueueNum); got != 1 {
			t.Errorf("queues %d", got)
		}
		f.send(bad, 0, bytes.Repeat([]byte{1}, 8))
		if _, err := f.c.Receive(); err == nil {
			t.Error("not closed")
		}
		_ = f.c.Close()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
