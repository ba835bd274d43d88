package pluginrpc_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// asLauncher makes the test binary a launcher with one plugin; its value is the file in which the device's Close writes.
const asLauncher = "PLUGINRPC_TEST_LAUNCHER"

// launch starts and configures a plugin, prints its process ID and waits to be killed.
func launch(closed string) {
	fail := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	f, err := os.OpenFile(closed, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600) //nolint:gosec // G304: the test's
	fail(err)
	socket, child, err := pluginrpc.NewSocketPair()
	fail(err)
	cmd := exec.CommandContext(context.Background(), os.Args[0]) //nolint:gosec // G204, G702: ourselves
	cmd.Env = []string{asPlugin + "=1", "TMPDIR=" + os.Getenv("TMPDIR")}
	cmd.ExtraFiles = []*os.File{child}
	host := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: pluginrpc.Handshake(), Plugins: pluginrpc.LauncherPlugins(socket), Cmd: cmd, SkipHostEnv: true,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC}, Logger: hclog.NewNullLogger(),
	})
	conn, err := host.Client()
	fail(err)
	fail(child.Close())
	raw, err := conn.Dispense(pluginrpc.PluginName)
	fail(err)
	client, ok := raw.(*pluginrpc.Client)
	if !ok {
		panic("no client")
	}
	_, err = client.Configure(context.Background(), pluginrpc.Settings{
		DeviceName: "m0", ConfigJSON: []byte(`{"closed":"c"}`), Files: []pluginrpc.FileGrant{{Attribute: "closed", FD: int(f.Fd())}},
	})
	fail(err)
	_, err = fmt.Fprintln(os.Stdout, cmd.Process.Pid)
	fail(err)
	select {}
}

// A launcher that is killed cannot say goodbye, and nobody reads the plugin's log any more.
func TestThePluginEndsCleanlyWhenItsLauncherIsKilled(t *testing.T) {
	t.Parallel()
	closed := filepath.Join(t.TempDir(), "closed")
	cmd := exec.CommandContext(t.Context(), os.Args[0]) //nolint:gosec // G204, G702: ourselves
	cmd.Env = []string{asLauncher + "=" + closed, "TMPDIR=" + shortTemp(t)}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the launcher was not killed")
	}
	eventually(t, "the plugin's end", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ") // nobody may reap it here
	})
	if text, err := os.ReadFile(closed); err != nil || string(text) != "closed\n" { //nolint:gosec // G304: in t.TempDir
		t.Errorf("Close wrote %q, %v: want one line", text, err)
	}
}
