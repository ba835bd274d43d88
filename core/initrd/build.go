package initrd

import (
	"compress/gzip"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// rootfs holds the archive's own scripts.
//
//go:embed rootfs
var rootfs embed.FS

// Options say what an initrd holds.
type Options struct {
	// Kernels are the images whose modules are added; none: DefaultKernel. Those of different releases live side by side, so
	// the archive boots each of them.
	Kernels []string
	// ModuleDir holds the modules of a single kernel; empty: ModuleDir of its release. NoModules adds none (for a kernel that
	// has all drivers built in).
	ModuleDir string
	NoModules bool
	// Modules are files of further modules, built for one of the kernels. They are loaded when the guest boots.
	Modules []string
	// Busybox is the path of a static busybox; empty: Debian's places.
	Busybox string
	// Add are further files; a later one replaces an earlier one and whatever the archive has of the same name. A file
	// /etc/rc.local is run once, before the shells, with its output on the first console.
	Add []File
	// Hostname is the guest's name; empty: "virtplug".
	Hostname string
}

// Build writes an initrd to w: a gzip-compressed newc cpio archive. The same files give the same bytes. Errors name what to
// install where something of the host is missing (ErrNoBusybox, ErrNoKernel, ErrNoModules).
func Build(ctx context.Context, w io.Writer, o Options) error {
	t, err := collect(ctx, o)
	if err != nil {
		return fmt.Errorf("build initrd: %w", err)
	}
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return fmt.Errorf("build initrd: %w", err)
	}
	if err := errors.Join(t.writeTo(z), z.Close()); err != nil {
		return fmt.Errorf("build initrd: %w", err)
	}
	return nil
}

// BuildFile is Build into a file, which appears complete or not at all.
func BuildFile(ctx context.Context, name string, o Options) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return fmt.Errorf("build initrd: %w", err)
	}
	err = Build(ctx, f, o)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// collect gathers the archive's files.
func collect(ctx context.Context, o Options) (tree, error) {
	t := tree{}
	if err := addSkeleton(t, o); err != nil {
		return nil, err
	}
	if err := addBusybox(ctx, t, o.Busybox); err != nil {
		return nil, err
	}
	if o.NoModules && len(o.Modules) > 0 {
		return nil, errors.New("no modules are to be added, and yet some are named")
	}
	if !o.NoModules {
		if err := addKernelModules(t, o); err != nil {
			return nil, err
		}
	}
	for _, f := range o.Add {
		if err := addFile(t, f); err != nil {
			return nil, fmt.Errorf("add %s: %w", f.Host, err)
		}
	}
	return t, nil
}

// addSkeleton adds the directories, the device nodes that exist before /dev is mounted, and the scripts of rootfs/.
func addSkeleton(t tree, o Options) error {
	for _, d := range []string{"dev", "dev/pts", "proc", "sys", "run", "mnt", "root", "etc", "usr/bin", "usr/sbin", "bin", "sbin", "lib", "var"} {
		if err := t.put(d, entry{mode: typeDir | 0o755}); err != nil {
			return err
		}
	}
	hostname := o.Hostname
	if hostname == "" {
		hostname = "virtplug"
	}
	if err := errors.Join(
		t.put("tmp", entry{mode: typeDir | 0o1777}),
		t.put("dev/console", entry{mode: typeChar | 0o600, major: 5, minor: 1}),
		t.put("run/never", entry{mode: typeFIFO | 0o600}),
		t.put("dev/null", entry{mode: typeChar | 0o666, major: 1, minor: 3}),
		t.put("etc/hostname", entry{mode: typeRegular | 0o644, data: []byte(hostname + "\n")}),
		t.put("sbin/init", entry{mode: typeSymlink | 0o777, data: []byte("/init")}),
	); err != nil {
		return err
	}
	return fs.WalkDir(rootfs, "rootfs", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := rootfs.ReadFile(p)
		if err != nil {
			return err
		}
		mode := uint32(0o644)
		if strings.HasPrefix(string(data), "#!") {
			mode = 0o755
		}
		return t.put(strings.TrimPrefix(p, "rootfs/"), entry{mode: typeRegular | mode, data: data})
	})
}

// addKernelModules adds the modules that fit the kernels.
func addKernelModules(t tree, o Options) error {
	kernels := o.Kernels
	if len(kernels) == 0 {
		k, err := DefaultKernel()
		if err != nil {
			return err
		}
		kernels = []string{k}
	}
	if o.ModuleDir != "" && len(kernels) > 1 {
		return fmt.Errorf("module directory %s: is of one kernel, but there are %d", o.ModuleDir, len(kernels))
	}
	extra, err := outOfTreeModules(o.Modules)
	if err != nil {
		return err
	}
	var releases []string
	for _, kernel := range kernels {
		release, err := Release(kernel)
		if err != nil {
			return err
		}
		if slices.Contains(releases, release) {
			continue
		}
		releases = append(releases, release)
		dir := o.ModuleDir
		if dir == "" {
			if dir, err = ModuleDir(release); err != nil {
				return fmt.Errorf("kernel %s: %w", kernel, err)
			}
		}
		m, err := findModules(dir, release, extra[release])
		if err == nil {
			err = m.addTo(t)
		}
		if err != nil {
			return fmt.Errorf("kernel %s: %w", kernel, err)
		}
	}
	return loadAtBoot(t, extra, releases)
}

// outOfTreeModules reads modules, by the release of the kernel that they are for.
func outOfTreeModules(files []string) (map[string][]outOfTree, error) {
	out := map[string][]outOfTree{}
	for _, f := range files {
		x, err := readOutOfTree(f)
		if err != nil {
			return nil, err
		}
		out[x.release] = append(out[x.release], x)
	}
	return out, nil
}

// loadAtBoot lists the modules that /init loads in any case.
func loadAtBoot(t tree, extra map[string][]outOfTree, releases []string) error {
	var names []string
	for release, list := range extra {
		for _, x := range list {
			if !slices.Contains(releases, release) {
				return fmt.Errorf("module %s: is for kernel %s, but the archive is for %s: build it with the headers of the guest's kernel, or name that kernel",
					x.path, release, strings.Join(releases, " and "))
			}
			names = append(names, x.name+"\n")
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return t.put("etc/modules", entry{mode: typeRegular | 0o644, data: []byte(strings.Join(slices.Compact(names), ""))})
}
