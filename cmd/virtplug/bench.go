package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/virtplug/virtplug/core/bench"
	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/device"
	"github.com/virtplug/virtplug/core/launcher"
	"github.com/virtplug/virtplug/core/machine/loopback"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func (a *app) benchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "bench",
		Short:   "Measure a device, without a guest",
		Long:    "Measure a device's plugin through the loopback machine: our own driver loads it, so the figures are the back-end's alone.",
		Example: "  virtplug bench block --pattern randread --depth 32\n  virtplug bench net",
	}
	cmd.AddCommand(a.benchBlockCommand(), a.benchNetCommand(), a.benchStartCommand())
	return cmd
}

// interruptible is a command's context, which ends when the user interrupts it: then what it made is removed.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
}

// benchBlock is what `bench block` was asked.
type benchBlock struct {
	image            string
	settings         []string
	pattern          string
	block, size      string
	span             string
	depths           []int
	queues, rounds   int
	duration, warmup time.Duration
	verify, pin      bool
	noIndirect       bool
	noEventIdx       bool
	busyPoll         string
	json             bool
}

func (a *app) benchBlockCommand() *cobra.Command {
	var b benchBlock
	cmd := &cobra.Command{
		Use:   "block [IMAGE]",
		Short: "Measure a block device: IOPS, MB/s, latencies, the plugin's CPU time per request",
		Long: `Measure a block device. Without IMAGE a temporary file is made, filled, and removed. Patterns that write overwrite IMAGE.

IOPS on a busy machine spread by tens of percent; the plugin's CPU time per request is the stable figure. The driver sleeps
while nothing is done, as a guest does.`,
		Example: `  virtplug bench block
  virtplug bench block --pattern randwrite --depth 1,32,128 --queues 2 --duration 3s
  virtplug bench block disk.img --pattern read --block-size 128K --set direct=true --json
  virtplug bench block --pattern randrw --verify`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				b.image = args[0]
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			return a.benchBlock(ctx, &b)
		},
	}
	f := cmd.Flags()
	f.StringVar(&b.pattern, "pattern", string(bench.RandRead), "`PATTERN`: randread, randwrite, read, write or randrw")
	f.StringVar(&b.block, "block-size", "4K", "`SIZE` of a request")
	f.StringVar(&b.size, "size", "256M", "`SIZE` of the temporary image")
	f.StringVar(&b.span, "span", "", "use only the first `SIZE` of the disk")
	f.IntSliceVar(&b.depths, "depth", []int{1, 32, 128}, "requests in flight on each queue; several are measured in turn")
	f.IntVar(&b.queues, "queues", 1, "`NUMBER` of queues")
	f.IntVar(&b.rounds, "rounds", 3, "measure each depth this many times and tell the round with the median IOPS")
	f.DurationVar(&b.duration, "duration", time.Second, "how long a round lasts")
	f.DurationVar(&b.warmup, "warmup", 200*time.Millisecond, "how long to load the device before a round")
	f.BoolVar(&b.verify, "verify", false, "check the data of every read; with a pattern that also writes")
	f.BoolVar(&b.pin, "pin", false, "tie the driver's thread of queue n to processor n")
	f.BoolVar(&b.noIndirect, "no-indirect", false, "do not negotiate indirect descriptors")
	f.BoolVar(&b.noEventIdx, "no-event-idx", false, "do not negotiate event indices")
	f.StringVar(&b.busyPoll, "busy-poll", "", "how long the plugin looks for more work before it sleeps, such as 50us or 0s (default: its own)")
	f.StringArrayVar(&b.settings, "set", nil, "a setting of the plugin, `KEY=VALUE`; may be repeated")
	f.BoolVar(&b.json, "json", false, "print JSON")
	patterns := make([]string, 0, len(bench.Patterns()))
	for _, p := range bench.Patterns() {
		patterns = append(patterns, string(p))
	}
	noError(cmd.RegisterFlagCompletionFunc("pattern", cobra.FixedCompletions(patterns, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (a *app) benchBlock(ctx context.Context, b *benchBlock) (err error) {
	load, size, err := b.load()
	if err != nil {
		return usageError{err}
	}
	image := b.image
	if image == "" {
		made, err := makeImage(a.stderr, size)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.Remove(made)) }()
		image = made
	}
	newDevice, release, err := a.benchDevice(ctx, b.flag(image))
	if err != nil {
		return err
	}
	dev := newDevice()
	defer func() { err = errors.Join(err, dev.Close(), release()) }()
	if err := dev.Open(ctx); err != nil {
		return err
	}
	var results []bench.BlockResult
	for _, depth := range b.depths {
		load.Depth, load.PID = depth, dev.PID()
		r, err := b.measure(ctx, dev, load)
		if err != nil {
			return err
		}
		results = append(results, r)
	}
	if b.json {
		return a.printJSON(struct {
			Version int                 `json:"schema_version"`
			Image   string              `json:"image"`
			Rounds  int                 `json:"rounds"`
			Results []bench.BlockResult `json:"results"`
		}{schemaVersion, b.image, b.rounds, results})
	}
	return printBlockResults(a.stdout, results)
}

// load checks the flags.
func (b *benchBlock) load() (l bench.BlockLoad, imageSize int64, err error) {
	l = bench.BlockLoad{
		Pattern: bench.Pattern(b.pattern), Duration: b.duration, Warmup: b.warmup, Verify: b.verify, PinDriver: b.pin,
	}
	known := false
	for _, p := range bench.Patterns() {
		known = known || p == l.Pattern
	}
	if !known {
		return l, 0, fmt.Errorf("--pattern %s: want one of %v", b.pattern, bench.Patterns())
	}
	request, err := config.ParseSize(b.block)
	if err != nil {
		return l, 0, fmt.Errorf("--block-size: %w", err)
	}
	if imageSize, err = config.ParseSize(b.size); err != nil {
		return l, 0, fmt.Errorf("--size: %w", err)
	}
	if b.span != "" {
		span, err := config.ParseSize(b.span)
		if err != nil {
			return l, 0, fmt.Errorf("--span: %w", err)
		}
		l.SpanBytes = uint64(span) //nolint:gosec // G115: ParseSize gives no negative
	}
	const maxRequest = 16 << 20
	if request < virtio.SectorSize || request > maxRequest || request%virtio.SectorSize != 0 {
		return l, 0, fmt.Errorf("--block-size %s: want a multiple of %d up to 16M", b.block, virtio.SectorSize)
	}
	l.RequestBytes = int(request)
	for _, d := range b.depths {
		if d < 1 || d > 1024 {
			return l, 0, fmt.Errorf("--depth %d: want 1 to 1024", d)
		}
	}
	if b.queues < 1 || b.rounds < 1 || b.duration <= 0 || b.warmup < 0 {
		return l, 0, errors.New("--queues, --rounds and --duration must be positive, --warmup not negative")
	}
	return l, imageSize, nil
}

// flag is the device as --block would name it.
func (b *benchBlock) flag(image string) config.DeviceFlag {
	parts := []string{"path=" + image, "queues=" + strconv.Itoa(b.queues)}
	if b.busyPoll != "" {
		parts = append(parts, "ring.busy_poll="+b.busyPoll)
	}
	f := config.BlockFlag(strings.Join(append(parts, b.settings...), ","))
	f.Flag = "--set"
	return f
}

// benchDevice prepares the device that a flag describes: newDevice makes one that is not open yet, again and again.
func (a *app) benchDevice(ctx context.Context, flag config.DeviceFlag) (newDevice func() *device.Device, release func() error, err error) {
	host := &launcher.Host{Log: a.logger()}
	vm, err := config.Load(ctx, config.Input{Flags: config.Flags{
		Name: "bench", Memory: "64M", PluginDirs: a.pluginDirs, Devices: []config.DeviceFlag{flag},
	}}, host, config.Options{CheckFiles: true})
	if err != nil {
		return nil, nil, err
	}
	c := vm.Devices[0]
	runDir, err := os.MkdirTemp("", "virtplug-bench-")
	if err != nil {
		return nil, nil, err
	}
	prepared, err := host.Prepare(vm.Name, &c, runDir)
	if err != nil {
		return nil, nil, errors.Join(vm.At(c.Name, "", err), os.RemoveAll(runDir))
	}
	newDevice = func() *device.Device {
		return device.New(device.Options{
			Name: c.Name, DeviceID: virtio.DeviceID(c.Description.GetDeviceId()), Log: a.logger(), Withhold: c.Withheld,
			State: prepared.State(),
			Start: func(ctx context.Context) (device.Instance, error) { return prepared.Start(ctx, nil) },
		})
	}
	return newDevice, func() error { return errors.Join(prepared.Close(), os.RemoveAll(runDir)) }, nil
}

// measure runs the rounds of one depth and returns the one with the median IOPS.
func (b *benchBlock) measure(ctx context.Context, dev *device.Device, l bench.BlockLoad) (bench.BlockResult, error) {
	o := loopback.Options{
		Queues: b.queues, QueueSize: 256, IndirectEntries: 4,
		MemoryBytes: uint64(b.queues) * (uint64(l.Depth)*(uint64(l.RequestBytes)+8192) + 1<<20), //nolint:gosec // G115: bounded by load
	}
	if b.noIndirect {
		o.Refuse |= virtio.FIndirectDesc
	}
	if b.noEventIdx {
		o.Refuse |= virtio.FEventIdx
	}
	m, err := loopback.Open(ctx, dev, o)
	if err != nil {
		return bench.BlockResult{}, err
	}
	if len(m.Queues()) < b.queues {
		return bench.BlockResult{}, errors.Join(fmt.Errorf("bench block: the device has %d queues, not %d", len(m.Queues()), b.queues), m.Close(ctx))
	}
	var rounds []bench.BlockResult
	for range b.rounds {
		r, err := bench.RunBlock(ctx, m, l)
		if err != nil {
			return r, errors.Join(err, m.Close(context.WithoutCancel(ctx)))
		}
		rounds = append(rounds, r)
	}
	return bench.MedianBlock(rounds), m.Close(ctx)
}

// makeImage fills a temporary file, so that no hole answers for the disk.
func makeImage(progress io.Writer, size int64) (path string, err error) {
	f, err := os.CreateTemp("", "virtplug-bench-*.img")
	if err != nil {
		return "", err
	}
	fmt.Fprintf(progress, "virtplug: filling %s with %s\n", f.Name(), config.FormatSize(size))
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte((i>>8 ^ i) & 0xff)
	}
	for left := size; left > 0 && err == nil; left -= int64(len(chunk)) {
		_, err = f.Write(chunk[:min(left, int64(len(chunk)))])
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("make a temporary image: %w", err), os.Remove(f.Name()))
	}
	return f.Name(), nil
}

func printBlockResults(w io.Writer, results []bench.BlockResult) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "pattern\tbytes\tqueues\tdepth\tIOPS\tMB/s\tp50 µs\tp99 µs\tp99.9 µs\tdevice CPU µs/req\terrors\tverified\t")
	for _, r := range results {
		cpu := "-"
		if r.DeviceCPU >= 0 {
			cpu = strconv.FormatFloat(r.DeviceCPU, 'f', 2, 64)
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%.0f\t%.1f\t%.1f\t%.1f\t%.1f\t%s\t%d\t%d\t\n", r.Pattern, r.RequestBytes, r.Queues, r.Depth,
			r.IOPS, r.MBPerSecond, r.P50, r.P99, r.P999, cpu, r.Errors, r.Verified)
	}
	return t.Flush()
}
