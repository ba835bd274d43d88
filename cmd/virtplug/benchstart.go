package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/virtplug/virtplug/core/bench"
	"github.com/virtplug/virtplug/core/config"
)

func (a *app) benchStartCommand() *cobra.Command {
	var rounds int
	var idle time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "start [TYPE[=NAME][,KEY=VALUE…]]",
		Short: "Measure how long a plugin instance takes to start, and what it holds while idle",
		Long: `Measure how long a device's plugin takes from the launcher's decision until it is configured, and what an idle instance
holds: memory, threads, context switches. The device is written as for run --device; without one it is a block device on a small
temporary image.`,
		Example: "  virtplug bench start\n  virtplug bench start console,backend=null --rounds 100 --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if rounds < 1 || idle <= 0 {
				return usageError{errors.New("bench start: --rounds and --idle must be positive")}
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			if len(args) == 1 {
				return a.benchStart(ctx, args[0], rounds, idle, asJSON)
			}
			image, err := makeImage(a.stderr, 1<<20)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, os.Remove(image)) }()
			return a.benchStart(ctx, "block,path="+image, rounds, idle, asJSON)
		},
	}
	f := cmd.Flags()
	f.IntVar(&rounds, "rounds", 20, "how often to start it")
	f.DurationVar(&idle, "idle", 3*time.Second, "how long to watch the last instance idle")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) benchStart(ctx context.Context, spec string, rounds int, idle time.Duration, asJSON bool) (err error) {
	newDevice, release, err := a.benchDevice(ctx, config.GenericFlag(spec))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	r, err := bench.RunStart(ctx, rounds, idle, newDevice)
	if err != nil {
		return err
	}
	if asJSON {
		return a.printJSON(struct {
			Version int `json:"schema_version"`
			bench.StartResult
		}{schemaVersion, r})
	}
	_, err = fmt.Fprintf(a.stdout, `start   median %.1f ms, longest %.1f ms of %d
stop    median %.1f ms
idle    RSS %.1f MiB, PSS %.1f MiB, %d threads, %.1f context switches a second, %.2f %% of a processor
`, r.StartMedian, r.StartMax, r.Rounds, r.StopMedian, mib(r.RSS), mib(r.PSS), r.Threads, r.IdleSwitches, r.IdleCPU)
	return err
}

func mib(n uint64) float64 { return float64(n) / (1 << 20) }
