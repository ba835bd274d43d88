package devicetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func describeIsConstant(t *runner) {
	target := t.opened()
	check := func(when string) {
		ctx, cancel := t.limited()
		defer cancel()
		d, err := target.Describe(ctx)
		t.must("Describe", err)
		if !proto.Equal(d, t.desc) {
			t.Errorf("Describe %s: it answers %v, and before %v", when, d, t.desc)
		}
	}
	if !slices.Contains(t.desc.GetApiVersions(), pluginrpc.APIVersion) {
		t.Errorf("Describe: API versions %v: want %d among them", t.desc.GetApiVersions(), pluginrpc.APIVersion)
	}
	check("again")
	t.configure(target)
	check("once configured")
}

// describeProgram compares the argument describe with the call.
func describeProgram(t *runner) {
	p, ok := t.opened().(*program)
	if !ok {
		t.Skipf("only of a program")
	}
	ctx, cancel := t.limited()
	defer cancel()
	var texts [2][]byte
	for i := range texts {
		cmd := exec.CommandContext(ctx, p.path, "describe") //nolint:gosec // G204: the program to be tested
		cmd.Env = p.env
		out, err := cmd.Output()
		t.must("the argument describe", err)
		texts[i] = out
	}
	d, err := pluginrpc.ParseDescription(texts[0])
	t.must("the argument describe", err)
	if !proto.Equal(d, t.desc) {
		t.Errorf("the argument describe prints %v, and the call answers %v", d, t.desc)
	}
	if !bytes.Equal(texts[0], texts[1]) {
		t.Errorf("the argument describe prints other bytes each time")
	}
}

func configureOnce(t *runner) {
	target := t.opened()
	offer := t.configure(target)
	if !offer.Features.Has(virtio.FVersion1) {
		t.Errorf("Configure: features %v lack VIRTIO_F_VERSION_1", offer.Features)
	}
	for i, n := range offer.QueueSizes {
		if !pluginrpc.ValidQueueSize(uint32(n)) {
			t.Errorf("Configure: queue %d has size %d: no power of two up to %d", i, n, virtio.QueueSizeMax)
		}
	}
	ctx, cancel := t.limited()
	defer cancel()
	_, err := target.Configure(ctx, t.prepared.settings)
	t.refused("Configure again", err, pluginrpc.ErrState)
	if _, err := target.ReadConfig(ctx); err != nil {
		t.Errorf("ReadConfig after a refused Configure: %w", err)
	}
}

func configureStrict(t *runner) {
	for what, text := range map[string]string{
		"a member that the schema has not": `"no_such_setting":1,`,
		"no JSON":                          `,,`,
	} {
		target := t.opened()
		s := t.prepared.settings
		s.ConfigJSON = bytes.Replace(s.ConfigJSON, []byte("{"), []byte("{"+text), 1)
		s.ConfigJSON = bytes.Replace(s.ConfigJSON, []byte(",}"), []byte("}"), 1)
		ctx, cancel := t.limited()
		defer cancel()
		_, err := target.Configure(ctx, s)
		t.refused("Configure: "+what, err, pluginrpc.ErrInvalid)
		if _, err := target.Describe(ctx); err != nil {
			t.Errorf("Describe after a refused Configure: %w", err)
		}
	}
}

// outOfOrder wants every call of the table to be refused with ErrState.
func (t *runner) outOfOrder(when string, calls map[string]func(context.Context) error) {
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		ctx, cancel := t.limited()
		t.refused(name+" "+when, calls[name](ctx), pluginrpc.ErrState)
		cancel()
	}
}

func orderUnconfigured(t *runner) {
	target := t.opened()
	m := &machine{t: t, target: target, size: defaultSize, offer: pluginrpc.Offer{QueueSizes: []uint16{defaultSize}, Features: virtio.FVersion1}}
	m.makeMemory(layout{})
	m.makeQueues()
	t.outOfOrder("before Configure", map[string]func(context.Context) error{
		"SetFeatures":  func(ctx context.Context) error { _, err := target.SetFeatures(ctx, virtio.FVersion1); return err },
		"AttachMemory": func(ctx context.Context) error { return target.AttachMemory(ctx, m.regions) },
		"StartQueue":   func(ctx context.Context) error { _, err := target.StartQueue(ctx, m.queues[0].request(0)); return err },
		"StopQueue":    func(ctx context.Context) error { _, err := target.StopQueue(ctx, 0); return err },
		"WriteConfig":  func(ctx context.Context) error { _, err := target.WriteConfig(ctx, 0, nil); return err },
		"Reset":        target.Reset,
		"Pause":        target.Pause,
		"Resume":       target.Resume,
	})
	ctx, cancel := t.limited()
	defer cancel()
	if err := target.Health(ctx); err != nil {
		t.Errorf("Health before Configure: %w", err)
	}
	if _, err := target.Statistics(ctx); err != nil {
		t.Errorf("Statistics before Configure: %w", err)
	}
	t.configure(target)
}

func orderNotReady(t *runner) {
	target := t.opened()
	m := &machine{t: t, target: target, size: defaultSize, offer: t.configure(target)}
	if len(m.offer.QueueSizes) == 0 {
		t.Skipf("the device has no queues")
	}
	m.features = virtio.FVersion1
	m.makeMemory(layout{})
	m.makeQueues()
	start := map[string]func(context.Context) error{
		"StartQueue": func(ctx context.Context) error { _, err := target.StartQueue(ctx, m.queues[0].request(0)); return err },
	}
	t.outOfOrder("without features and memory", start)
	m.attach()
	t.outOfOrder("without features", start)

	other := t.opened()
	t.configure(other)
	m.target, target = other, other
	m.negotiate()
	t.outOfOrder("without memory", start)
	m.attach()
	m.startAll()
	m.stopAll()
}

func orderRunning(t *runner) {
	m := t.plainMachine()
	if len(m.queues) == 0 {
		t.Skipf("the device has no queues")
	}
	calls := map[string]func(context.Context) error{
		"SetFeatures":  func(ctx context.Context) error { _, err := m.target.SetFeatures(ctx, m.features); return err },
		"AttachMemory": func(ctx context.Context) error { return m.target.AttachMemory(ctx, m.regions) },
		"StartQueue": func(ctx context.Context) error {
			_, err := m.target.StartQueue(ctx, m.queues[0].request(0))
			return err
		},
	}
	t.outOfOrder("while queues run", calls)
	m.works()
	m.stopAll()
	delete(calls, "StartQueue")
	for name, call := range calls {
		ctx, cancel := t.limited()
		if err := call(ctx); err != nil {
			t.Errorf("%s once all queues have stopped: %w", name, err)
		}
		cancel()
	}
}

func featuresSubset(t *runner) {
	target := t.opened()
	offer := t.configure(target)
	set := func(f virtio.Features) error {
		ctx, cancel := t.limited()
		defer cancel()
		_, err := target.SetFeatures(ctx, f)
		return err
	}
	for _, f := range []virtio.Features{offer.Features, virtio.FVersion1, offer.Features} {
		t.must(fmt.Sprintf("SetFeatures %v of %v", f, offer.Features), set(f))
	}
	refused := 0
	for bit := range 64 {
		if alien := virtio.Features(1) << bit; !offer.Features.Has(alien) {
			refused++
			t.refused(fmt.Sprintf("SetFeatures with bit %d, which was not offered", bit), set(offer.Features|alien), pluginrpc.ErrInvalid)
		}
	}
	if refused == 0 {
		t.Errorf("Configure: it offers all 64 bits")
	}
	t.must("SetFeatures after refused ones", set(offer.Features))
}

func configSpace(t *runner) {
	target := t.opened()
	offer := t.configure(target)
	ctx, cancel := t.limited()
	defer cancel()
	space, err := target.ReadConfig(ctx)
	t.must("ReadConfig", err)
	n := len(offer.Config)
	length := func(what string, b []byte) {
		if len(b) != n {
			t.Errorf("%s: a configuration space of %d bytes: Configure answered %d", what, len(b), n)
		}
	}
	length("ReadConfig", space)
	b, err := target.SetFeatures(ctx, offer.Features)
	t.must("SetFeatures", err)
	length("SetFeatures", b)
	for _, w := range []struct{ at, n int }{{n, 1}, {max(0, n-1), 2}, {0, n + 1}, {pluginrpc.MaxConfigBytes, 0}, {n + 1, 0}} {
		if w.at == n && w.n == 0 {
			continue
		}
		_, err := target.WriteConfig(ctx, w.at, make([]byte, w.n))
		t.refused(fmt.Sprintf("WriteConfig: %d bytes at %d of a space of %d", w.n, w.at, n), err, pluginrpc.ErrInvalid)
	}
	if n > 0 { // what is there already; a device may refuse what lies outside its writable fields
		switch b, err := target.WriteConfig(ctx, 0, space); {
		case err == nil:
			length("WriteConfig", b)
		case !errors.Is(err, pluginrpc.ErrInvalid) && !errors.Is(err, pluginrpc.ErrFailed):
			t.Errorf("WriteConfig of what was read: %w: want it done or refused", err)
		}
	}
	after, err := target.ReadConfig(ctx)
	t.must("ReadConfig after refused writes", err)
	length("ReadConfig after refused writes", after)
}

func memoryRefused(t *runner) {
	m := t.newMachine(0, defaultSize)
	bad := func(what string, change func(r []guestmem.MapRegion)) {
		r := slices.Clone(m.regions)
		change(r)
		ctx, cancel := t.limited()
		defer cancel()
		t.refused("AttachMemory: "+what, m.target.AttachMemory(ctx, r), pluginrpc.ErrInvalid)
	}
	bad("regions not in ascending order", func(r []guestmem.MapRegion) { r[0], r[1] = r[1], r[0] })
	bad("regions that overlap", func(r []guestmem.MapRegion) { r[1].Start -= guestmem.PageSize })
	bad("a region past the end of its file", func(r []guestmem.MapRegion) { r[2].Size = 1 << 40 })
	bad("an offset past the end of the file", func(r []guestmem.MapRegion) { r[2].Offset = 1 << 40 })
	bad("an empty region", func(r []guestmem.MapRegion) { r[2].Size = 0 })
	bad("a region that wraps the address space", func(r []guestmem.MapRegion) { r[2].Start = ^guestmem.GPA(0) &^ 0xfff })
	m.attach()
	m.startAll()
	m.works()
}

func memoryReplaced(t *runner) {
	m := t.plainMachine()
	m.works()
	m.stopAll()
	old, oldMem := m.file, m.mem
	m.makeMemory(layout{shift: 0x4000_0000})
	m.attach()
	var st unix.Stat_t
	t.must("fstat", unix.Fstat(int(old.Fd()), &st))
	t.must("unmap", oldMem.Close())
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", m.target.PID()))
	if err == nil && strings.Contains(string(maps), fmt.Sprintf(" %d ", st.Ino)) {
		t.Errorf("AttachMemory: the former table is still mapped")
	}
	m.queues = nil
	m.makeQueues()
	m.startAll()
	m.works()
	m.stopAll()
}

// memoryBorders sends buffers that cross from one region to the next, whose bytes lie apart in the file.
func memoryBorders(t *runner) {
	m := t.plainMachine()
	q := m.answering(nil)
	if q == nil {
		t.Skipf("no queue has to complete what is sent")
	}
	border := m.regions[1].Start
	for _, b := range []driver.Buffer{{Addr: border - 10, Len: 20}, {Addr: border - 1, Len: 2}, {Addr: border - 4096, Len: 8192}} {
		for _, write := range []bool{false, true} {
			fill, err := m.mem.Append(nil, b.Addr-1, b.Len+2)
			t.must("guest memory", err)
			for _, piece := range fill {
				for i := range piece {
					piece[i] = canary
				}
			}
			f := flying{pattern: canary}
			bs := []driver.Buffer{b}
			var head uint16
			if write {
				f.room = b.Len
				head, _ = q.ring.Add(nil, bs)
			} else {
				head, _ = q.ring.Add(bs, nil)
			}
			q.flight[head] = f
			q.publish()
			q.settle()
			if after := append(slices.Clone(fill[0][:1]), fill[len(fill)-1][len(fill[len(fill)-1])-1]); after[0] != canary || after[1] != canary {
				t.Errorf("queue %d: the device wrote beside a buffer of %d bytes that crosses regions", q.index, b.Len)
			}
			if !write && bytes.Count(slices.Concat(fill...), []byte{canary}) != int(b.Len)+2 {
				t.Errorf("queue %d: the device wrote to a device-readable buffer that crosses regions (2.7.5.1)", q.index)
			}
		}
	}
	m.stopAll()
}

func healthWell(t *runner) {
	m := t.plainMachine()
	m.works()
	begin := time.Now()
	m.alive()
	if d := time.Since(begin); d > time.Second {
		t.Errorf("Health: it took %v: it must answer at once", d)
	}
}

func commandsAnswered(t *runner) {
	target := t.opened()
	t.configure(target)
	command := func(name, args string) ([]byte, error) {
		ctx, cancel := t.limited()
		defer cancel()
		return target.Command(ctx, name, []byte(args))
	}
	// A plugin without commands lacks the call: then it may say that instead.
	_, err := command("no_such_command", "{}")
	if !errors.Is(err, pluginrpc.ErrUnsupported) || len(t.desc.GetCommands()) > 0 {
		t.refused("a command that Describe does not list", err, pluginrpc.ErrInvalid)
	}
	for _, c := range t.desc.GetCommands() {
		_, err := command(c.GetName(), `{"no_such_argument":1}`)
		t.refused("command "+c.GetName()+" with an unknown argument", err, pluginrpc.ErrInvalid)
		_, err = command(c.GetName(), `no JSON`)
		t.refused("command "+c.GetName()+" with what is no JSON", err, pluginrpc.ErrInvalid)
		needs := false
		for _, a := range c.GetArguments().GetAttributes() {
			needs = needs || a.GetRequired()
		}
		result, err := command(c.GetName(), "{}")
		switch {
		case needs:
			t.refused("command "+c.GetName()+" without the arguments that it needs", err, pluginrpc.ErrInvalid)
		case err == nil && (!json.Valid(result) || !bytes.HasPrefix(bytes.TrimSpace(result), []byte("{"))):
			t.Errorf("command %s: result %q: want one JSON object", c.GetName(), result)
		case errors.Is(err, pluginrpc.ErrUnsupported), errors.Is(err, pluginrpc.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
			t.Errorf("command %s: %w: want an answer or a reason", c.GetName(), err)
		}
	}
	ctx, cancel := t.limited()
	defer cancel()
	if err := target.Health(ctx); err != nil {
		t.Errorf("Health after the commands: %w", err)
	}
}
