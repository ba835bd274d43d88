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

	"github.com/virtplug/virtplug/tests/session"
)

const mebi = 1 << 20

func TestGuestConsoleCarriesAMebibyteEachWay(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	v.Boot("--console", "stdio")

	data := session.Pattern(3, mebi)
	v.Type("stty raw -echo; echo REA''DY; head -c 1048576 | sha256sum; stty sane; echo DO''NE\r")
	v.Expect("READY\n", session.CommandLimit)
	go func() {
		if _, err := v.Write(session.Escaped(data)); err != nil {
			t.Errorf("write to the terminal: %v", err)
		}
	}()
	got := strings.TrimSpace(v.Expect("DONE", session.CommandLimit))
	if want := fmt.Sprintf("%x", sha256.Sum256(data)); !strings.HasPrefix(got, want) {
		t.Errorf("the guest read %q, want %s", got, want)
	}

	v.Type("stty raw -echo; echo STA''RT; head -c 1048576 /test/data; stty sane\r")
	v.Expect("START\n", session.CommandLimit)
	if !bytes.Equal(v.Bytes(mebi, session.CommandLimit), session.Pattern(1, 3<<20)[:mebi]) {
		t.Error("what the guest wrote is not what came")
	}
	v.Must("true")
	v.PowerOff()
}

// Both directions at once, on a socket: nothing is escaped, nothing is a terminal.
func TestGuestConsoleOnASocketCarriesBothWaysAtOnce(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	v.Boot("--console", "stdio", "--console", "socket:"+v.Path("c1"))
	c := dialConsole(t, v.Path("c1"))
	c.say(t, "stty raw -echo; echo REA''DY; cat\r")
	c.hear(t, "READY\n")
	data := session.Pattern(4, mebi)
	go func() {
		if _, err := c.Write(data); err != nil {
			t.Errorf("write to the console's socket: %v", err)
		}
	}()
	if !bytes.Equal(c.take(t, mebi), data) {
		t.Error("what came back is not what was sent")
	}
	v.PowerOff()
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
			v.Boot("--console", "stdio"+c.settings)
			size := func(want string) {
				t.Helper()
				// A change of size goes through the launcher, the plugin and the driver: it takes a moment.
				out := v.Must(`for i in $(seq 500); do s=$(stty size 2>/dev/null); [ "$s" = "` + want + `" ] && break; usleep 20000; done; echo $s`)
				if out != want {
					t.Errorf("size in the guest is %q, want %q", out, want)
				}
			}
			// Without control messages Linux reads the size only when it changes.
			if !strings.Contains(c.settings, "multiport=false") {
				size("24 80")
			}
			v.Resize(132, 43)
			size("43 132")
			v.Resize(20, 5)
			v.Resize(100, 30)
			size("30 100")
			v.PowerOff()
		})
	}
}

func TestGuestJobControlAndCtrlC(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	v.Boot("--console", "stdio")
	v.Type("echo SLE''EP; sleep 1000; echo ST''ATUS$?\r")
	v.Expect("SLEEP", session.CommandLimit)
	// The shell may not have started the program yet, and Ctrl-C on the shell alone does nothing: until it works.
	deadline := time.Now().Add(session.CommandLimit)
	for !strings.Contains(v.Peek(), "# ") {
		if time.Now().After(deadline) {
			t.Fatal("Ctrl-C does not end a program in the guest")
		}
		v.Type("\x03")
		time.Sleep(100 * time.Millisecond)
	}
	if got := v.Must("tty"); got != "/dev/hvc0" {
		t.Errorf("the shell is on %s", got)
	}
	v.PowerOff()
}

func TestGuestEndsByTheEscapeKey(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	v.Boot("--console", "stdio", "--block", v.Image("d", mebi))
	v.Type("\x01x")
	v.Ended(0)
}

// Several --console are ports of one device: the guest numbers them as they are written.
func TestGuestNumbersConsolesAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	v.Boot("--console", "stdio", "--console", "socket:"+v.Path("c1"), "--console", "socket:"+v.Path("c2"))
	if out := v.Must("tty"); out != "/dev/hvc0" {
		t.Errorf("the terminal is %s", out)
	}
	for _, n := range []string{"1", "2"} {
		c := dialConsole(t, v.Path("c"+n))
		c.say(t, "echo on $(tty) with $((6*7))\r")
		c.hear(t, "on /dev/hvc"+n+" with 42")
	}
	v.PowerOff()
}

// A shell pipeline instead of a terminal.
func TestGuestReadsCommandsFromAPipe(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	cmd := v.Command("--console", "stdio")
	cmd.Stdin = strings.NewReader("echo number $((6*7))\npoweroff\n")
	var out session.Output
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(session.BootLimit, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "number 42") {
		t.Errorf("virtplug: %v\nstandard output:\n%s\nstandard error:\n%s", err, out.String(), v.Stderr)
	}
}

func TestGuestConsoleLogFile(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	log := v.Path("log")
	v.Boot("--console", "stdio", "--console", "file:"+log)
	v.Must("echo to the log > /dev/hvc1")
	v.PowerOff()
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
	if err := c.SetDeadline(time.Now().Add(session.CommandLimit)); err != nil {
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
		t.Fatalf("read from the console's socket: %v; unread: %q", err, session.Tail(c.unread, 2000))
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
