package session

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

// Family collects the descendants of a process while it runs, to see afterwards whether all have ended.
type Family struct {
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

// Descendants are looked for every familyPoll; arbitrary. What lives shorter than that is not left behind. Looking takes at most
// one part in familyShare of the time, for in an emulator it takes long.
const (
	familyPoll  = 20 * time.Millisecond
	familyShare = 20
)

// Watch starts to collect the descendants of root and the processes that have dir, an absolute path, about them.
func Watch(root int, dir string) *Family {
	f := &Family{root: root, dir: dir, seen: map[process]string{}, quit: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(f.done)
		for {
			start := time.Now()
			f.Look()
			select {
			case <-time.After(max(familyPoll, familyShare*time.Since(start))):
			case <-f.quit:
				return
			}
		}
	}()
	return f
}

// Stop ends the watch. Idempotent.
func (f *Family) Stop() {
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

// Look adds the present descendants of the root and of everybody seen before.
func (f *Family) Look() {
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

// Alive lists those that still run.
func (f *Family) Alive() []string {
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
func (f *Family) marked(pid int) bool {
	cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.HasPrefix(cwd, f.dir) || strings.Contains(string(env), f.dir) || strings.Contains(string(args), f.dir)
}

// Plugin returns the numbers of the processes that run the plugin NAME.
func (f *Family) Plugin(name string) []int { return f.Running("virtplug-plugin-" + name) }

// Running returns the numbers of the processes that run a program, by its file's name, in ascending order.
func (f *Family) Running(program string) []int {
	f.Look()
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []int
	for p := range f.seen {
		if _, _, start, ok := stat(p.pid); !ok || start != p.start {
			continue
		}
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid)); err == nil && filepath.Base(exe) == program {
			out = append(out, p.pid)
		}
	}
	slices.Sort(out)
	return out
}

// Kill ends all that still run, by number.
func (f *Family) Kill() {
	f.Look()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, pid := range pids() {
		_, _, start, ok := stat(pid)
		if ok && pid != os.Getpid() && (f.seen[process{pid, start}] != "" || f.marked(pid)) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// Plugin returns the numbers of the processes of the VM that run the plugin NAME.
func (v *VM) Plugin(name string) []int { return v.Family.Plugin(name) }

// KillPlugin ends the only instance of a plugin and waits until another serves.
func (v *VM) KillPlugin(name string) {
	v.tb.Helper()
	old := v.Family.Plugin(name)
	if len(old) == 0 {
		v.tb.Fatalf("no process of plugin %s", name)
	}
	if err := unix.Kill(old[0], unix.SIGKILL); err != nil {
		v.tb.Fatal(err)
	}
	deadline := time.Now().Add(EndLimit)
	for {
		if now := v.Family.Plugin(name); slices.ContainsFunc(now, func(p int) bool { return !slices.Contains(old, p) }) {
			return
		}
		if time.Now().After(deadline) {
			v.tb.Fatalf("plugin %s was not started again within %v", name, EndLimit)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// leftLimit is how long the last helpers may take to be gone after the launcher: the kernel ends them.
const leftLimit = 30 * time.Second

// NothingLeft checks that no process, no file and no terminal mode of a run is left.
func (v *VM) NothingLeft() {
	v.tb.Helper()
	v.Family.Stop()
	deadline := time.Now().Add(leftLimit)
	for len(v.Family.Alive()) > 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if left := v.Family.Alive(); len(left) > 0 {
		v.tb.Errorf("processes left behind: %s", strings.Join(left, ", "))
	}
	for _, dir := range []string{v.Run, v.Tmp} {
		_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && d.Name() != ".lock" {
				v.tb.Errorf("file left behind: %s", p)
			}
			return err
		})
	}
	names, err := os.ReadDir(filepath.Join(v.Run, "virtplug"))
	for _, n := range names {
		if n.IsDir() {
			v.tb.Errorf("run directory left behind: %s (%v)", n.Name(), err)
		}
	}
	if err := v.TerminalChanged(); err != nil {
		v.tb.Error(err)
	}
}
