package process

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const guide = "../../docs/writing-a-device.md"

// quoted matches a code block of the guide, with the file that it is from.
var quoted = regexp.MustCompile("(?s)(?:<!-- quoted: (\\S+) -->\n)?```go\n(.*?)```")

// What the guide quotes stands in the examples, so it compiles and runs.
func TestTheGuideQuotesTheExamples(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(guide)
	check(t, err)
	blocks := quoted.FindAllStringSubmatch(string(text), -1)
	if len(blocks) < 5 {
		t.Fatalf("%d code blocks in %s", len(blocks), guide)
	}
	for _, b := range blocks {
		if b[1] == "" {
			t.Errorf("a code block is from nowhere:\n%s", b[2])
			continue
		}
		source, err := os.ReadFile(filepath.Join("../..", b[1])) //nolint:gosec // G304: named by our own page
		check(t, err)
		if !strings.Contains(string(source), b[2]) {
			t.Errorf("%s quotes what %s has not:\n%s", guide, b[1], b[2])
		}
	}
}

// Examples are modules of their own, which `go test ./...` does not see.
func TestExamplesPassTheirOwnTests(t *testing.T) {
	t.Parallel()
	modules, err := filepath.Glob("../../examples/*/go.mod")
	check(t, err)
	if len(modules) == 0 {
		t.Fatal("there are no examples")
	}
	for _, m := range modules {
		dir := filepath.Dir(m)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			for _, args := range [][]string{{"vet", "./..."}, {"test", "./..."}} {
				cmd := exec.CommandContext(t.Context(), "go", args...) //nolint:gosec // G204: constants
				cmd.Dir = dir
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("go %s: %v\n%s", strings.Join(args, " "), err, out)
				}
			}
		})
	}
}
