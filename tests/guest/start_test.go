package guest_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// Budget of an idle plugin instance (docs/performance.md).
const residentBudget = 20 << 10 // KiB

// How long until the shell is there, and how much an idle plugin holds; with -v the figures are shown.
func TestGuestStartToShell(t *testing.T) {
	t.Parallel()
	v := prepare(t)
	start := time.Now()
	v.Boot("--block", v.Image("d", mebi), "--console", "stdio")
	t.Logf("start to shell: %v", time.Since(start).Round(time.Millisecond))
	v.Must("dd if=/dev/vda of=/dev/null bs=64k")
	for _, name := range []string{"block", "console"} {
		for _, pid := range v.Plugin(name) {
			total, anonymous := resident(t, pid)
			t.Logf("plugin %s: %d KiB resident, %d of them its own (anonymous)", name, total, anonymous)
			if total > residentBudget {
				t.Errorf("plugin %s holds %d KiB, budget %d", name, total, residentBudget)
			}
		}
	}
	v.PowerOff()
}

// resident reads how much memory of a process is in RAM, in KiB. Guest memory that the plugin maps is not its own.
func resident(t *testing.T, pid int) (total, anonymous int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var n int
		if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &n); err == nil {
			total, anonymous = total+n, n
		} else if _, err := fmt.Sscanf(line, "RssFile: %d kB", &n); err == nil {
			total += n
		}
	}
	return total, anonymous
}
