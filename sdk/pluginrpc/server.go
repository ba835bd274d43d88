package pluginrpc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/internal/fdpass"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// Service is what a plugin does behind the contract, decoded. The SDK's runtime implements it. Errors go through ToStatus.
// Methods are called concurrently where sdk/proto/v1 allows it.
type Service interface {
	Describe() *pluginv1.DescribeResponse
	// Configure owns the descriptors of s.Files, whatever it returns.
	Configure(ctx context.Context, s Settings) (Offer, error)
	SetFeatures(ctx context.Context, f virtio.Features) (config []byte, err error)
	ReadConfig(ctx context.Context) ([]byte, error)
	WriteConfig(ctx context.Context, offset int, data []byte) (config []byte, err error)
	// AttachMemory borrows the regions' descriptors for the call.
	AttachMemory(ctx context.Context, regions []guestmem.MapRegion) error
	// StartQueue owns q.Kick, q.Call and q.Inflight, whatever it returns.
	StartQueue(ctx context.Context, q QueueStart) (resubmitted int, err error)
	StopQueue(ctx context.Context, index int) (QueueState, error)
	Reset(ctx context.Context) error
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Health returns what is wrong.
	Health(ctx context.Context) error
	// Events calls send for each event until ctx ends, send fails or another call begins.
	Events(ctx context.Context, send func(Event) error) error
	Statistics(ctx context.Context) (Statistics, error)
	Command(ctx context.Context, name string, args []byte) (result []byte, err error)
}

// Server is the plugin's half of the contract: it decodes requests, takes descriptors by token and calls the Service.
type Server struct {
	pluginv1.UnimplementedDeviceServer
	svc Service
	fds *fdpass.Receiver
}

// NewServer takes over socket, the plugin's end of the descriptor socket.
func NewServer(svc Service, socket *os.File) (*Server, error) {
	r, err := fdpass.NewReceiver(socket)
	if err != nil {
		return nil, err
	}
	return &Server{svc: svc, fds: r}, nil
}

// LauncherGone is closed when the launcher closed its end of the descriptor socket, which mostly means that it died.
func (s *Server) LauncherGone() <-chan struct{} { return s.fds.Done() }

// Close closes the descriptor socket and all descriptors that no request took. Idempotent.
func (s *Server) Close() error { return s.fds.Close() }

// take fetches a request's descriptors, want of them.
func (s *Server) take(ctx context.Context, d *pluginv1.Descriptors, want int) ([]int, error) {
	if d == nil || uint64(d.GetCount()) != uint64(want) { //nolint:gosec // want is a count
		n := d.GetCount()
		if d != nil { // do not leave them in the table
			if fds, err := s.fds.Take(ctx, d.GetToken(), int(n)); err == nil {
				closeAll(fds)
			}
		}
		return nil, fmt.Errorf("%w: request names %d descriptors: want %d", ErrInvalid, n, want)
	}
	fds, err := s.fds.Take(ctx, d.GetToken(), want)
	switch {
	case err == nil:
		return fds, nil
	case errors.Is(err, fdpass.ErrNeverCame), errors.Is(err, fdpass.ErrClosed): // the first wraps DeadlineExceeded
		return nil, err
	default:
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// Describe implements the RPC.
func (s *Server) Describe(context.Context, *pluginv1.DescribeRequest) (*pluginv1.DescribeResponse, error) {
	return s.svc.Describe(), nil
}

// Configure implements the RPC.
func (s *Server) Configure(ctx context.Context, r *pluginv1.ConfigureRequest) (*pluginv1.ConfigureResponse, error) {
	st := Settings{DeviceName: r.GetDeviceName(), ConfigJSON: []byte(r.GetConfigJson()), Withheld: virtio.Features(r.GetWithheldFeatures())}
	if r.BusyPollUs != nil {
		if st.BusyPoll = time.Duration(r.GetBusyPollUs()) * time.Microsecond; st.BusyPoll == 0 {
			st.BusyPoll = -1
		}
	}
	if err := s.takeGrants(ctx, r, &st); err != nil { // first: whatever is wrong, the descriptors have come
		return nil, ToStatus(fmt.Errorf("configure: %w", err))
	}
	switch id := r.GetIdentity(); len(id) {
	case 0:
	case len(st.Identity):
		copy(st.Identity[:], id)
	default:
		closeGrants(&st)
		return nil, ToStatus(fmt.Errorf("configure: %w: identity of %d bytes: want %d", ErrInvalid, len(id), len(st.Identity)))
	}
	o, err := s.svc.Configure(ctx, st)
	if err != nil {
		return nil, ToStatus(err)
	}
	resp := &pluginv1.ConfigureResponse{Features: uint64(o.Features), Config: o.Config}
	for _, n := range o.QueueSizes {
		resp.QueueSizes = append(resp.QueueSizes, uint32(n))
	}
	return resp, nil
}

// takeGrants fetches the descriptors of a ConfigureRequest; after an error it has closed them.
func (s *Server) takeGrants(ctx context.Context, r *pluginv1.ConfigureRequest, st *Settings) error {
	want := len(r.GetFiles())
	if r.State != nil {
		want++
	}
	if r.GetDescriptors() == nil && want == 0 {
		return nil
	}
	fds, err := s.take(ctx, r.GetDescriptors(), want)
	if err != nil {
		return err
	}
	seen := make(map[uint32]bool)
	grant := func(what string, index uint32) (int, error) {
		if uint64(index) >= uint64(len(fds)) || seen[index] {
			closeAll(fds)
			return -1, fmt.Errorf("%s: %w: index %d out of range or used twice", what, ErrInvalid, index)
		}
		seen[index] = true
		return fds[index], nil
	}
	for _, f := range r.GetFiles() {
		fd, err := grant("file "+f.GetAttribute(), f.GetIndex())
		if err != nil {
			return err
		}
		st.Files = append(st.Files, FileGrant{Attribute: f.GetAttribute(), FD: fd})
	}
	if r.State != nil {
		if st.State, err = grant("state region", r.GetState()); err != nil {
			return err
		}
	}
	return nil
}

// closeGrants closes what takeGrants fetched.
func closeGrants(st *Settings) {
	for _, f := range st.Files {
		_ = unix.Close(f.FD)
	}
	if st.State != 0 {
		_ = unix.Close(st.State)
	}
}

// SetFeatures implements the RPC.
func (s *Server) SetFeatures(ctx context.Context, r *pluginv1.SetFeaturesRequest) (*pluginv1.SetFeaturesResponse, error) {
	config, err := s.svc.SetFeatures(ctx, virtio.Features(r.GetFeatures()))
	return &pluginv1.SetFeaturesResponse{Config: config}, ToStatus(err)
}

// ReadConfig implements the RPC.
func (s *Server) ReadConfig(ctx context.Context, _ *pluginv1.ReadConfigRequest) (*pluginv1.ReadConfigResponse, error) {
	config, err := s.svc.ReadConfig(ctx)
	return &pluginv1.ReadConfigResponse{Config: config}, ToStatus(err)
}

// WriteConfig implements the RPC.
func (s *Server) WriteConfig(ctx context.Context, r *pluginv1.WriteConfigRequest) (*pluginv1.WriteConfigResponse, error) {
	config, err := s.svc.WriteConfig(ctx, int(r.GetOffset()), r.GetData())
	return &pluginv1.WriteConfigResponse{Config: config}, ToStatus(err)
}

// AttachMemory implements the RPC.
func (s *Server) AttachMemory(ctx context.Context, r *pluginv1.AttachMemoryRequest) (*pluginv1.AttachMemoryResponse, error) {
	fds, err := s.take(ctx, r.GetDescriptors(), len(r.GetRegions()))
	if err != nil {
		return nil, ToStatus(fmt.Errorf("attach memory: %w", err))
	}
	defer closeAll(fds)
	regions := make([]guestmem.MapRegion, 0, len(fds))
	for i, m := range r.GetRegions() {
		if m.GetFileOffset() > math.MaxInt64 {
			return nil, ToStatus(fmt.Errorf("attach memory: region %d: %w: offset %#x", i, ErrInvalid, m.GetFileOffset()))
		}
		regions = append(regions, guestmem.MapRegion{
			Start: guestmem.GPA(m.GetGuestAddress()), Size: m.GetSize(), FD: fds[i], Offset: int64(m.GetFileOffset()), //nolint:gosec // G115: checked above
		})
	}
	return &pluginv1.AttachMemoryResponse{}, ToStatus(s.svc.AttachMemory(ctx, regions))
}

// StartQueue implements the RPC.
func (s *Server) StartQueue(ctx context.Context, r *pluginv1.StartQueueRequest) (*pluginv1.StartQueueResponse, error) {
	fds, err := s.take(ctx, r.GetDescriptors(), 3)
	if err != nil {
		return nil, ToStatus(fmt.Errorf("start queue %d: %w", r.GetIndex(), err))
	}
	if r.GetIndex() >= MaxQueues || r.GetSize() > virtio.QueueSizeMax || r.GetNextAvail() > math.MaxUint16 {
		closeAll(fds)
		return nil, ToStatus(fmt.Errorf("start queue %d: %w: size %d, next_avail %d", r.GetIndex(), ErrInvalid, r.GetSize(), r.GetNextAvail()))
	}
	n, err := s.svc.StartQueue(ctx, QueueStart{
		Index: int(r.GetIndex()), Size: uint16(r.GetSize()), //nolint:gosec // G115: checked above
		DescArea: guestmem.GPA(r.GetDescArea()), DriverArea: guestmem.GPA(r.GetDriverArea()), DeviceArea: guestmem.GPA(r.GetDeviceArea()),
		Kick: fds[0], Call: fds[1], Inflight: fds[2],
		NextAvail: uint16(r.GetNextAvail()), Recover: r.GetRecover(), //nolint:gosec // G115: checked above
	})
	if err != nil {
		return nil, ToStatus(err)
	}
	return &pluginv1.StartQueueResponse{Resubmitted: uint32(n)}, nil //nolint:gosec // at most the queue's size
}

// StopQueue implements the RPC.
func (s *Server) StopQueue(ctx context.Context, r *pluginv1.StopQueueRequest) (*pluginv1.StopQueueResponse, error) {
	q, err := s.svc.StopQueue(ctx, int(r.GetIndex()))
	if err != nil {
		return nil, ToStatus(err)
	}
	return &pluginv1.StopQueueResponse{NextAvail: uint32(q.NextAvail), UsedIndex: uint32(q.UsedIndex), Broken: cleanText(q.Broken, maxMessage)}, nil
}

// Reset implements the RPC.
func (s *Server) Reset(ctx context.Context, _ *pluginv1.ResetRequest) (*pluginv1.ResetResponse, error) {
	return &pluginv1.ResetResponse{}, ToStatus(s.svc.Reset(ctx))
}

// Pause implements the RPC.
func (s *Server) Pause(ctx context.Context, _ *pluginv1.PauseRequest) (*pluginv1.PauseResponse, error) {
	return &pluginv1.PauseResponse{}, ToStatus(s.svc.Pause(ctx))
}

// Resume implements the RPC.
func (s *Server) Resume(ctx context.Context, _ *pluginv1.ResumeRequest) (*pluginv1.ResumeResponse, error) {
	return &pluginv1.ResumeResponse{}, ToStatus(s.svc.Resume(ctx))
}

// Health implements the RPC.
func (s *Server) Health(ctx context.Context, _ *pluginv1.HealthRequest) (*pluginv1.HealthResponse, error) {
	if err := s.svc.Health(ctx); err != nil {
		return &pluginv1.HealthResponse{Reason: cleanText(err.Error(), maxMessage)}, nil
	}
	return &pluginv1.HealthResponse{Healthy: true}, nil
}

// Events implements the RPC.
func (s *Server) Events(_ *pluginv1.EventsRequest, stream pluginv1.Device_EventsServer) error {
	return ToStatus(s.svc.Events(stream.Context(), func(ev Event) error { return stream.Send(encodeEvent(ev)) }))
}

func encodeEvent(ev Event) *pluginv1.Event {
	switch e := ev.(type) {
	case ConfigChanged:
		return &pluginv1.Event{Event: &pluginv1.Event_ConfigChanged{ConfigChanged: &pluginv1.ConfigChanged{Config: e.Config}}}
	case DeviceError:
		return &pluginv1.Event{Event: &pluginv1.Event_Error{Error: &pluginv1.DeviceError{
			Message: cleanText(e.Message, maxMessage), Queue: int32(e.Queue), NeedsReset: e.NeedsReset, //nolint:gosec // -1 to MaxQueues
		}}}
	case Notice:
		facts := make(map[string]string, len(e.Facts))
		for k, v := range e.Facts {
			facts[cleanText(k, maxPath)] = cleanText(v, maxMessage)
		}
		return &pluginv1.Event{Event: &pluginv1.Event_Notice{Notice: &pluginv1.Notice{Message: cleanText(e.Message, maxMessage), Facts: facts}}}
	default:
		return &pluginv1.Event{}
	}
}

// Statistics implements the RPC.
func (s *Server) Statistics(ctx context.Context, _ *pluginv1.StatisticsRequest) (*pluginv1.StatisticsResponse, error) {
	st, err := s.svc.Statistics(ctx)
	if err != nil {
		return nil, ToStatus(err)
	}
	resp := &pluginv1.StatisticsResponse{Counters: st.Counters}
	for _, q := range st.Queues {
		resp.Queues = append(resp.Queues, &pluginv1.QueueStatistics{
			Index: uint32(q.Index), Running: q.Running, Chains: q.Chains, Completed: q.Completed, //nolint:gosec // below MaxQueues
			ReadableBytes: q.ReadableBytes, WrittenBytes: q.WrittenBytes, Kicks: q.Kicks, Calls: q.Calls,
			CallsSuppressed: q.CallsSuppressed, Errors: q.Errors, Broken: cleanText(q.Broken, maxMessage),
		})
	}
	return resp, nil
}

// Command implements the RPC.
func (s *Server) Command(ctx context.Context, r *pluginv1.CommandRequest) (*pluginv1.CommandResponse, error) {
	result, err := s.svc.Command(ctx, r.GetName(), []byte(r.GetArgsJson()))
	return &pluginv1.CommandResponse{ResultJson: string(result)}, ToStatus(err)
}
