package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/virtplug/virtplug/core/bench"
	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/machine/loopback"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// benchNet is what `bench net` was asked.
type benchNet struct {
	backends         []string
	settings         []string
	patterns         []string
	frames, depths   []int
	framesGiven      bool
	pairs, queueSize int
	batch, rounds    int
	duration, warmup time.Duration
	pin, poll        bool
	noIndirect       bool
	noEventIdx       bool
	noMergeable      bool
	noOffload        bool
	busyPoll         string
	json             bool
	inNamespace      bool
}

// benchTap is the interface of back-end tap, in a network namespace of the bench's own.
const benchTap = "vpbench0"

// netBackends are the back-ends that can be measured, with what can be done with each.
func netBackends() map[string][]bench.NetPattern {
	return map[string][]bench.NetPattern{
		"null":     {bench.NetSend},
		"loopback": {bench.NetSend, bench.NetEcho},
		"tap":      bench.NetPatterns(), "user": bench.NetPatterns(), "socket": bench.NetPatterns(),
	}
}

func netBackendNames() []string { return []string{"null", "loopback", "tap", "user", "socket"} }

func (a *app) benchNetCommand() *cobra.Command {
	var b benchNet
	cmd := &cobra.Command{
		Use:   "net [BACKEND…]",
		Short: "Measure a network device: packets and Gbit a second, round trips, CPU time per packet of driver, plugin and peer",
		Long: `Measure a network device with each BACKEND (default: null and loopback).

  null       takes what the driver sends: the ring and the device alone
  loopback   what the driver sends comes back to it
  tap        a new interface in a network namespace of its own; a packet socket is at its other end. Without root this
             needs user namespaces
  user       a UDP socket of the host, through the address translation
  socket     a program at the other end of a unix socket

Pattern send: the driver sends as fast as it can; receive: the other end does; echo: each packet comes back, and the time is
measured. Packets a second count those that arrived. A frame longer than the device's MTU is a TCP segment for somebody
else to cut (TSO).

Packets a second on a busy machine spread by tens of percent; the plugin's CPU time per packet is the stable figure. The driver
sleeps while nothing is done, as a guest does, but for --poll.`,
		Example: `  virtplug bench net
  virtplug bench net tap user socket --frame-size 1514,65534 --duration 3s
  virtplug bench net loopback --pattern echo --depth 1,16 --busy-poll 0s --json
  virtplug bench net null --frame-size 64 --poll --busy-poll 50us --pin
  virtplug bench net tap --queue-pairs 2 --set offload=false`,
		ValidArgs: netBackendNames(),
		RunE: func(cmd *cobra.Command, args []string) error {
			b.backends = args
			b.framesGiven = cmd.Flags().Changed("frame-size")
			ctx, stop := interruptible(cmd)
			defer stop()
			return a.benchNet(ctx, &b)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&b.patterns, "pattern", nil, "`PATTERN`: send, receive or echo; several are measured in turn (default: all that the back-end has)")
	f.IntSliceVar(&b.frames, "frame-size", []int{64, 1514, bench.MaxFrame}, "bytes of each Ethernet frame; several are measured in turn")
	f.IntSliceVar(&b.depths, "depth", []int{1}, "packets on their way around on each queue pair, with pattern echo; several are measured in turn")
	f.IntVar(&b.pairs, "queue-pairs", 1, "`NUMBER` of queue pairs")
	f.IntVar(&b.queueSize, "queue-size", 256, "entries of a queue")
	f.IntVar(&b.batch, "batch", 32, "how many packets the driver makes available at once")
	f.IntVar(&b.rounds, "rounds", 3, "measure each this many times and tell the round with the median of packets a second")
	f.DurationVar(&b.duration, "duration", time.Second, "how long a round lasts")
	f.DurationVar(&b.warmup, "warmup", 200*time.Millisecond, "how long to load the device before a round")
	f.BoolVar(&b.pin, "pin", false, "tie the driver's threads of pair n to processor n")
	f.BoolVar(&b.poll, "poll", false, "the driver never sleeps: it looks at its rings without end")
	f.BoolVar(&b.noIndirect, "no-indirect", false, "do not negotiate indirect descriptors")
	f.BoolVar(&b.noEventIdx, "no-event-idx", false, "do not negotiate event indices")
	f.BoolVar(&b.noMergeable, "no-mergeable", false, "do not negotiate receive buffers that can be merged")
	f.BoolVar(&b.noOffload, "no-offload", false, "do not negotiate checksum and segmentation offloads")
	f.StringVar(&b.busyPoll, "busy-poll", "", "how long the plugin looks for more work before it sleeps, such as 50us or 0s (default: its own)")
	f.StringArrayVar(&b.settings, "set", nil, "a setting of the plugin, `KEY=VALUE`; may be repeated")
	f.BoolVar(&b.json, "json", false, "print JSON")
	f.BoolVar(&b.inNamespace, "in-namespace", false, "it is in a network namespace of its own already")
	noError(f.MarkHidden("in-namespace"))
	noError(cmd.RegisterFlagCompletionFunc("pattern", cobra.FixedCompletions([]string{"send", "receive", "echo"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (a *app) benchNet(ctx context.Context, b *benchNet) error {
	if len(b.backends) == 0 {
		b.backends = []string{"null", "loopback"}
	}
	if err := b.check(); err != nil {
		return usageError{err}
	}
	if slices.Contains(b.backends, "tap") && !b.inNamespace {
		return a.inNetworkNamespace(ctx)
	}
	if b.inNamespace {
		if err := prepareNamespace(); err != nil {
			return err
		}
	}
	var results []bench.NetResult
	for _, backend := range b.backends {
		r, err := a.benchNetBackend(ctx, b, backend)
		results = append(results, r...)
		if err != nil {
			if !b.json && len(results) > 0 { // what was measured is not lost
				err = errors.Join(err, printNetResults(a.stdout, results))
			}
			return err
		}
	}
	if b.json {
		return a.printJSON(struct {
			Version int               `json:"schema_version"`
			Rounds  int               `json:"rounds"`
			Results []bench.NetResult `json:"results"`
		}{schemaVersion, b.rounds, results})
	}
	return printNetResults(a.stdout, results)
}

// check checks the flags.
func (b *benchNet) check() error {
	for _, n := range b.backends {
		if !slices.Contains(netBackendNames(), n) {
			return fmt.Errorf("bench net %s: there is no such back-end: want %s", n, strings.Join(netBackendNames(), ", "))
		}
		for _, p := range b.patterns {
			if !slices.Contains(bench.NetPatterns(), bench.NetPattern(p)) {
				return fmt.Errorf("--pattern %s: want one of %v", p, bench.NetPatterns())
			}
			if !slices.Contains(netBackends()[n], bench.NetPattern(p)) {
				return fmt.Errorf("--pattern %s: back-end %s has only %v", p, n, netBackends()[n])
			}
		}
	}
	for _, n := range b.frames {
		if n < bench.MinFrame || n > bench.MaxFrame {
			return fmt.Errorf("--frame-size %d: want %d to %d", n, bench.MinFrame, bench.MaxFrame)
		}
	}
	for _, d := range b.depths {
		if d < 1 || d > b.queueSize {
			return fmt.Errorf("--depth %d: want 1 to --queue-size, %d", d, b.queueSize)
		}
	}
	if b.pairs < 1 || b.pairs > 16 {
		return fmt.Errorf("--queue-pairs %d: want 1 to 16", b.pairs)
	}
	if b.queueSize < 4 || b.queueSize > 1024 || b.queueSize&(b.queueSize-1) != 0 {
		return fmt.Errorf("--queue-size %d: want a power of two from 4 to 1024", b.queueSize)
	}
	if b.batch < 1 || b.rounds < 1 || b.duration <= 0 || b.warmup < 0 {
		return errors.New("--batch, --rounds and --duration must be positive, --warmup not negative")
	}
	return nil
}

// benchNetBackend measures one back-end.
func (a *app) benchNetBackend(ctx context.Context, b *benchNet, backend string) (results []bench.NetResult, err error) {
	dir, err := os.MkdirTemp("", "virtplug-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	socket := filepath.Join(dir, "peer")
	var peer bench.NetPeer
	switch backend { // those that must be there before the device is
	case "socket":
		peer, err = bench.NewSocketPeer(socket)
	case "user":
		peer, err = bench.NewUserPeer()
	}
	if err != nil {
		return nil, err
	}
	newDevice, release, err := a.benchDevice(ctx, b.flag(backend, socket))
	if err != nil {
		return nil, err
	}
	dev := newDevice()
	defer func() {
		err = errors.Join(err, dev.Close(), release())
		if peer != nil {
			err = errors.Join(err, peer.Close())
		}
	}()
	if err := dev.Open(ctx); err != nil {
		return nil, err
	}
	if backend == "tap" {
		if peer, err = bench.NewTapPeer(benchTap); err != nil {
			return nil, err
		}
	}
	return a.benchNetCases(ctx, b, dev, backend, peer)
}

// flag is the device as --net would name it.
func (b *benchNet) flag(backend, socket string) config.DeviceFlag {
	parts := []string{"net", "backend=" + backend, "queue_size=" + strconv.Itoa(b.queueSize), "queue_pairs=" + strconv.Itoa(b.pairs)}
	switch backend {
	case "tap":
		parts = append(parts, "tap="+benchTap)
	case "socket":
		parts = append(parts, "connect=unix:"+socket)
		if slices.Max(b.frames) > 1514 {
			parts = append(parts, "mtu=65520")
		}
	}
	if b.busyPoll != "" {
		parts = append(parts, "ring.busy_poll="+b.busyPoll)
	}
	f := config.GenericFlag(strings.Join(append(parts, b.settings...), ","))
	f.Flag = "--set"
	return f
}

// benchNetCases measures all that was asked of one device.
func (a *app) benchNetCases(ctx context.Context, b *benchNet, dev *device.Device, backend string, peer bench.NetPeer) (results []bench.NetResult, err error) {
	for _, pattern := range netBackends()[backend] {
		if len(b.patterns) > 0 && !slices.Contains(b.patterns, string(pattern)) {
			continue
		}
		depths := []int{b.queueSize}
		if pattern == bench.NetEcho {
			depths = b.depths
		}
		for _, frame := range b.frames {
			for _, depth := range depths {
				fmt.Fprintf(a.stderr, "virtplug: %s: %s, %d bytes, depth %d\n", backend, pattern, frame, depth)
				r, err := b.measure(ctx, dev, bench.NetLoad{
					Pattern: pattern, FrameBytes: frame, Depth: depth, Batch: b.batch, Peer: peer, Returns: backend == "loopback",
					Duration: b.duration, Warmup: b.warmup, PID: dev.PID(), PinDriver: b.pin, Poll: b.poll,
				})
				if errors.Is(err, bench.ErrFrameTooLong) && !b.framesGiven {
					fmt.Fprintf(a.stderr, "virtplug: left out: %v\n", err)
					continue
				}
				if err != nil {
					return results, err
				}
				r.Backend = backend
				results = append(results, r)
			}
		}
	}
	return results, nil
}

// measure runs the rounds of one case and returns the one with the median of packets a second.
func (b *benchNet) measure(ctx context.Context, dev *device.Device, l bench.NetLoad) (bench.NetResult, error) {
	o := loopback.Options{
		QueueSize: uint16(b.queueSize), IndirectEntries: 8, //nolint:gosec // G115: checked
		MemoryBytes: uint64(b.pairs)*bench.NetMemory(b.queueSize, l.FrameBytes) + 4<<20, //nolint:gosec // G115: checked
	}
	for feature, no := range map[virtio.Features]bool{
		virtio.FIndirectDesc: b.noIndirect, virtio.FEventIdx: b.noEventIdx, virtio.FNetMrgRxBuf: b.noMergeable, bench.NetOffloads: b.noOffload,
	} {
		if no {
			o.Refuse |= feature
		}
	}
	rounds := make([]bench.NetResult, 0, b.rounds)
	for range b.rounds {
		m, err := loopback.Open(ctx, dev, o)
		if err != nil {
			return bench.NetResult{}, err
		}
		r, err := bench.RunNet(ctx, m, l)
		if err = errors.Join(err, m.Close(context.WithoutCancel(ctx))); err != nil {
			return r, err
		}
		rounds = append(rounds, r)
	}
	return bench.MedianNet(rounds), nil
}

func printNetResults(w io.Writer, results []bench.NetResult) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "back-end\tpattern\tbytes\tpairs\tdepth\tpackets/s\tGbit/s\tdropped\tp50 µs\tp99 µs\tCPU µs/packet: driver\tdevice\tpeer\tkicks\tcalls\t")
	number := func(v float64, digits int, known bool) string {
		if !known {
			return "-"
		}
		return strconv.FormatFloat(v, 'f', digits, 64)
	}
	for _, r := range results {
		echo := r.Pattern == bench.NetEcho
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%.0f\t%.2f\t%d\t%s\t%s\t%s\t%s\t%s\t%.3f\t%.3f\t\n", r.Backend, r.Pattern, r.FrameBytes, r.Pairs, r.Depth,
			r.Packets, r.GBit, r.Dropped, number(r.P50, 1, echo), number(r.P99, 1, echo),
			number(r.DriverCPU, 2, r.DriverCPU >= 0), number(r.DeviceCPU, 2, r.DeviceCPU >= 0), number(r.PeerCPU, 2, r.PeerCPU >= 0), r.Kicks, r.Calls)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range results {
		if r.Damaged > 0 || r.Disordered > 0 || r.Lost != 0 {
			fmt.Fprintf(w, "%s, %s, %d bytes: of %d packets %d are lost, %d damaged, %d out of order\n", r.Backend, r.Pattern, r.FrameBytes, r.Sent, r.Lost, r.Damaged, r.Disordered)
		}
	}
	return nil
}
