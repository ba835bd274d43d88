package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/control"
	controlv1 "github.com/virtplug/virtplug/core/control/v1"
	"github.com/virtplug/virtplug/core/launcher"
)

func (a *app) psCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List running VMs and their devices",
		Long: `List your running VMs and their devices: what each is doing, and for each device its plugin's process and how many requests
it has served since that process started. With --json also the queues', plugins' and machines' counters.`,
		Example: "  virtplug ps\n  virtplug ps --json",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.ps(cmd.Context(), asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) ps(ctx context.Context, asJSON bool) error {
	clients, errs := control.All(ctx, launcher.DefaultRunRoot())
	vms := make([]*controlv1.DescribeResponse, 0, len(clients))
	for _, c := range clients {
		d, err := c.Describe(ctx, &controlv1.DescribeRequest{Statistics: true})
		if err == nil {
			vms = append(vms, d)
		} else {
			errs = append(errs, fmt.Errorf("ask %s: %w", c.Description.GetName(), err))
		}
		errs = append(errs, c.Close())
	}
	if asJSON {
		return errors.Join(a.psJSON(vms), errors.Join(errs...))
	}
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "VM\tPID\tMACHINE\tUP\tDEVICE\tPLUGIN\tSTATE\tPLUGIN PID\tREQUESTS\tCAUSE")
	for _, v := range vms {
		up := time.Since(time.Unix(v.GetStartedUnix(), 0)).Round(time.Second)
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t\t\t%s\t\t\t\n", v.GetName(), v.GetPid(), v.GetMachine(), up, v.GetState())
		for _, d := range v.GetDevices() {
			pid := "-"
			if d.GetPid() != 0 {
				pid = strconv.Itoa(int(d.GetPid()))
			}
			var served uint64
			for _, q := range d.GetQueues() {
				served += q.GetCompleted()
			}
			fmt.Fprintf(t, "\t\t\t\t%s\t%s\t%s\t%s\t%d\t%s\n", d.GetName(), d.GetType(), d.GetState(), pid, served, d.GetCause())
		}
	}
	return errors.Join(t.Flush(), errors.Join(errs...))
}

func (a *app) psJSON(vms []*controlv1.DescribeResponse) error {
	out := struct {
		Version int               `json:"schema_version"`
		VMs     []json.RawMessage `json:"vms"`
	}{schemaVersion, []json.RawMessage{}}
	for _, v := range vms {
		b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(v)
		if err != nil {
			return err
		}
		out.VMs = append(out.VMs, b)
	}
	return a.printJSON(out)
}

func (a *app) stopCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:               "stop VM",
		Short:             "End a running VM",
		Long:              "End a running VM as Ctrl-C does, and wait until nothing of it is left. VM is its name, or its launcher's process number.",
		Example:           "  virtplug stop demo\n  virtplug stop 4711 --timeout 1m",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeOneVM,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.stop(cmd.Context(), args[0], timeout) },
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait")
	return cmd
}

func (a *app) stop(ctx context.Context, vm string, timeout time.Duration) error {
	c, err := control.Find(ctx, launcher.DefaultRunRoot(), vm)
	if err != nil {
		return err
	}
	_, err = c.Stop(ctx, &controlv1.StopRequest{})
	if err = errors.Join(err, c.Close()); err != nil {
		return fmt.Errorf("stop: %s: %w", vm, err)
	}
	for end := time.Now().Add(timeout); ; {
		if _, err := os.Stat(c.Dir); errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("stop: %s: it is still there after %v; `kill -9 %d` ends its launcher, guest and plugins at once", vm, timeout, c.Description.GetPid())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (a *app) resizeCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "resize VM DEVICE [SIZE]",
		Short: "Tell a running guest that a disk has another size",
		Long: `Tell a running guest that a disk has another size. Without SIZE the size of the image is read again, after something else
has changed it. With SIZE the image itself is changed; making it smaller needs --force, for what is beyond the new end is lost.`,
		Example:           "  truncate -s +1G disk.img && virtplug resize demo vda\n  virtplug resize demo vda 20G",
		Args:              cobra.RangeArgs(2, 3),
		ValidArgsFunction: completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			request := map[string]any{}
			if len(args) == 3 {
				n, err := config.ParseSize(args[2])
				if err != nil {
					return usageError{fmt.Errorf("resize: %w", err)}
				}
				request["size"] = n
			}
			if force {
				request["force"] = true
			}
			return a.deviceCommand(cmd.Context(), args[0], args[1], "resize", request)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "make it smaller too")
	return cmd
}

func (a *app) commandCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "command VM DEVICE NAME [KEY=VALUE]...",
		Short: "Run a command of a running device",
		Long: `Run one of the commands of a running device's plugin, which 'virtplug plugin describe' lists. A VALUE that is JSON is taken
as such, anything else as text. The answer is printed as JSON.`,
		Example:           "  virtplug command demo con0 resize port=0 cols=132 rows=43",
		Args:              cobra.MinimumNArgs(3),
		ValidArgsFunction: completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			request := map[string]any{}
			for _, arg := range args[3:] {
				key, value, ok := strings.Cut(arg, "=")
				if !ok || key == "" {
					return usageError{fmt.Errorf("command: %q: want KEY=VALUE", arg)}
				}
				if json.Valid([]byte(value)) {
					request[key] = json.RawMessage(value)
				} else {
					request[key] = value
				}
			}
			return a.deviceCommand(cmd.Context(), args[0], args[1], args[2], request)
		},
	}
}

// deviceCommand runs a command and prints its answer.
func (a *app) deviceCommand(ctx context.Context, vm, device, name string, request map[string]any) error {
	b, err := json.Marshal(request)
	if err != nil {
		return err
	}
	c, err := control.Find(ctx, launcher.DefaultRunRoot(), vm)
	if err != nil {
		return err
	}
	r, err := c.Command(ctx, &controlv1.CommandRequest{Device: device, Name: name, ArgsJson: string(b)})
	if err := errors.Join(plain(err), c.Close()); err != nil {
		return fmt.Errorf("%s: %w", vm, err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, []byte(r.GetResultJson()), "", "  "); err != nil {
		return fmt.Errorf("%s: %s: the plugin's answer is not JSON: %w", vm, device, err)
	}
	_, err = fmt.Fprintln(a.stdout, out.String())
	return err
}

// plain is a launcher's error without gRPC's words around it.
func plain(err error) error {
	if s, ok := status.FromError(err); ok && err != nil {
		return errors.New(s.Message())
	}
	return err
}

// completeVM completes the first argument, and behind it the name of a device.
func completeVM(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	clients, _ := control.All(cmd.Context(), launcher.DefaultRunRoot()) // completion has nowhere to tell errors
	var words []string
	for _, c := range clients {
		if len(args) == 0 {
			words = append(words, c.Description.GetName())
		} else if c.Description.GetName() == args[0] {
			for _, d := range c.Description.GetDevices() {
				words = append(words, d.GetName())
			}
		}
		_ = c.Close()
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}
