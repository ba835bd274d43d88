package nested_test

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/virtplug/virtplug/core/initrd"
	"github.com/virtplug/virtplug/tests/kvm/parts"
)

// repository is where the sources are, seen from here.
const repository = "../.."

// Where things are in level 1.
const (
	guestParts = "/parts"
	guestTests = "/parts/kvm.test"
)

// level1 is what QEMU boots.
type level1 struct{ kernel, initrd string }

// rcLocal runs in level 1, once, before any shell. The second serial port carries what the tests print and nothing else, the last
// line is their exit status. Go's own limit ends tests that hang with all stacks, before the limit of the whole run.
const rcLocal = `#!/bin/sh
for module in %s; do
	insmod "/lib/modules/$(uname -r)/$module" || echo "cannot load $module"
done
# Guest memory in large pages: 50 instead of 22000 page faults a boot.
echo always >/sys/kernel/mm/transparent_hugepage/shmem_enabled
stty -F /dev/ttyS1 raw -echo
export VIRTPLUG_TEST_PARTS=%s HOME=/root
cd /root
%s -test.v=test2json -test.parallel=1 -test.timeout=%s -test.run='%s' -test.skip='%s' >/dev/ttyS1 2>&1 </dev/null
echo "%s$?" >/dev/ttyS1
# What was written has to be out before the machine goes.
stty -F /dev/ttyS1 >/dev/null
poweroff -f
`

// exitMark begins the line that ends an inner run.
const exitMark = "=== the inner run has ended with exit status "

// buildImage makes level 1 in dir: parts, tests and modules in a RAM disk that is not compressed, for unpacking takes long in an
// emulator.
func buildImage(ctx context.Context, dir, run, skip string) (level1, error) {
	kernel, _, err := parts.Kernel()
	if err != nil {
		return level1{}, err
	}
	built, err := parts.Build(ctx, repository, filepath.Join(dir, "parts"))
	if err != nil {
		return level1{}, err
	}
	if err := built.BuildLinux(ctx, repository); err != nil {
		return level1{}, err
	}
	if err := parts.TestBinary(ctx, repository, filepath.Join(string(built), filepath.Base(guestTests)), "./tests/kvm"); err != nil {
		return level1{}, err
	}
	// KVM for AMD's processors, and taps for the guests' networks.
	add, modules, err := modulesFor(kernel, "kvm-amd", "tun")
	if err != nil {
		return level1{}, err
	}
	script := filepath.Join(dir, "rc.local")
	text := fmt.Sprintf(rcLocal, strings.Join(modules, " "), guestParts, guestTests, innerLimit, run, skip, exitMark)
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil { //nolint:gosec // G703: a file of this test
		return level1{}, err
	}
	add = append(add, initrd.File{Host: string(built), Guest: guestParts}, initrd.File{Host: script, Guest: "/etc/rc.local"})
	image := level1{kernel: kernel, initrd: filepath.Join(dir, "initrd")}
	return image, writeInitrd(ctx, image.initrd, initrd.Options{Kernels: []string{kernel}, Add: add, Hostname: "level1"})
}

// writeInitrd writes a RAM disk without its compression.
func writeInitrd(ctx context.Context, name string, o initrd.Options) error {
	r, w := io.Pipe()
	go func() { w.CloseWithError(initrd.Build(ctx, w, o)) }()
	z, err := gzip.NewReader(r)
	if err != nil {
		return errors.Join(err, r.Close())
	}
	f, err := os.Create(name) //nolint:gosec // G304: a file of this test
	if err != nil {
		return errors.Join(err, r.Close())
	}
	_, err = io.Copy(f, z) //nolint:gosec // G110: made by this program
	return errors.Join(err, f.Close(), r.Close())
}

// modulesFor are the files of these modules and of those that they need, and their names below /lib/modules/RELEASE in the order
// in which they are loaded.
func modulesFor(kernel string, wanted ...string) (files []initrd.File, names []string, err error) {
	release, err := initrd.Release(kernel)
	if err != nil {
		return nil, nil, err
	}
	dir, err := initrd.ModuleDir(release)
	if err != nil {
		return nil, nil, err
	}
	deps, err := os.ReadFile(filepath.Join(dir, "modules.dep")) //nolint:gosec // G304: of the installed kernel
	if err != nil {
		return nil, nil, err
	}
	needs := map[string][]string{}
	for line := range strings.Lines(string(deps)) {
		file, rest, _ := strings.Cut(line, ":")
		base, _, _ := strings.Cut(path.Base(file), ".")
		needs[base] = append([]string{file}, strings.Fields(rest)...)
	}
	for _, w := range wanted {
		chain := slices.Clone(needs[w])
		if len(chain) == 0 {
			return nil, nil, fmt.Errorf("%s/modules.dep: no %s; reinstall the kernel's package", dir, w)
		}
		slices.Reverse(chain)
		for _, n := range chain {
			if slices.Contains(names, n) {
				continue
			}
			names = append(names, n)
			files = append(files, initrd.File{Host: filepath.Join(dir, n), Guest: path.Join("/lib/modules", release, n)})
		}
	}
	return files, names, nil
}
