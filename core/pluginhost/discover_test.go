package pluginhost_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/virtplug/virtplug/core/pluginhost"
)

func TestSearchPath(t *testing.T) {
	t.Parallel()
	exe := filepath.Join(t.TempDir(), "virtplug")
	if err := os.WriteFile(exe, nil, 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	bin := filepath.Dir(exe)
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		dirs []string
		env  map[string]string
		want []string
	}{
		{"plugin-dir alone", []string{"/a", "b", "/a"}, map[string]string{pluginhost.EnvPath: "/x"}, []string{"/a", filepath.Join(cwd, "b")}},
		{"environment alone", nil, map[string]string{pluginhost.EnvPath: "/x:/y", "HOME": "/root"}, []string{"/x", "/y"}},
		{"never the working directory", nil, map[string]string{pluginhost.EnvPath: ":.:rel:/x:"}, []string{"/x"}},
		{"defaults", nil, map[string]string{"HOME": "/home/u"}, []string{
			bin, "/home/u/.local/share/virtplug/plugins", "/usr/local/share/virtplug/plugins", "/usr/share/virtplug/plugins",
			"/usr/lib/virtplug/plugins", "/usr/local/lib/virtplug/plugins",
		}},
		{"XDG", nil, map[string]string{"HOME": "/home/u", "XDG_DATA_HOME": "/d", "XDG_DATA_DIRS": "/e:rel:/f"}, []string{
			bin, "/d/virtplug/plugins", "/e/virtplug/plugins", "/f/virtplug/plugins",
			"/usr/lib/virtplug/plugins", "/usr/local/lib/virtplug/plugins",
		}},
		{"no home", nil, map[string]string{"XDG_DATA_HOME": "rel", "XDG_DATA_DIRS": "/e"}, []string{
			bin, "/e/virtplug/plugins", "/usr/lib/virtplug/plugins", "/usr/local/lib/virtplug/plugins",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := pluginhost.Search{Dirs: tc.dirs, Executable: exe, Getenv: func(k string) string { return tc.env[k] }}
			if got := s.Path(); !slices.Equal(got, tc.want) {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

// put makes a program file.
func put(t *testing.T, dir, name string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDiscover(t *testing.T) {
	t.Parallel()
	first, second, open := t.TempDir(), t.TempDir(), t.TempDir()
	if err := os.Chmod(open, os.ModeSticky|0o777); err != nil {
		t.Fatal(err)
	}
	block := put(t, first, "virtplug-plugin-block", 0o755)
	put(t, first, "virtplug-plugin-loose", 0o757)
	put(t, first, "virtplug-plugin-plain", 0o644)
	put(t, first, "virtplug-plugin-Bad_Name", 0o755)
	put(t, first, "other", 0o755)
	loose := put(t, second, "virtplug-plugin-loose", 0o755)
	put(t, second, "virtplug-plugin-block", 0o755)
	put(t, open, "virtplug-plugin-tmp", 0o755)
	if err := os.Symlink(filepath.Join(open, "virtplug-plugin-tmp"), filepath.Join(first, "virtplug-plugin-link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(first, "virtplug-plugin-dir"), 0o755); err != nil { //nolint:gosec // as usual
		t.Fatal(err)
	}
	missing := filepath.Join(first, "missing")
	c := pluginhost.Discover(pluginhost.Search{Dirs: []string{first, missing, open, second}})

	for name, want := range map[string]string{"block": block, "loose": loose} {
		if p, err := c.Find(name); err != nil || p.Path != want || p.Name != name {
			t.Errorf("%s: %+v, %v: want %s", name, p, err, want)
		}
	}
	for name, want := range map[string]string{
		"tmp":   "run `chmod o-w " + open + "`",
		"link":  "run `chmod o-w " + open + "`",
		"plain": "not executable",
		"dir":   "is a directory",
		"blokc": `did you mean "block"?`,
		"xyzzy": "found: block, loose",
	} {
		if _, err := c.Find(name); !errors.Is(err, pluginhost.ErrNotFound) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v: want %q", name, err, want)
		}
	}
	if _, err := c.Find("tmp"); !errors.Is(err, pluginhost.ErrUnsafe) {
		t.Error("tmp:", err)
	}
	shadowed := 0
	for _, f := range c.Findings {
		if f.ShadowedBy == block {
			shadowed++
		}
		if strings.Contains(f.Path, "Bad_Name") || strings.HasSuffix(f.Path, "other") {
			t.Error("found", f.Path)
		}
	}
	if shadowed != 1 {
		t.Errorf("%d shadowed by %s: want 1", shadowed, block)
	}
	if d := c.Directories[1]; d.Path != missing || !errors.Is(d.Err, os.ErrNotExist) {
		t.Errorf("missing directory: %+v", d)
	}
}

func TestFromPath(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	named, other := put(t, dir, "virtplug-plugin-block", 0o755), put(t, dir, "mydisk", 0o755)
	if p, err := pluginhost.FromPath(named); err != nil || p.Name != "block" {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := pluginhost.FromPath(other); err != nil || p.Name != "" || p.Path != other {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := pluginhost.FromPath(filepath.Join(dir, "missing")); !errors.Is(err, pluginhost.ErrNotFound) {
		t.Error(err)
	}
	if _, err := pluginhost.FromPath(put(t, dir, "loose", 0o757)); !errors.Is(err, pluginhost.ErrUnsafe) {
		t.Error(err)
	}
}

func TestAScriptCanBeAPlugin(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), pluginhost.FilePrefix+"good")
	script := "#!/bin/sh\nexec '" + plugin(t, "good").Path + "' \"$@\"\n"
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	s := spec(t, "good")
	s.Program.Path = path
	start(t, s)
}
