// Command plugin is what the tests of pluginhost start: its file name says how it behaves.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

func main() {
	name := strings.TrimPrefix(filepath.Base(os.Args[0]), "virtplug-plugin-")
	if len(os.Args) > 1 && os.Args[1] == "describe" {
		describe(name)
	}
	switch name {
	case "crash":
		fmt.Fprintln(os.Stderr, "the frobnicator is missing")
		os.Exit(3)
	case "panic":
		panic("a bug of the author")
	case "hang":
		fmt.Fprintln(os.Stderr, "waiting for nothing")
		select {}
	case "noisy":
		fmt.Println("hello, I am a plugin")
	case "oldapi":
		fmt.Println("1|99|unix|/nowhere|grpc|")
		select {}
	case "elsewhere":
		fmt.Println("1|1|unix|/tmp/not-its-own.sock|grpc|")
		select {}
	case "nobody":
		fmt.Printf("1|1|unix|%s|grpc|\n", filepath.Join(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "nobody"))
		select {}
	case "quiet":
		_ = os.Stdout.Close()
		select {}
	case "holder":
		hold()
	case "alias":
		name = "good"
	}
	sdk.Main(sdk.Plugin[settings]{
		Name: name, Version: "1.2.3", Device: virtio.IDEntropy, Description: "for tests",
		Commands: []sdk.CommandSpec{{Name: "env"}, {Name: "hang"}, {Name: "exit"}},
		New:      newDevice,
	})
}

func describe(name string) {
	switch name {
	case "crash":
		fmt.Fprintln(os.Stderr, "cannot describe")
		os.Exit(4)
	case "hang":
		select {}
	case "endless":
		for {
			fmt.Println(strings.Repeat("x", 1000))
		}
	case "noisy":
		fmt.Println("hello")
	}
}

// hold starts a process in a session of its own that keeps our pipes open.
func hold() {
	c := exec.Command("/bin/sleep", "300")
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		panic(err)
	}
	fmt.Fprintf(os.Stderr, "grandchild %d\n", c.Process.Pid)
}

type settings struct {
	Flood string `config:"flood" help:"Write to the log without end: raw or stderr."`
	Stall string `config:"stall" help:"If this file is there, a chain removes it and is never completed."`
	Bad   bool   `config:"bad" help:"Refuse these settings."`
}

type device struct{ stall string }

func newDevice(env *sdk.Env, c settings) (sdk.Device, error) {
	if c.Bad {
		return nil, fmt.Errorf("these settings are bad")
	}
	if c.Flood != "" {
		out := os.Stderr // which go-plugin has replaced
		if c.Flood == "raw" {
			out = rawStderr()
		}
		go func() {
			for i := 0; ; i++ {
				fmt.Fprintf(out, "flood %d %s\n", i, strings.Repeat("x", 100))
			}
		}()
	}
	env.Notice("ready", map[string]string{"pid": fmt.Sprint(os.Getpid())})
	return &device{c.Stall}, nil
}

func (*device) Spec() sdk.Spec { return sdk.Spec{QueueSizes: []uint16{64}} }

func (d *device) HandleChain(context.Context, *sdk.Queue, *virtq.Chain) error {
	if d.stall != "" && os.Remove(d.stall) == nil {
		select {}
	}
	return nil
}

func (*device) Command(_ context.Context, name string, _ json.RawMessage) (any, error) {
	switch name {
	case "hang":
		time.Sleep(time.Hour)
	case "exit":
		fmt.Fprintln(rawStderr(), "told to exit")
		os.Exit(7)
	}
	return report()
}

// rawStderr is descriptor 2, which a runtime's or a C library's messages go to.
func rawStderr() *os.File { return os.NewFile(2, "stderr") }

// report tells what the process inherited.
func report() (any, error) {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	links := map[string]string{}
	for _, f := range fds {
		if l, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil {
			links[f.Name()] = l
		}
	}
	exe, _ := os.Executable()
	sid, _, _ := syscall.Syscall(syscall.SYS_GETSID, 0, 0, 0)
	return map[string]any{"env": os.Environ(), "fds": links, "exe": exe, "sid": sid, "pid": os.Getpid()}, nil
}
