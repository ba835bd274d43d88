package devicetest

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func goroutines() int { return runtime.NumGoroutine() }

// withTokens is a configured program with memory and features, and a request for queue 0 without descriptors.
func (t *runner) withTokens() (*machine, *program, *pluginv1.StartQueueRequest) {
	m := t.queued(0, defaultSize)
	p, ok := m.target.(*program)
	if !ok {
		t.Skipf("only of a program")
	}
	r := m.queues[0].request(0)
	return m, p, &pluginv1.StartQueueRequest{
		Size: uint32(r.Size), DescArea: uint64(r.DescArea), DriverArea: uint64(r.DriverArea), DeviceArea: uint64(r.DeviceArea),
	}
}

// code wants a bare call to answer with a status.
func (t *runner) code(what string, err error, want codes.Code) {
	if got := status.Code(err); got != want {
		t.Errorf("%s: %v, %s: want %v", what, got, status.Convert(err).Message(), want)
	}
}

func tokensMisused(t *runner) {
	m, p, req := t.withTokens()
	q := m.queues[0]
	fds := []int{int(q.kick.Fd()), int(q.call.Fd()), int(q.inflight.Fd())}
	send := func(n int) *pluginv1.Descriptors {
		ctx, cancel := t.limited()
		defer cancel()
		d, err := p.SendDescriptors(ctx, slices.Repeat(fds, 3)[:n])
		t.must("send descriptors", err)
		return d
	}
	try := func(what string, d *pluginv1.Descriptors, want codes.Code) {
		ctx, cancel := t.limited()
		defer cancel()
		req.Descriptors = d
		_, err := p.Bare().StartQueue(ctx, req)
		t.code("StartQueue with "+what, err, want)
	}
	before := held(p.PID())["open descriptors"]
	for range 10 {
		try("no descriptors", nil, codes.InvalidArgument)
		try("two descriptors", send(2), codes.InvalidArgument)
		try("four descriptors", send(4), codes.InvalidArgument)
		d := send(3)
		d.Count = 2
		try("a count that is not the message's", d, codes.InvalidArgument)
		d = send(2)
		d.Count = 3
		try("a count that is more than the message has", d, codes.InvalidArgument)
	}
	good := send(3)
	try("three descriptors", good, codes.OK)
	q.stop()
	try("a token that was used", good, codes.InvalidArgument)
	t.eventually(func() bool { return held(p.PID())["open descriptors"] < before+10 })
	if after := held(p.PID())["open descriptors"]; after >= before+10 {
		t.Errorf("misused tokens: the process had %d open descriptors, now %d: it does not close them", before, after)
	}
	m.startAll()
	m.works()
}

func tokenNeverComes(t *runner) {
	m, p, req := t.withTokens()
	ctx, cancel := context.WithTimeout(t.ctx, 4*tokenWait)
	defer cancel()
	begin := time.Now()
	req.Descriptors = &pluginv1.Descriptors{Token: 0xdead, Count: 3}
	_, err := p.Bare().StartQueue(ctx, req)
	t.code("StartQueue with a token that never comes", err, codes.DeadlineExceeded)
	if d := time.Since(begin); d > 3*tokenWait {
		t.Errorf("StartQueue with a token that never comes: it waited %v: want %v", d, tokenWait)
	}
	m.startAll()
	m.works()
}

// tokenWait is how long a plugin waits for a token.
const tokenWait = 5 * time.Second

// endClose ends instances in several states, twice.
func endClose(t *runner) {
	ends := map[string]func() *machine{
		"before Configure": func() *machine { return &machine{target: t.opened()} },
		"configured": func() *machine {
			target := t.opened()
			t.configure(target)
			return &machine{target: target}
		},
		"while queues run": func() *machine {
			m := t.plainMachine()
			m.works()
			return m
		},
	}
	for when, begun := range ends {
		m := begun()
		begin := time.Now()
		for range 2 {
			if err := m.target.Close(); err != nil {
				t.Errorf("end %s: %w", when, err)
			}
		}
		if d := time.Since(begin); d > t.o.Patience {
			t.Errorf("end %s: it took %v", when, d)
		}
		if p, ok := m.target.(*program); ok {
			if p.killed {
				t.Errorf("end %s: the process did not end by itself within 2 s of Shutdown", when)
			} else if s := p.cmd.ProcessState; s != nil && s.ExitCode() != 0 {
				t.Errorf("end %s: the process ended with %v: want exit status 0", when, s)
			}
			if len(p.left) > 0 {
				t.Errorf("end %s: it left %v in its directory for sockets", when, p.left)
			}
		}
		for _, q := range m.queues {
			q.stays("the instance ended")
		}
	}
}

// endLauncherGone closes the descriptor socket, which is how a plugin learns that its launcher was killed.
func endLauncherGone(t *runner) {
	m := t.queued(virtio.FEventIdx, defaultSize)
	p, ok := m.target.(*program)
	if !ok {
		t.Skipf("only of a program")
	}
	m.startAll()
	m.works()
	t.must("close the descriptor socket", p.socket.Close())
	if !t.eventually(p.host.Exited) {
		t.Errorf("the descriptor socket was closed, and the process lives on after %v", t.o.Patience)
	}
}

// leftIn lists the sockets below dir.
func leftIn(dir string) (left []string) {
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&fs.ModeSocket != 0 {
			left = append(left, d.Name())
		}
		return nil
	})
	if err != nil {
		left = append(left, fmt.Sprint(err))
	}
	return left
}
