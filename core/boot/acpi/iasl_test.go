package acpi

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestTheReferenceCompilerAgrees lets ACPICA take all tables apart, put the DSDT together again, and compares the bytes.
func TestTheReferenceCompilerAgrees(t *testing.T) {
	t.Parallel()
	iasl, err := exec.LookPath("iasl")
	if err != nil {
		t.Skip("MISSING: no iasl: apt-get install acpica-tools")
	}
	bare := full(1, 0)
	bare.Lguest, bare.ButtonGSI, bare.SerialPort, bare.PanicPort = nil, 0, 0, 0
	high := full(2, 1)
	high.MMIO[0].Base = 1 << 40
	for name, c := range map[string]Config{"everything": full(300, 200), "nothing": bare, "one device": full(1, 1), "registers above 4 GiB": high} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for signature, table := range build(t, c) {
				dir := t.TempDir()
				write(t, filepath.Join(dir, "table.dat"), table)
				run(t, dir, iasl, "-d", "table.dat")
				asl, err := os.ReadFile(filepath.Join(dir, "table.dsl")) //nolint:gosec // G304: the test's own
				if err != nil {
					t.Fatalf("%s: not taken apart: %v", signature, err)
				}
				for _, bad := range []string{"Unknown", "Invalid", "incorrect", "Error", "Warning"} {
					if i := bytes.Index(asl, []byte(bad)); i >= 0 {
						t.Errorf("%s: iasl -d: …%s…", signature, asl[max(0, i-100):min(len(asl), i+100)])
					}
				}
				if signature != "DSDT" {
					continue
				}
				out := run(t, dir, iasl, "-oa", "-p", "again", "table.dsl")
				if !strings.Contains(out, "0 Errors, 0 Warnings, 0 Remarks") {
					t.Errorf("iasl does not like the DSDT:\n%s", out)
				}
				again, err := os.ReadFile(filepath.Join(dir, "again.aml")) //nolint:gosec // G304: the test's own
				if err != nil {
					t.Fatal(err)
				}
				// The compiler's name, its version and thus the checksum are its own.
				if len(again) != len(table) || !bytes.Equal(again[headerSize:], table[headerSize:]) {
					t.Errorf("iasl makes %d other bytes of our %d", len(again), len(table))
				}
			}
		})
	}
}

func write(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...) //nolint:gosec // G204: iasl
	c.Dir = dir
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
