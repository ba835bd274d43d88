package kvm_test

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/virtplug/virtplug/tests/session"
)

// report is what the freestanding guest prints on the serial port (guest/README.md): lines "PASS name facts", "FAIL name why",
// "INFO name facts", and at the end "DONE passed=N failed=M".
type report string

// serial is where newBare's guests report.
func serial(v *session.VM) string { return v.Path("serial") }

// done matches the last line.
var done = regexp.MustCompile(`(?m)^DONE passed=(\d+) failed=(\d+)\r?\n`)

// bare boots the freestanding guest on a terminal with this command line, and returns its report after it has ended with this exit
// status.
func runBare(t *testing.T, v *session.VM, code int, cmdline string, args ...string) report {
	t.Helper()
	startBare(v, cmdline, args...)
	v.Ended(code)
	return report(read(t, serial(v)))
}

func startBare(v *session.VM, cmdline string, args ...string) {
	v.Launch(append([]string{"--kernel-output", serial(v), "--cmdline", cmdline}, args...)...)
}

// facts returns the facts of the last line "KIND name …", and whether there is one.
func (r report) facts(kind, name string) (string, bool) {
	facts, found := "", false
	for line := range strings.Lines(string(r)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), kind+" "+name); ok && (rest == "" || rest[0] == ' ') {
			facts, found = strings.TrimSpace(rest), true
		}
	}
	return facts, found
}

// number returns a fact "key=N", hexadecimal with 0x; the test fails if there is none.
func (r report) number(t *testing.T, name, key string) uint64 {
	t.Helper()
	facts, _ := r.facts("PASS", name)
	for f := range strings.FieldsSeq(facts) {
		if text, ok := strings.CutPrefix(f, key+"="); ok {
			n, err := strconv.ParseUint(text, 0, 64)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return n
		}
	}
	t.Fatalf("the guest does not tell %s of %s:\n%s", key, name, r)
	return 0
}

// good checks that the guest has come to its end, that nothing failed, and that these tests passed.
func (r report) good(t *testing.T, names ...string) {
	t.Helper()
	m := done.FindAllStringSubmatch(string(r), -1)
	if len(m) == 0 {
		t.Fatalf("the guest has not come to its end:\n%s", r)
	}
	last := m[len(m)-1]
	if last[1] == "0" || last[2] != "0" || strings.Contains("\n"+string(r), "\nFAIL ") {
		t.Errorf("%s:\n%s", strings.TrimSpace(last[0]), r)
	}
	for _, n := range names {
		if _, ok := r.facts("PASS", n); !ok {
			t.Errorf("no PASS %s:\n%s", n, r)
		}
	}
}

// waitReport waits until the guest has reported text. It comes byte by byte: what follows the text may not be there yet.
func waitReport(t *testing.T, v *session.VM, text string) {
	t.Helper()
	waitMatch(t, v, regexp.MustCompile(regexp.QuoteMeta(text)))
}

// waitDone waits for the last line of the guest's report.
func waitDone(t *testing.T, v *session.VM) report {
	t.Helper()
	return waitMatch(t, v, done)
}

func waitMatch(t *testing.T, v *session.VM, what *regexp.Regexp) report {
	t.Helper()
	for end := time.Now().Add(session.BootLimit); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(serial(v))
		if what.Match(b) {
			return report(b)
		}
		if time.Now().After(end) {
			t.Fatalf("the guest has not reported %s within %v (%v):\n%s", what, session.BootLimit, err, session.Tail(b, 4000))
		}
	}
}

// each makes the names "disk0.X", "disk1.X", … of n disks.
func each(n int, format string) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf(format, i)
	}
	return names
}

func TestBareReportsAreRead(t *testing.T) {
	t.Parallel()
	needBare(t)
	const text = "INFO start x\r\nPASS disk0.read offset=0 crc32c=0xff\r\nPASS disk0.load\r\nDONE passed=2 failed=0\r\n"
	r := report(text)
	r.good(t, "disk0.read", "disk0.load")
	if n := r.number(t, "disk0.read", "crc32c"); n != 255 {
		t.Errorf("crc32c is %d", n)
	}
	if _, ok := r.facts("PASS", "disk0.rea"); ok {
		t.Error("a part of a name was found")
	}
}
