package pluginrpc

import (
	"context"
	"fmt"
	"math"
	"os"
	"time"

	"google.golang.org/grpc"

	"github.com/virtplug/virtplug/sdk/guestmem"
	"github.com/virtplug/virtplug/sdk/internal/fdpass"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// MaxMessageBytes is the largest gRPC message either side accepts.
const MaxMessageBytes = 4 << 20

// Socket is the launcher's end of the descriptor socket of one plugin instance.
type Socket struct{ sender *fdpass.Sender }

// NewSocketPair makes the descriptor socket. child goes to the plugin as descriptor 3 (exec.Cmd.ExtraFiles[0]); close it once
// the process has started. Closing the Socket tells the plugin that its launcher is gone: it then ends by itself.
func NewSocketPair() (launcher *Socket, child *os.File, err error) {
	end, child, err := fdpass.Pair()
	if err != nil {
		return nil, nil, err
	}
	sender, err := fdpass.NewSender(end)
	if err != nil {
		_ = child.Close()
		return nil, nil, err
	}
	return &Socket{sender: sender}, child, nil
}

// Close closes the launcher's end. Idempotent.
func (s *Socket) Close() error { return s.sender.Close() }

// Client is the launcher's half of the contract with one plugin instance. It validates everything that the plugin answers.
//
// Every method but Events returns when its context ends at the latest; give one with a deadline: a plugin may hang. Errors are
// *RPCError (see FromStatus), ErrAnswer for an answer that breaks the contract, or those of sending descriptors. Methods
// may be called concurrently where sdk/proto/v1 allows it.
type Client struct {
	rpc pluginv1.DeviceClient
	fds *fdpass.Sender
}

// NewClient makes a client of a connection and the launcher's end of the descriptor socket; both stay the caller's.
func NewClient(conn grpc.ClientConnInterface, s *Socket) *Client {
	return &Client{rpc: pluginv1.NewDeviceClient(limitedConn{conn}), fds: s.sender}
}

// limitedConn bounds messages whatever options the connection was made with (go-plugin's allow 2 GiB).
type limitedConn struct{ grpc.ClientConnInterface }

func limits(opts []grpc.CallOption) []grpc.CallOption {
	return append(opts, grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes))
}

func (c limitedConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return c.ClientConnInterface.Invoke(ctx, method, args, reply, limits(opts)...)
}

func (c limitedConn) NewStream(ctx context.Context, d *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return c.ClientConnInterface.NewStream(ctx, d, method, limits(opts)...)
}

// send passes fds and returns how a request names them.
func (c *Client) send(ctx context.Context, op string, fds []int) (*pluginv1.Descriptors, error) {
	token, err := c.fds.Send(ctx, fds)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	return &pluginv1.Descriptors{Token: token, Count: uint32(len(fds))}, nil //nolint:gosec // at most fdpass.MaxFDs
}

// Describe returns the plugin's validated description.
func (c *Client) Describe(ctx context.Context) (*pluginv1.DescribeResponse, error) {
	d, err := c.rpc.Describe(ctx, &pluginv1.DescribeRequest{})
	if err != nil {
		return nil, FromStatus("Describe", err)
	}
	return d, answer("Describe", CheckDescription(d))
}

// Configure gives the device its settings.
func (c *Client) Configure(ctx context.Context, s Settings) (Offer, error) {
	req := &pluginv1.ConfigureRequest{
		DeviceName: s.DeviceName, ConfigJson: string(s.ConfigJSON), WithheldFeatures: uint64(s.Withheld),
	}
	if s.BusyPoll != 0 {
		us := uint32(min(max(s.BusyPoll, 0), maxBusyPoll) / time.Microsecond)
		req.BusyPollUs = &us
	}
	if s.Identity != [16]byte{} {
		req.Identity = s.Identity[:]
	}
	fds := make([]int, len(s.Files), len(s.Files)+1)
	for i, f := range s.Files {
		fds[i] = f.FD
		req.Files = append(req.Files, &pluginv1.FileGrant{Attribute: f.Attribute, Index: uint32(i)})
	}
	if s.State != 0 {
		at := uint32(len(fds)) //nolint:gosec // at most fdpass.MaxFDs
		req.State, fds = &at, append(fds, s.State)
	}
	if len(fds) > 0 {
		var err error
		if req.Descriptors, err = c.send(ctx, "Configure", fds); err != nil {
			return Offer{}, err
		}
	}
	resp, err := c.rpc.Configure(ctx, req)
	if err != nil {
		return Offer{}, FromStatus("Configure", err)
	}
	offer, err := checkOffer(resp, s.Withheld)
	return offer, answer("Configure", err)
}

// SetFeatures tells which features the driver accepted; it returns the configuration space after that.
func (c *Client) SetFeatures(ctx context.Context, f virtio.Features) (config []byte, err error) {
	resp, err := c.rpc.SetFeatures(ctx, &pluginv1.SetFeaturesRequest{Features: uint64(f)})
	return checkConfig("SetFeatures", resp, err)
}

// ReadConfig returns the whole configuration space.
func (c *Client) ReadConfig(ctx context.Context) (config []byte, err error) {
	resp, err := c.rpc.ReadConfig(ctx, &pluginv1.ReadConfigRequest{})
	return checkConfig("ReadConfig", resp, err)
}

// WriteConfig passes on a driver's write; it returns the whole configuration space after it.
func (c *Client) WriteConfig(ctx context.Context, offset int, data []byte) (config []byte, err error) {
	if offset < 0 || offset > MaxConfigBytes || len(data) > MaxConfigBytes-offset {
		return nil, fmt.Errorf("WriteConfig: %d bytes at %d: %w: beyond %d", len(data), offset, ErrInvalid, MaxConfigBytes)
	}
	resp, err := c.rpc.WriteConfig(ctx, &pluginv1.WriteConfigRequest{Offset: uint32(offset), Data: data})
	return checkConfig("WriteConfig", resp, err)
}

// AttachMemory hands over the guest's memory table, in ascending order. The descriptors stay the caller's.
func (c *Client) AttachMemory(ctx context.Context, regions []guestmem.MapRegion) error {
	req := &pluginv1.AttachMemoryRequest{}
	fds := make([]int, 0, len(regions))
	for _, r := range regions {
		if r.Offset < 0 {
			return fmt.Errorf("AttachMemory: region %v: offset %d: %w", r.Start, r.Offset, ErrInvalid)
		}
		fds = append(fds, r.FD)
		req.Regions = append(req.Regions, &pluginv1.MemoryRegion{
			GuestAddress: uint64(r.Start), Size: r.Size, FileOffset: uint64(r.Offset),
		})
	}
	var err error
	if req.Descriptors, err = c.send(ctx, "AttachMemory", fds); err != nil {
		return err
	}
	_, err = c.rpc.AttachMemory(ctx, req)
	return FromStatus("AttachMemory", err)
}

// StartQueue starts a queue; it returns how many chains in flight of a former instance are served again.
func (c *Client) StartQueue(ctx context.Context, q QueueStart) (resubmitted int, err error) {
	if q.Index < 0 || q.Index >= MaxQueues {
		return 0, fmt.Errorf("StartQueue: queue %d: %w", q.Index, ErrInvalid)
	}
	fds, err := c.send(ctx, "StartQueue", []int{q.Kick, q.Call, q.Inflight})
	if err != nil {
		return 0, err
	}
	resp, err := c.rpc.StartQueue(ctx, &pluginv1.StartQueueRequest{
		Index: uint32(q.Index), Size: uint32(q.Size), Descriptors: fds,
		DescArea: uint64(q.DescArea), DriverArea: uint64(q.DriverArea), DeviceArea: uint64(q.DeviceArea),
		NextAvail: uint32(q.NextAvail), Recover: q.Recover,
	})
	if err != nil {
		return 0, FromStatus("StartQueue", err)
	}
	n := resp.GetResubmitted()
	if n > uint32(q.Size) || n > 0 && !q.Recover {
		return 0, answer("StartQueue", fmt.Errorf("%d chains resubmitted of a queue of %d (recover: %t)", n, q.Size, q.Recover))
	}
	return int(n), nil
}

// StopQueue stops a queue and returns the ring's state. After an error it is unknown whether the plugin still uses the ring.
func (c *Client) StopQueue(ctx context.Context, index int) (QueueState, error) {
	if index < 0 || index >= MaxQueues {
		return QueueState{}, fmt.Errorf("StopQueue: queue %d: %w", index, ErrInvalid)
	}
	resp, err := c.rpc.StopQueue(ctx, &pluginv1.StopQueueRequest{Index: uint32(index)})
	if err != nil {
		return QueueState{}, FromStatus("StopQueue", err)
	}
	next, used := resp.GetNextAvail(), resp.GetUsedIndex()
	if next > math.MaxUint16 || used > math.MaxUint16 {
		return QueueState{}, answer("StopQueue", fmt.Errorf("index %d or %d: more than 16 bits", next, used))
	}
	return QueueState{NextAvail: uint16(next), UsedIndex: uint16(used), Broken: cleanText(resp.GetBroken(), maxMessage)}, nil
}

// Reset stops all queues and makes the device forget what the driver told it.
func (c *Client) Reset(ctx context.Context) error {
	_, err := c.rpc.Reset(ctx, &pluginv1.ResetRequest{})
	return FromStatus("Reset", err)
}

// Pause stops all queues, to go on with Resume. Idempotent.
func (c *Client) Pause(ctx context.Context) error {
	_, err := c.rpc.Pause(ctx, &pluginv1.PauseRequest{})
	return FromStatus("Pause", err)
}

// Resume restarts what Pause stopped. Idempotent.
func (c *Client) Resume(ctx context.Context) error {
	_, err := c.rpc.Resume(ctx, &pluginv1.ResumeRequest{})
	return FromStatus("Resume", err)
}

// Health asks whether the device is well. ErrFailed with the reason: it says it is not; another error: it did not answer.
func (c *Client) Health(ctx context.Context) error {
	resp, err := c.rpc.Health(ctx, &pluginv1.HealthRequest{})
	if err != nil {
		return FromStatus("Health", err)
	}
	if !resp.GetHealthy() {
		return fmt.Errorf("%w: %s", ErrFailed, cleanText(resp.GetReason(), maxMessage))
	}
	return nil
}

// Statistics reads the counters.
func (c *Client) Statistics(ctx context.Context) (Statistics, error) {
	resp, err := c.rpc.Statistics(ctx, &pluginv1.StatisticsRequest{})
	if err != nil {
		return Statistics{}, FromStatus("Statistics", err)
	}
	s, err := checkStatistics(resp)
	return s, answer("Statistics", err)
}

// Command runs a command of the description; args and result are each one JSON object (empty args: {}).
func (c *Client) Command(ctx context.Context, name string, args []byte) (result []byte, err error) {
	if len(args) == 0 {
		args = []byte("{}")
	}
	resp, err := c.rpc.Command(ctx, &pluginv1.CommandRequest{Name: name, ArgsJson: string(args)})
	if err != nil {
		return nil, FromStatus("Command "+name, err)
	}
	result = []byte(resp.GetResultJson())
	return result, answer("Command "+name, checkObject(result))
}

// Events opens the event stream. The channel is closed when the stream ends: because ctx ended, another stream began or the
// plugin is gone. Read it until then; while nobody reads, the plugin keeps a bounded number of events for later.
func (c *Client) Events(ctx context.Context) (<-chan Event, error) {
	stream, err := c.rpc.Events(ctx, &pluginv1.EventsRequest{})
	if err != nil {
		return nil, FromStatus("Events", err)
	}
	events := make(chan Event)
	go func() {
		defer close(events)
		for {
			e, err := stream.Recv()
			if err != nil {
				return
			}
			ev, ok := checkEvent(e)
			if !ok {
				continue
			}
			select {
			case events <- ev:
			case <-ctx.Done():
				return
			}
		}
	}()
	return events, nil
}
