package pluginhost

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/agext/levenshtein"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// FilePrefix begins the file name of every plugin program: virtplug-plugin-<name>.
const FilePrefix = "virtplug-plugin-"

// EnvPath names the environment variable with a list of directories, as PATH. If it is set, no other place is searched
// but those of --plugin-dir.
const EnvPath = "VIRTPLUG_PLUGIN_PATH"

// Search says where to look for plugins.
type Search struct {
	// Dirs are those of --plugin-dir: searched first, and, if there are any, alone.
	Dirs []string
	// Getenv reads the environment; nil: os.Getenv.
	Getenv func(string) string
	// Executable is the running program; its directory is searched, so that a build finds its own plugins. Empty:
	// os.Executable.
	Executable string
}

// Program is a plugin program that was found.
type Program struct {
	// Name is the plugin's name, from the file name; empty if that says none (FromPath).
	Name string
	// Path is absolute.
	Path string
}

// Finding is one plugin file that a search met.
type Finding struct {
	Program
	// Err is why it is not used: it was refused (ErrUnsafe, no permission, …). nil: it may be used.
	Err error
	// ShadowedBy is the path of the program of the same name in an earlier directory; empty: this one is used.
	ShadowedBy string
}

// Directory is one place that was searched.
type Directory struct {
	Path string
	// Err is why nothing was taken from it; fs.ErrNotExist for the usual missing one.
	Err error
}

// Catalogue is the result of a search, in its order.
type Catalogue struct {
	Directories []Directory
	Findings    []Finding
}

// Path lists the directories to search, in order, absolute. Relative ones from the environment are left out: a plugin is
// never taken from the working directory unless the command line says so.
func (s Search) Path() []string {
	getenv := s.Getenv
	if getenv == nil {
		getenv = os.Getenv
	}
	var dirs []string
	add := func(dir ...string) {
		if d := filepath.Join(dir...); dir[0] != "" && filepath.IsAbs(d) && !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	if len(s.Dirs) > 0 {
		for _, d := range s.Dirs {
			if abs, err := filepath.Abs(d); err == nil && d != "" {
				add(abs)
			}
		}
		return dirs
	}
	if list := getenv(EnvPath); list != "" {
		for _, d := range filepath.SplitList(list) {
			add(d)
		}
		return dirs
	}
	exe := s.Executable
	if exe == "" {
		exe, _ = os.Executable() // without it, the other places remain
	}
	if target, err := filepath.EvalSymlinks(exe); err == nil {
		add(filepath.Dir(target))
	}
	data := getenv("XDG_DATA_HOME")
	if home := getenv("HOME"); data == "" && home != "" {
		data = filepath.Join(home, ".local", "share")
	}
	add(data, "virtplug", "plugins")
	shared := getenv("XDG_DATA_DIRS")
	if shared == "" {
		shared = "/usr/local/share:/usr/share"
	}
	for _, d := range filepath.SplitList(shared) {
		add(d, "virtplug", "plugins")
	}
	add("/usr/lib/virtplug/plugins")
	add("/usr/local/lib/virtplug/plugins")
	return dirs
}

// Discover searches. It starts nothing. What is wrong with a place or a file is in the result.
func Discover(s Search) Catalogue {
	var c Catalogue
	first := map[string]string{}
	for _, dir := range s.Path() {
		d := Directory{Path: dir}
		var entries []os.DirEntry
		if d.Err = checkDir(dir); d.Err == nil || errors.Is(d.Err, ErrUnsafe) {
			var err error
			if entries, err = os.ReadDir(dir); err != nil && d.Err == nil {
				d.Err = err
			}
		}
		c.Directories = append(c.Directories, d)
		for _, e := range entries {
			name, ok := strings.CutPrefix(e.Name(), FilePrefix)
			if !ok || !pluginrpc.ValidName(name) {
				continue
			}
			f := Finding{Program: Program{Name: name, Path: filepath.Join(dir, e.Name())}, Err: d.Err}
			if f.Err == nil {
				f.Err = checkProgram(f.Path)
			}
			if by, taken := first[name]; taken {
				f.ShadowedBy = by
			} else if f.Err == nil {
				first[name] = f.Path
			}
			c.Findings = append(c.Findings, f)
		}
	}
	return c
}

// Find returns the program of a name. ErrNotFound tells what there is instead; if there is one that was refused, the
// reason is in the error.
func (c Catalogue) Find(name string) (Program, error) {
	var refused []error
	var others []string
	for _, f := range c.Findings {
		switch {
		case f.Name == name && f.Err == nil && f.ShadowedBy == "":
			return f.Program, nil
		case f.Name == name && f.Err != nil:
			refused = append(refused, f.Err)
		case f.Err == nil && f.ShadowedBy == "":
			others = append(others, f.Name)
		}
	}
	if len(refused) > 0 {
		return Program{}, fmt.Errorf("find plugin: %s: %w: refused: %w", name, ErrNotFound, errors.Join(refused...))
	}
	return Program{}, fmt.Errorf("find plugin: %s: %w: %s", name, ErrNotFound, c.hint(name, others))
}

// hint helps somebody whose plugin is not there.
func (c Catalogue) hint(name string, others []string) string {
	slices.Sort(others)
	for _, o := range others {
		if levenshtein.Distance(name, o, nil) <= 2 {
			return fmt.Sprintf("did you mean %q?", o)
		}
	}
	var dirs []string
	for _, d := range c.Directories {
		dirs = append(dirs, d.Path)
	}
	have := "no plugin at all"
	if len(others) > 0 {
		have = strings.Join(others, ", ")
	}
	return fmt.Sprintf("no file %s%s in %s (found: %s)", FilePrefix, name, strings.Join(dirs, ", "), have)
}

// FromPath takes a program that somebody named by its path. The rules on who may write to it hold as well.
func FromPath(path string) (Program, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return Program{}, fmt.Errorf("find plugin: %s: %w", path, err)
	}
	if err := errors.Join(checkDir(filepath.Dir(abs)), checkProgram(abs)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", ErrNotFound, err)
		}
		return Program{}, fmt.Errorf("find plugin: %w", err)
	}
	p := Program{Path: abs}
	if name, ok := strings.CutPrefix(filepath.Base(abs), FilePrefix); ok && pluginrpc.ValidName(name) {
		p.Name = name
	}
	return p, nil
}

// worldWritable is the permission bit that nobody but the owner and the group may miss.
const worldWritable = 0o002

// checkDir refuses a directory in which everybody may put a plugin; the sticky bit (as on /tmp) does not help.
func checkDir(dir string) error {
	st, err := os.Stat(dir)
	switch {
	case err != nil:
		return err
	case !st.IsDir():
		return fmt.Errorf("%s: not a directory", dir)
	case st.Mode().Perm()&worldWritable != 0:
		return fmt.Errorf("%s: directory is %w: run `chmod o-w %s` if you trust what is in it", dir, ErrUnsafe, dir)
	}
	return nil
}

// checkProgram refuses what cannot or must not be run. A symbolic link is judged by where it leads.
func checkProgram(path string) error {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if target != path {
		if err := checkDir(filepath.Dir(target)); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	st, err := os.Stat(target)
	if err != nil {
		return err
	}
	return checkMode(path, st)
}

func checkMode(path string, st fs.FileInfo) error {
	switch {
	case st.IsDir():
		return fmt.Errorf("%s: is a directory, not a program", path)
	case !st.Mode().IsRegular():
		return fmt.Errorf("%s: not a regular file", path)
	case st.Mode().Perm()&worldWritable != 0:
		return fmt.Errorf("%s: file is %w: run `chmod o-w %s` if you trust it", path, ErrUnsafe, path)
	case st.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("%s: not executable: run `chmod +x %s`: %w", path, path, fs.ErrPermission)
	}
	return nil
}
