package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	controlv1 "github.com/virtplug/virtplug/core/control/v1"
	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/machine"
	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// SocketName is the socket's name in a run directory.
const SocketName = "control"

// maxMessage bounds what a caller may send, in bytes.
const maxMessage = 1 << 20

// VM is what is served.
type VM struct {
	Name, Machine string
	// Bus is as configured; empty: the machine's default.
	Bus         string
	MemoryBytes uint64
	VCPUs       int
	// Devices are in their order; Types are their plugins' names.
	Devices []*device.Device
	Types   []string
	Guest   Guest
	// Stop begins to end the guest and returns at once.
	Stop func()
	// LguestPage copies the lguest bus's device page; nil: there is no such bus.
	LguestPage func() ([]byte, error)
}

// Guest is what runs on the machine. Its methods may be called at once.
type Guest interface {
	State() State
	// Pause stops the virtual CPUs, Resume lets them go on. Idempotent. The error wraps machine.ErrUnsupported if the machine
	// cannot.
	Pause() error
	Resume() error
	// Counters are the machine's, nil if there are none.
	Counters() map[string]uint64
}

// State is what a guest is doing.
type State string

// States. Programs read them: they are not renamed.
const (
	StateStarting State = "starting"
	StateRunning  State = "running"
	StatePaused   State = "paused"
	StateEnding   State = "ending"
)

// Server serves one VM.
type Server struct {
	controlv1.UnimplementedControlServer
	vm      VM
	started time.Time
	grpc    *grpc.Server
	done    chan struct{}
	path    string
}

// Serve listens in the run directory dir, which must be private to the user. Close ends it.
func Serve(dir string, vm VM, log hclog.Logger) (*Server, error) {
	path := filepath.Join(dir, SocketName)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o700); err != nil { //nolint:gosec // G302: connecting needs w, and x is customary
		return nil, errors.Join(fmt.Errorf("control socket: %w", err), l.Close())
	}
	s := &Server{
		vm: vm, started: time.Now(), done: make(chan struct{}), path: path,
		grpc: grpc.NewServer(grpc.Creds(insecure.NewCredentials()), grpc.MaxRecvMsgSize(maxMessage), grpc.MaxConcurrentStreams(16)),
	}
	controlv1.RegisterControlServer(s.grpc, s)
	go func() {
		defer close(s.done)
		if err := s.grpc.Serve(&ownListener{UnixListener: l, log: log}); err != nil {
			log.Error("control socket", "error", err)
		}
	}()
	return s, nil
}

// closeWait is how long calls under way may take when the VM ends; the one that asked for the end is among them. Arbitrary.
const closeWait = time.Second

// Close ends calls under way and removes the socket.
func (s *Server) Close() error {
	impatient := time.AfterFunc(closeWait, s.grpc.Stop)
	s.grpc.GracefulStop()
	impatient.Stop()
	<-s.done
	return nil
}

// Describe implements the service.
func (s *Server) Describe(ctx context.Context, r *controlv1.DescribeRequest) (*controlv1.DescribeResponse, error) {
	out := &controlv1.DescribeResponse{
		Name: s.vm.Name, Pid: int32(os.Getpid()), Machine: s.vm.Machine, StartedUnix: s.started.Unix(), //nolint:gosec // G115: a process number
		MemoryBytes: s.vm.MemoryBytes, Vcpus: uint32(s.vm.VCPUs), Bus: s.vm.Bus, State: string(s.vm.Guest.State()), //nolint:gosec // G115: checked against a maximum
	}
	if r.GetStatistics() {
		out.Counters = s.vm.Guest.Counters()
	}
	for i, d := range s.vm.Devices {
		dev := &controlv1.Device{
			Name: d.Name(), Type: s.vm.Types[i], DeviceId: uint32(d.ID()), State: d.State().String(), Pid: int32(d.PID()), //nolint:gosec // G115: a process number
		}
		if cause := d.Cause(); cause != nil {
			dev.Cause = cause.Error()
		}
		if r.GetStatistics() {
			st, err := d.Statistics(ctx)
			// What one plugin does not tell must not hide the others.
			if err != nil && dev.Cause == "" && !errors.Is(err, device.ErrNoInstance) && !errors.Is(err, device.ErrLost) {
				dev.Cause = err.Error()
			}
			addStatistics(dev, st)
		}
		out.Devices = append(out.Devices, dev)
	}
	return out, nil
}

func addStatistics(dev *controlv1.Device, st pluginrpc.Statistics) {
	dev.Counters = st.Counters
	for _, q := range st.Queues {
		dev.Queues = append(dev.Queues, &controlv1.Queue{
			Index: uint32(q.Index), Running: q.Running, Chains: q.Chains, Completed: q.Completed, //nolint:gosec // G115: checked by pluginrpc
			ReadableBytes: q.ReadableBytes, WrittenBytes: q.WrittenBytes, Kicks: q.Kicks, Calls: q.Calls,
			CallsSuppressed: q.CallsSuppressed, Errors: q.Errors, Broken: q.Broken,
		})
	}
}

// Command implements the service.
func (s *Server) Command(ctx context.Context, r *controlv1.CommandRequest) (*controlv1.CommandResponse, error) {
	args := []byte(r.GetArgsJson())
	if len(args) == 0 {
		args = []byte("{}")
	}
	if !json.Valid(args) {
		return nil, status.Error(codes.InvalidArgument, "command: args_json is not JSON")
	}
	for _, d := range s.vm.Devices {
		if d.Name() != r.GetDevice() {
			continue
		}
		result, err := d.Command(ctx, r.GetName(), args)
		switch {
		case err == nil:
			return &controlv1.CommandResponse{ResultJson: string(result)}, nil
		case errors.Is(err, device.ErrNoInstance), errors.Is(err, device.ErrLost), errors.Is(err, device.ErrClosed):
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return nil, status.Errorf(codes.NotFound, "command: there is no device %q", r.GetDevice())
}

// Stop implements the service.
func (s *Server) Stop(context.Context, *controlv1.StopRequest) (*controlv1.StopResponse, error) {
	s.vm.Stop()
	return &controlv1.StopResponse{}, nil
}

// Pause implements the service.
func (s *Server) Pause(context.Context, *controlv1.PauseRequest) (*controlv1.PauseResponse, error) {
	if err := s.vm.Guest.Pause(); err != nil {
		return nil, guestStatus("pause", err)
	}
	return &controlv1.PauseResponse{}, nil
}

// Resume implements the service.
func (s *Server) Resume(context.Context, *controlv1.ResumeRequest) (*controlv1.ResumeResponse, error) {
	if err := s.vm.Guest.Resume(); err != nil {
		return nil, guestStatus("resume", err)
	}
	return &controlv1.ResumeResponse{}, nil
}

func guestStatus(op string, err error) error {
	code := codes.FailedPrecondition
	if errors.Is(err, machine.ErrUnsupported) {
		code = codes.Unimplemented
	}
	return status.Errorf(code, "%s: %v", op, err)
}

// LguestPage implements the service.
func (s *Server) LguestPage(context.Context, *controlv1.LguestPageRequest) (*controlv1.LguestPageResponse, error) {
	if s.vm.LguestPage == nil {
		return nil, status.Errorf(codes.FailedPrecondition, "lguest page: %s has no lguest bus (virtplug run --machine kvm --bus lguest)", s.vm.Name)
	}
	page, err := s.vm.LguestPage()
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "lguest page: %v", err)
	}
	return &controlv1.LguestPageResponse{Page: page}, nil
}
