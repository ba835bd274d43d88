package initrd

import (
	"bytes"
	"io/fs"
	"os/exec"
	"strings"
	"testing"
)

// The shell that runs the scripts in the guest understands them.
func TestScriptsParse(t *testing.T) {
	t.Parallel()
	busybox := needBusybox(t)
	n := 0
	if err := fs.WalkDir(rootfs, "rootfs", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := rootfs.ReadFile(p)
		if err != nil || !strings.HasPrefix(string(text), "#!/bin/sh\n") && !strings.HasSuffix(p, "/profile") {
			return err
		}
		n++
		cmd := exec.CommandContext(t.Context(), busybox, "sh", "-n")
		cmd.Stdin = bytes.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", p, err, out)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n < 6 {
		t.Errorf("%d scripts", n)
	}
}

// What DHCP needs is there: the script at busybox's default place too.
func TestArchiveHasTheNetworksParts(t *testing.T) {
	t.Parallel()
	busybox := needBusybox(t)
	tr := tree{}
	if err := addSkeleton(tr, Options{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sbin/network-up", "etc/udhcpc/default.script"} {
		if e := tr[name]; e.mode != typeRegular|0o755 {
			t.Errorf("/%s: mode %o", name, e.mode)
		}
	}
	names, err := applets(t.Context(), busybox, tr)
	if err != nil {
		t.Fatal(err)
	}
	all := " " + strings.Join(names, " ") + " "
	for _, name := range []string{"/udhcpc ", "/ip ", "/wget ", "/nc ", "/ping ", "/start-stop-daemon "} {
		if !strings.Contains(all, name) {
			t.Errorf("busybox has no %s", name)
		}
	}
}
