package launcher

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// shortDir is a directory whose path leaves room for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "vl") //nolint:usetesting // the test's own is too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestStaleRunDirectoriesGoAndLivingOnesStay(t *testing.T) {
	t.Parallel()
	root := filepath.Join(shortDir(t), "r")
	living, err := newRunDir(root, "a")
	if err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(root, "dead-1")
	if err := os.MkdirAll(filepath.Join(stale, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	second, err := newRunDir(root, "a") // the same VM again, in one process
	if err != nil {
		t.Fatal(err)
	}
	if second.path == living.path {
		t.Errorf("two run directories at %s", second.path)
	}
	if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stale directory: %v", err)
	}
	if info, err := os.Stat(living.path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("living directory: %v, %v", info, err)
	}
	if err := errors.Join(living.Close(), second.Close()); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left are %v, %v", entries, err)
	}
}

func TestRunRootOfSomebodyElseIsRefused(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{file, link, filepath.Join(dir, strings.Repeat("x", 70))} {
		if d, err := newRunDir(root, "a"); err == nil {
			t.Errorf("newRunDir(%s) made %s", root, d.path)
		}
	}
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil { //nolint:gosec // that is the point
		t.Fatal(err)
	}
	d, err := newRunDir(open, strings.Repeat("v", 32))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(open); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the root stays open to others: %v, %v", info.Mode(), err)
	}
	if len(d.path) > maxRunDir {
		t.Errorf("%s is too long", d.path)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
