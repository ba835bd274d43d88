package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// inside tells a test that it runs in a namespace of its own.
const inside = "VIRTPLUG_TEST_NAMESPACE"

// inNamespace runs the test again, as root of a network namespace of its own, in a process of its own; true: this is that process.
// The other one has nothing left to do.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatal(err)
		}
		return true
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("MISSING: this needs /dev/net/tun: `modprobe tun`: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v") //nolint:gosec // G204: this program
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	err := cmd.Run()
	switch exit := (*exec.ExitError)(nil); {
	case err != nil && !errors.As(err, &exit):
		t.Skipf("MISSING: this needs user namespaces, `sysctl user.max_user_namespaces=1000`: %v", err)
	case err != nil:
		t.Errorf("in a namespace: %v\n%s", err, out.String())
	case strings.Contains(out.String(), "--- SKIP"):
		t.Skip(out.String())
	case testing.Verbose():
		t.Log(out.String())
	}
	return false
}
