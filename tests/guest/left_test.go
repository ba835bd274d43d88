package guest_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// process is one process, also after its number was used again.
type process struct {
	pid   int
	start string
}

// family collects the descendants of a process while it runs, to see afterwards whether all have ended.
type family struct {
	root int
	// dir is the test's directory: a process that has it in its environment, arguments or working directory belongs to the
	// family too, also if its parents were gone before anybody looked.
	dir  string
	mu   sync.Mutex
	seen map[process]string
	quit chan struct{}
	once sync.Once
	done chan struct{}
}

// familyPoll is how often descendants are looked for; arbitrary. What lives shorter than that is not left behind.
const familyPoll = 20 * time.Millisecond

func watchFamily(root int, dir string) *family {
	f := &family{root: root, dir: dir, seen: map[process]string{}, quit: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(f.done)
		tick := time.NewTicker(familyPoll)
		defer tick.Stop()
		for {
			f.look()
			select {
			case <-tick.C:
			case <-f.quit:
				return
			}
		}
	}()
	return f
}

func (f *family) stop() {
	f.once.Do(func() { close(f.quit) })
	<-f.done
}

// stat is what /proc/PID/stat tells.
func stat(pid int) (name string, parent int, start string, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, "", false
	}
	text := string(b)
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < 0 {
		return "", 0, "", false
	}
	fields := strings.Fields(text[end+1:])
	if len(fields) < 20 || fields[0] == "Z" {
		return "", 0, "", false
	}
	parent, err = strconv.Atoi(fields[1])
	return text[open+1 : end], parent, fields[19], err == nil
}

// pids lists all processes.
func pids() []int {
	names, _ := filepath.Glob("/proc/[0-9]*")
	out := make([]int, 0, len(names))
	for _, n := range names {
		if pid, err := strconv.Atoi(filepath.Base(n)); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// look adds the present descendants of the root and of everybody seen before.
func (f *family) look() {
	type info struct {
		name, start string
	}
	children := map[int][]int{}
	infos := map[int]info{}
	for _, pid := range pids() {
		if name, parent, start, ok := stat(pid); ok {
			children[parent] = append(children[parent], pid)
			infos[pid] = info{name, start}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	todo := []int{f.root}
	for p := range f.seen {
		if infos[p.pid].start == p.start {
			todo = append(todo, p.pid)
		}
	}
	visited := map[int]bool{}
	for len(todo) > 0 {
		pid := todo[0]
		todo = todo[1:]
		if visited[pid] {
			continue
		}
		visited[pid] = true
		if i, ok := infos[pid]; ok {
			f.seen[process{pid, i.start}] = i.name
		}
		todo = append(todo, children[pid]...)
	}
}

// alive lists those that still run.
func (f *family) alive() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for p := range f.seen {
		if name, _, start, ok := stat(p.pid); ok && start == p.start {
			out = append(out, fmt.Sprintf("%s (%d)", name, p.pid))
		}
	}
	for _, pid := range pids() {
		if name, _, start, ok := stat(pid); ok && f.seen[process{pid, start}] == "" && pid != os.Getpid() && f.marked(pid) {
			out = append(out, fmt.Sprintf("%s (%d)", name, pid))
		}
	}
	slices.Sort(out)
	return out
}

// marked tells whether a process has to do with the family's directory.
func (f *family) marked(pid int) bool {
	cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.HasPrefix(cwd, f.dir) || strings.Contains(string(env), f.dir) || strings.Contains(string(args), f.dir)
}

// plugin returns the number of the plugin's process, 0 if there is none, and others.
func (f *family) plugin(name string) []int {
	f.look()
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []int
	for p := range f.seen {
		if _, _, start, ok := stat(p.pid); !ok || start != p.start {
			continue
		}
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid)); err == nil && filepath.Base(exe) == "virtplug-plugin-"+name {
			out = append(out, p.pid)
		}
	}
	return out
}

// kill ends all that still run, by number.
func (f *family) kill() {
	f.look()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, pid := range pids() {
		_, _, start, ok := stat(pid)
		if ok && pid != os.Getpid() && (f.seen[process{pid, start}] != "" || f.marked(pid)) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// leftLimit is how long the last helpers may take to be gone after the launcher: the kernel ends them.
const leftLimit = 30 * time.Second

// nothingLeft checks that no process, no file and no terminal mode of a run is left.
func (v *vm) nothingLeft() {
	v.t.Helper()
	v.family.stop()
	deadline := time.Now().Add(leftLimit)
	for len(v.family.alive()) > 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if left := v.family.alive(); len(left) > 0 {
		v.t.Errorf("processes left behind: %s", strings.Join(left, ", "))
	}
	for _, dir := range []string{v.run, v.tmp} {
		_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && d.Name() != ".lock" {
				v.t.Errorf("file left behind: %s", p)
			}
			return err
		})
	}
	names, err := os.ReadDir(filepath.Join(v.run, "virtplug"))
	for _, n := range names {
		if n.IsDir() {
			v.t.Errorf("run directory left behind: %s (%v)", n.Name(), err)
		}
	}
	if after := v.termios(); after != v.before {
		v.t.Errorf("terminal mode is\n%+v, was\n%+v", after, v.before)
	}
}
