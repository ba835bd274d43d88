package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
)

// inNetworkNamespace runs the same command again in a network namespace of its own, which ends with it: nothing of the host's
// network is touched. A user who is not root becomes root of a user namespace.
func (a *app) inNetworkNamespace(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := slices.Clone(os.Args[1:])
	end := slices.Index(args, "--") // behind it flags are names
	if end < 0 {
		end = len(args)
	}
	cmd := exec.CommandContext(ctx, self, slices.Insert(args, end, "--in-namespace")...) //nolint:gosec // G204: this very program
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr = a.stdout, a.stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	runtime.LockOSThread() // whose death the child is told
	defer runtime.UnlockOSThread()
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exitStatus{code: exit.ExitCode()}
	}
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("bench net: back-end tap: a network namespace of its own: %w: run it as root, or let users make namespaces (sysctl kernel.unprivileged_userns_clone=1, or with AppArmor kernel.apparmor_restrict_unprivileged_userns=0)", err)
	}
	return err
}

// prepareNamespace makes a new network namespace usable: the host's own address is there, and nobody but the bench says anything.
func prepareNamespace() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bench net: the new network namespace: %w", err)
	}
	// A kernel without IPv6 has no such file, and is as quiet.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("bench net: the new network namespace: %w", err)
	}
	return nil
}
