package guest_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

const mebi = 1 << 20

// escaped doubles what is taken out on the way to the guest's first console: Ctrl-A, which the launcher's escape key is made
// of, and Ctrl-O, which is Linux's SysRq key on a virtio console that the kernel logs to.
func escaped(b []byte) []byte {
	b = bytes.ReplaceAll(b, []byte{0x01}, []byte{0x01, 0x01})
	return bytes.ReplaceAll(b, []byte{0x0f}, []byte{0x0f, 0x0f})
}

func TestGuestConsoleCarriesAMebibyteEachWay(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	boot(t, v, "--console", "stdio")

	data := pattern(3, mebi)
	v.typeIn("stty raw -echo; echo REA''DY; head -c 1048576 | sha256sum; stty sane; echo DO''NE\r")
	v.expect("READY\n", commandLimit)
	go func() {
		if _, err := v.term.Write(escaped(data)); err != nil {
			t.Errorf("write to the terminal: %v", err)
		}
	}()
	got := strings.TrimSpace(v.expect("DONE", commandLimit))
	if want := fmt.Sprintf("%x", sha256.Sum256(data)); !strings.HasPrefix(got, want) {
		t.Errorf("the guest read %q, want %s", got, want)
	}

	v.typeIn("stty raw -echo; echo STA''RT; head -c 1048576 /test/data; stty sane\r")
	v.expect("START\n", commandLimit)
	if !bytes.Equal(v.bytes(mebi, commandLimit), pattern(1, 3<<20)[:mebi]) {
		t.Error("what the guest wrote is not what came")
	}
	v.must("true")
	v.powerOff()
}

// Both directions at once, on a socket: nothing is escaped, nothing is a terminal.
func TestGuestConsoleOnASocketCarriesBothWaysAtOnce(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	boot(t, v, "--console", "stdio", "--console", "socket:"+v.path("c1"))
	c := dialConsole(t, v.path("c1"))
	c.say(t, "stty raw -echo; echo REA''DY; cat\r")
	c.hear(t, "READY\n")
	data := pattern(4, mebi)
	go func() {
		if _, err := c.Write(data); err != nil {
			t.Errorf("write to the console's socket: %v", err)
		}
	}()
	if !bytes.Equal(c.take(t, mebi), data) {
		t.Error("what came back is not what was sent")
	}
	v.powerOff()
}

func TestGuestKnowsTheTerminalsSize(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, settings string }{
		{"by the configuration space", ",multiport=false"},
		{"by control messages", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := prepare(t)
			boot(t, v, "--console", "stdio"+c.settings)
			size := func(want string) {
				t.Helper()
				// A change of size goes through the launcher, the plugin and the driver: it takes a moment.
				out := v.must(`for i in $(seq 500); do s=$(stty size 2>/dev/null); [ "$s" = "` + want + `" ] && break; usleep 20000; done; echo $s`)
				if out != want {
					t.Errorf("size in the guest is %q, want %q", out, want)
				}
			}
			// Without control messages Linux reads the size only when it changes.
			if !strings.Contains(c.settings, "multiport=false") {
				size("24 80")
			}
			v.resize(132, 43)
			size("43 132")
			v.resize(20, 5)
			v.resize(100, 30)
			size("30 100")
			v.powerOff()
		})
	}
}

func TestGuestJobControlAndCtrlC(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	boot(t, v, "--console", "stdio")
	v.typeIn("echo SLE''EP; sleep 1000; echo ST''ATUS$?\r")
	v.expect("SLEEP", commandLimit)
	// The shell may not have started the program yet, and Ctrl-C on the shell alone does nothing: until it works.
	deadline := time.Now().Add(commandLimit)
	for !strings.Contains(v.peek(), "# ") {
		if time.Now().After(deadline) {
			t.Fatal("Ctrl-C does not end a program in the guest")
		}
		v.typeIn("\x03")
		time.Sleep(100 * time.Millisecond)
	}
	if got := v.must("tty"); got != "/dev/hvc0" {
		t.Errorf("the shell is on %s", got)
	}
	v.powerOff()
}

// peek returns the unread output.
func (v *vm) peek() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return string(v.out[v.read:])
}

func TestGuestEndsByTheEscapeKey(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	boot(t, v, "--console", "stdio", "--block", v.image("d", mebi))
	v.typeIn("\x01x")
	v.ended(0)
}

// Several --console are ports of one device: the guest numbers them as they are written.
func TestGuestNumbersConsolesAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	boot(t, v, "--console", "stdio", "--console", "socket:"+v.path("c1"), "--console", "socket:"+v.path("c2"))
	if out := v.must("tty"); out != "/dev/hvc0" {
		t.Errorf("the terminal is %s", out)
	}
	for _, n := range []string{"1", "2"} {
		c := dialConsole(t, v.path("c"+n))
		c.say(t, "echo on $(tty) with $((6*7))\r")
		c.hear(t, "on /dev/hvc"+n+" with 42")
	}
	v.powerOff()
}

// A shell pipeline instead of a terminal.
func TestGuestReadsCommandsFromAPipe(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	cmd := v.command("--console", "stdio")
	cmd.Stdin = strings.NewReader("echo number $((6*7))\npoweroff\n")
	var out lockedBuffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(bootLimit, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "number 42") {
		t.Errorf("virtplug: %v\nstandard output:\n%s\nstandard error:\n%s", err, out.String(), v.stderr)
	}
}

func TestGuestConsoleLogFile(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	log := v.path("log")
	boot(t, v, "--console", "stdio", "--console", "file:"+log)
	v.must("echo to the log > /dev/hvc1")
	v.powerOff()
	b, err := os.ReadFile(log) //nolint:gosec // G304: a file of this test
	if err != nil || !bytes.Contains(b, []byte("to the log\r\n")) {
		t.Errorf("the log holds %q (%v)", b, err)
	}
}

// console is a guest's console on a unix socket.
type console struct {
	net.Conn
	unread []byte
}

func dialConsole(t *testing.T, path string) *console {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(commandLimit)); err != nil {
		t.Fatal(err)
	}
	return &console{Conn: c}
}

func (c *console) say(t *testing.T, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func (c *console) more(t *testing.T) {
	t.Helper()
	b := make([]byte, 64<<10)
	n, err := c.Read(b)
	c.unread = append(c.unread, b[:n]...)
	if err != nil {
		t.Fatalf("read from the console's socket: %v; unread: %q", err, tail(c.unread, 2000))
	}
}

// hear waits for text.
func (c *console) hear(t *testing.T, text string) {
	t.Helper()
	for {
		if i := bytes.Index(c.unread, []byte(text)); i >= 0 {
			c.unread = c.unread[i+len(text):]
			return
		}
		c.more(t)
	}
}

// take waits for n bytes.
func (c *console) take(t *testing.T, n int) []byte {
	t.Helper()
	for len(c.unread) < n {
		c.more(t)
	}
	b := c.unread[:n]
	c.unread = c.unread[n:]
	return b
}
