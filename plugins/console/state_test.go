package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// kept is a control protocol whose last saved state a test sees, with the driver's view of it.
type kept struct {
	*control
	last []byte
	open map[int]bool
}

func keepControl(c *control) *kept {
	k := &kept{control: c, open: map[int]bool{}}
	c.save = func(b []byte) { k.last = b }
	c.guest = func(i int, o bool) { k.open[i] = o }
	return k
}

// successor is a new instance that has the state of k.
func (k *kept) successor(t *testing.T) *kept {
	t.Helper()
	heard, ports, messages, err := parseState(k.last, len(k.ports))
	if err != nil {
		t.Fatal(err)
	}
	next := keepControl(threePorts())
	next.last = k.last
	next.restore(heard, ports, messages, true)
	return next
}

func threePorts() *control {
	return newControl([]controlPort{{console: true, cols: 80, rows: 25}, {name: "agent"}, {name: "log", console: true}})
}

func TestANewInstanceContinuesExactly(t *testing.T) {
	t.Parallel()
	a := keepControl(threePorts())
	for i := range a.ports {
		a.setHostOpen(i, true)
	}
	told(a.control, 0, virtio.ConsoleDeviceReady, 1)
	for i := range uint32(3) {
		told(a.control, i, virtio.ConsolePortReady, 1)
		told(a.control, i, virtio.ConsolePortOpen, 1)
	}
	told(a.control, 1, virtio.ConsolePortOpen, 0)
	for range 7 { // the driver has got some
		if _, _, ok := a.take(100); !ok {
			t.Fatal("too few messages")
		}
		a.sent()
	}
	a.resize(0, 132, 43)
	if _, _, ok := a.take(100); !ok { // and one is on its way
		t.Fatal("too few messages")
	}
	a.setHostOpen(2, false)

	b := a.successor(t)
	if !b.open[0] || b.open[1] || !b.open[2] || len(b.open) != 2 {
		t.Errorf("open: %v", b.open)
	}
	b.found() // the queues are in use: no news
	told(b.control, 2, virtio.ConsolePortOpen, 1)
	b.setHostOpen(0, true) // as its back-ends tell at once
	b.setHostOpen(1, false)
	b.setHostOpen(2, false)
	expect(t, b.control, "1:open=1", "2:console=1", "2:name=1 log", "2:open=1", "0:resize=0 [132 0 43 0]", "2:open=0", "1:open=0")
	if b.ports[0].cols != 132 || b.ports[0].rows != 43 {
		t.Errorf("port 0 is %d by %d", b.ports[0].cols, b.ports[0].rows)
	}
}

// A driver that has not said anything to the former instance has nothing open.
func TestANewInstanceTakesNoPortForOpenThatIsNot(t *testing.T) {
	t.Parallel()
	a := keepControl(threePorts())
	a.keep()
	b := a.successor(t)
	b.found()
	told(b.control, 1, virtio.ConsolePortOpen, 1)
	expect(t, b.control)
	if len(b.open) != 0 {
		t.Errorf("open: %v", b.open)
	}
	if in := newTestConsole(t, settings{Backend: "null", Multiport: true}); in.ctl.exact {
		t.Error("without a launcher that keeps states, there is no evidence")
	}
	c := keepControl(threePorts()) // one that saw the driver's reset
	c.reset()
	c.found()
	expect(t, c.control)
}

// Whenever an instance dies, the driver and the ports are as if it had not: only the message that was on its way may come twice.
func TestDeathsChangeNothing(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 7)) //nolint:gosec // a test
		steady, mortal := keepControl(threePorts()), keepControl(threePorts())
		steady.reset() // as drivers begin
		mortal.reset()
		mortal.keep()
		die := func() bool {
			if rnd.IntN(4) > 0 {
				return false
			}
			host := []bool{mortal.ports[0].hostOpen, mortal.ports[1].hostOpen, mortal.ports[2].hostOpen}
			mortal = mortal.successor(t)
			for i, open := range host { // its back-ends find what the former ones did
				mortal.setHostOpen(i, open)
			}
			return true
		}
		for range 60 {
			port, value := rnd.IntN(3), uint16(rnd.IntN(2)) //nolint:gosec // G115: small
			switch rnd.IntN(8) {
			case 0, 1, 2:
				events := []uint16{virtio.ConsoleDeviceReady, virtio.ConsolePortReady, virtio.ConsolePortReady, virtio.ConsolePortOpen, virtio.ConsolePortOpen, virtio.ConsolePortOpen}
				m := message{uint32(port), events[rnd.IntN(len(events))], value, nil}.bytes() //nolint:gosec // G115: small
				steady.handle(m)
				mortal.handle(m)
				if die() { // before the chain was finished: it comes again
					mortal.handle(m)
				}
			case 3:
				steady.setHostOpen(port, value == 1)
				mortal.setHostOpen(port, value == 1)
			case 4:
				steady.resize(port, value+80, 25)
				mortal.resize(port, value+80, 25)
			default:
				want, _, ok := steady.take(200)
				got, _, again := mortal.take(200)
				if cols := uint16(rnd.IntN(100)); cols > 50 { //nolint:gosec // G115: small
					steady.resize(port, cols, 1)
					mortal.resize(port, cols, 1)
				}
				if die() && ok {
					got, _, again = mortal.take(200)
				}
				steady.sent()
				mortal.sent()
				if len(want) > virtio.ConsoleControlSize && want[4] == virtio.ConsoleResize { // a later size may be told twice instead
					got, want = got[:virtio.ConsoleControlSize], want[:virtio.ConsoleControlSize]
				}
				if ok != again || !bytes.Equal(got, want) {
					t.Fatalf("seed %d: the driver is told %x, without deaths %x", seed, got, want)
				}
			}
			die()
			if !slices.Equal(steady.ports, mortal.ports) || steady.heard != mortal.heard {
				t.Fatalf("seed %d: ports %+v, without deaths %+v", seed, mortal.ports, steady.ports)
			}
			for i := range steady.ports {
				if steady.open[i] != mortal.open[i] {
					t.Fatalf("seed %d: port %d open %t, without deaths %t", seed, i, mortal.open[i], steady.open[i])
				}
			}
		}
		if !slices.Equal(script(drain(steady.control)), script(drain(mortal.control))) {
			t.Fatalf("seed %d: other messages wait", seed)
		}
	}
}

func TestTheLargestStateFits(t *testing.T) {
	t.Parallel()
	c := newControl(make([]controlPort, maxPorts))
	for i := range maxPorts {
		for n := range unsentMax {
			c.append(message{uint32(i), virtio.ConsolePortOpen, uint16(n), nil})
		}
	}
	c.sending = &c.unsent[0]
	b := c.state()
	if len(b) > sdk.MaxStateBytes {
		t.Errorf("%d bytes", len(b))
	}
	if _, _, messages, err := parseState(b, maxPorts); err != nil || len(messages) != maxPorts*unsentMax+1 {
		t.Errorf("%d messages, %v", len(messages), err)
	}
}

func TestAStateOfSomethingElseIsRefused(t *testing.T) {
	t.Parallel()
	a := keepControl(threePorts())
	told(a.control, 0, virtio.ConsoleDeviceReady, 1)
	good := a.last
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	for says, b := range map[string][]byte{
		"its format is not 1":           change(func(b []byte) []byte { b[0] = 2; return b }),
		"state of 0 bytes":              {},
		"state of 3 bytes":              good[:3],
		"not of a console with 3 ports": change(func(b []byte) []byte { b[2] = 4; return b }),
		"want 29":                       good[:len(good)-1],
		"and 65535 messages":            change(func(b []byte) []byte { b[3], b[4] = 0xff, 0xff; return b }),
		"unsent message of event 0":     change(func(b []byte) []byte { b[len(b)-2] = 0; return b }),
		"unsent message for port 3":     change(func(b []byte) []byte { b[len(b)-3] = 3; return b }),
		"want 20":                       append(change(func(b []byte) []byte { b[3] = 0; return b })[:20], 0),
	} {
		if _, _, _, err := parseState(b, 3); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%x: %v: want %q", b, err, says)
		}
	}
}

// instanceOf is a console as a launcher has it, over region, with features f.
func instanceOf(t *testing.T, region *os.File, config string, f virtio.Features) (*sdk.Instance, pluginrpc.Offer, error) {
	t.Helper()
	in, err := sdk.NewInstance(plugin(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(t.Context()) })
	fd, err := unix.FcntlInt(region.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	offer, err := in.Service().Configure(t.Context(), pluginrpc.Settings{DeviceName: "con0", ConfigJSON: []byte(config), State: fd})
	if err != nil {
		t.Fatal(err)
	}
	offer.Config, err = in.Service().SetFeatures(t.Context(), f)
	return in, offer, err
}

func stateRegion(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	region := os.NewFile(uintptr(fd), "state")
	t.Cleanup(func() { _ = region.Close() })
	if err := region.Truncate(64 << 10); err != nil {
		t.Fatal(err)
	}
	return region
}

// The launcher tells a console's size once: the driver must not see it go back.
func TestTheSizeSurvives(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		config string
		f      virtio.Features
	}{
		"one port":                     {`{"backend":"null","multiport":false,"cols":80,"rows":25}`, virtio.FVersion1 | virtio.FConsoleSize},
		"several ports":                {`{"backend":"null","multiport":true,"cols":80,"rows":25}`, virtio.FVersion1 | virtio.FConsoleSize | virtio.FConsoleMultiport},
		"and a driver that wants only": {`{"backend":"null","multiport":true}`, virtio.FVersion1 | virtio.FConsoleSize},
	} {
		region := stateRegion(t)
		a, _, err := instanceOf(t, region, tc.config, tc.f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Service().Command(t.Context(), "resize", []byte(`{"cols":132,"rows":43}`)); err != nil {
			t.Fatal(err)
		}
		_, offer, err := instanceOf(t, region, tc.config, tc.f)
		if err != nil || !bytes.Equal(offer.Config[:4], []byte{132, 0, 43, 0}) {
			t.Errorf("%s: %v, %v", name, offer.Config, err)
		}
		if _, _, err := instanceOf(t, region, `{"backend":"null","port":[{"name":"a","backend":"null"}]}`, tc.f); err == nil {
			t.Errorf("%s: another console takes it up", name)
		}
	}
}

// FuzzState reads a state that anybody may have written.
func FuzzState(f *testing.F) {
	a := keepControl(threePorts())
	a.keep()
	f.Add(a.last)
	told(a.control, 0, virtio.ConsoleDeviceReady, 1)
	told(a.control, 1, virtio.ConsolePortReady, 1)
	f.Add(a.last)
	f.Fuzz(func(t *testing.T, b []byte) {
		heard, ports, messages, err := parseState(b, 3)
		if err != nil {
			return
		}
		c := keepControl(threePorts())
		c.restore(heard, ports, messages, true)
		again := c.state()
		b = bytes.Clone(b)
		for i := range 3 { // bits that mean nothing
			b[stateHeader+i*statePortSize] &= 15
		}
		b[1] &= stateHeard
		if !bytes.Equal(again, b) {
			t.Fatalf("%x comes back as %x", b, again)
		}
		c.setHostOpen(0, true)
		c.resize(0, 1, 1)
		told(c.control, 0, virtio.ConsoleDeviceReady, 1)
		drain(c.control)
	})
}
