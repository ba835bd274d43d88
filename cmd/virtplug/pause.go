package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/virtplug/virtplug/core/control"
	controlv1 "github.com/virtplug/virtplug/core/control/v1"
	"github.com/virtplug/virtplug/core/launcher"
)

func (a *app) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pause VM",
		Short: "Stop the processors of a running VM",
		Long: `Stop the processors of a running VM until 'virtplug resume': its memory and devices stay, and it uses no processor time.
Devices finish what they were told. Nothing happens if it is paused already. VM is its name, or its launcher's process number.

Only the kvm machine can do that.`,
		Example:           "  virtplug pause demo\n  virtplug resume demo",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeOneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.setPaused(cmd.Context(), args[0], func(ctx context.Context, c *control.Client) error {
				_, err := c.Pause(ctx, &controlv1.PauseRequest{})
				return err
			})
		},
	}
}

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "resume VM",
		Short:             "Let a paused VM go on",
		Long:              "Let a VM go on that was paused by 'virtplug pause'. Nothing happens if it runs. VM is its name, or its launcher's process number.",
		Example:           "  virtplug resume demo",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeOneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.setPaused(cmd.Context(), args[0], func(ctx context.Context, c *control.Client) error {
				_, err := c.Resume(ctx, &controlv1.ResumeRequest{})
				return err
			})
		},
	}
}

// setPaused finds a VM and pauses or resumes it.
func (a *app) setPaused(ctx context.Context, vm string, do func(context.Context, *control.Client) error) error {
	c, err := control.Find(ctx, launcher.DefaultRunRoot(), vm)
	if err != nil {
		return err
	}
	if err := errors.Join(plain(do(ctx, c)), c.Close()); err != nil {
		return fmt.Errorf("%s: %w", vm, err)
	}
	return nil
}

// completeOneVM completes the only argument.
func completeOneVM(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return completeVM(cmd, args, word)
}
