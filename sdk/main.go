package sdk

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

const (
	// drainTimeout is how long the end of the process waits for chains in flight; those that are left are continued by the
	// next instance. Below the 2 s after which go-plugin's host kills.
	drainTimeout = 1500 * time.Millisecond
	// closeTimeout is how long the end of the process may take in all; then it ends the hard way.
	closeTimeout = 10 * time.Second
)

// Main is the whole main function of a plugin: it answers `describe`, --version and --help, or serves the launcher that
// started the process until that ends it, and exits. The device's Close, if it has one, is called once before a regular exit: on
// the launcher's request, on SIGTERM, and when the launcher died.
func Main[C any](p Plugin[C]) {
	unix.CloseOnExec(pluginrpc.SocketFD) // before anything can start a process that would keep it open
	d, err := define(p)
	if err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "%s: wrong use of sdk.Main: %v\n", os.Args[0], err)
		os.Exit(1)
	}
	os.Exit(run(d, os.Args[1:], os.Getenv(pluginrpc.CookieKey), os.Stdout, os.Stderr))
}

// run is Main behind its arguments; it returns the exit status.
func run(d *definition, args []string, cookie string, stdout, stderr io.Writer) int {
	desc := d.description
	say := func(w io.Writer, status int, format string, a ...any) int {
		if _, err := fmt.Fprintf(w, format, a...); err != nil {
			return 1
		}
		return status
	}
	switch {
	case len(args) == 0 && cookie == pluginrpc.CookieValue:
		return serve(d)
	case len(args) == 0:
		return say(stderr, 1, "This is the %s device plugin for virtplug; `virtplug run` starts it, it does nothing by itself.\n"+
			"Try `virtplug plugin describe %s`, or this program with the argument describe or --help.\n", desc.GetName(), desc.GetName())
	case len(args) > 1:
	case args[0] == "describe":
		text, err := pluginrpc.FormatDescription(desc)
		if err != nil {
			return say(stderr, 1, "%v\n", err)
		}
		return say(stdout, 0, "%s", text)
	case args[0] == "--version":
		return say(stdout, 0, "%s %s (plugin API %d)\n", desc.GetName(), desc.GetVersion(), pluginrpc.APIVersion)
	case args[0] == "--help", args[0] == "-h":
		return say(stdout, 0, "%s %s: %s\n\nA device plugin for virtplug: `virtplug run` starts it.\n\n"+
			"  describe    print what the plugin is, its settings and commands, as JSON\n  --version   print the version\n  --help      print this\n",
			desc.GetName(), desc.GetVersion(), desc.GetDescription())
	}
	return say(stderr, 2, "%s: unknown arguments %q: try --help\n", desc.GetName(), args)
}

// serve runs the plugin for its launcher and returns the exit status.
func serve(d *definition) int {
	// go-plugin replaces os.Stderr later; the launcher reads the log, JSON lines, from the real one.
	options := hclog.LoggerOptions{Name: d.description.GetName(), Level: hclog.Debug, Output: os.Stderr, JSONFormat: true}
	log := hclog.New(&options)
	options.Level = hclog.Info // what go-plugin says of its own set-up is nobody's last words
	glueLog := hclog.New(&options)
	// The log's reader dies with the launcher, and we still have a device to close: make a write to it an error, not our end.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	rt := newRuntime(d, log)
	srv, err := pluginrpc.NewServer(rt, os.NewFile(pluginrpc.SocketFD, "descriptor 3"))
	if err != nil {
		log.Error("the launcher must pass a descriptor socket as descriptor 3", "error", err)
		return 1
	}
	ending, end := context.WithCancelCause(context.Background())
	defer end(nil)
	go watch(ending, end, srv.LauncherGone())

	gs := &grpcStopper{log: log}
	stop := context.AfterFunc(ending, func() {
		log.Info("ending", "reason", context.Cause(ending).Error())
		gs.stop()
		hardEnd(log)
	})
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: pluginrpc.Handshake(), Plugins: pluginrpc.DevicePlugins(srv), GRPCServer: gs.make, Logger: glueLog,
	})
	stop()
	hardEnd(log)
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := rt.Close(ctx); err != nil {
		log.Warn("end", "error", err)
	}
	if err := srv.Close(); err != nil {
		log.Warn("end", "error", err)
	}
	if !gs.made() { // go-plugin could not even begin, and has said why
		return 1
	}
	return 0
}

// watch ends the serving on SIGTERM or when the launcher is gone. go-plugin itself ignores SIGINT: Ctrl-C is for the launcher.
func watch(ctx context.Context, end context.CancelCauseFunc, gone <-chan struct{}) {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	select {
	case <-term:
		end(fmt.Errorf("SIGTERM"))
	case <-gone:
		end(fmt.Errorf("the launcher is gone"))
	case <-ctx.Done():
	}
}

// hardEnd ends the process after closeTimeout even if a device hangs in Close: nobody may be left to kill it.
func hardEnd(log hclog.Logger) {
	time.AfterFunc(closeTimeout, func() {
		log.Error("the device does not close: ending the hard way", "after", closeTimeout)
		os.Exit(1)
	})
}

// grpcStopper makes go-plugin's gRPC server and can stop it, also before it is made.
type grpcStopper struct {
	log     hclog.Logger
	mu      sync.Mutex
	server  *grpc.Server
	stopped bool
}

func (g *grpcStopper) make(opts []grpc.ServerOption) *grpc.Server {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.server = grpc.NewServer(append(opts, pluginrpc.ServerOptions(g.log)...)...)
	if g.stopped {
		g.server.Stop()
	}
	return g.server
}

func (g *grpcStopper) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopped = true
	if g.server != nil {
		g.server.Stop()
	}
}

func (g *grpcStopper) made() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.server != nil
}
