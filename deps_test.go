// Package virtplug_test holds the rules about who imports whom (docs/architecture.md, "Packages"). Each rule has its
// reason, and each is shown to fail on a made-up violation.
package virtplug_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/virtplug/virtplug"

// source is what the rules look at in one Go file.
type source struct {
	// path is relative to the repository: "sdk/virtq/queue.go".
	path    string
	pkg     string
	imports []string
	// prints are the lines that call fmt.Print, Printf or Println.
	prints []int
}

func (s source) test() bool { return strings.HasSuffix(s.path, "_test.go") }

// in tells whether the file lies in one of the directories.
func (s source) in(dirs ...string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(s.path, d+"/") })
}

// ours returns the import's directory in this module: "sdk/virtq"; "" for anybody else's package.
func ours(imp string) string {
	dir, ok := strings.CutPrefix(imp, module+"/")
	if !ok {
		return ""
	}
	return dir
}

func under(dir string, roots ...string) bool {
	return slices.ContainsFunc(roots, func(r string) bool { return dir == r || strings.HasPrefix(dir, r+"/") })
}

// rule is one arrow that must not exist.
type rule struct {
	name   string
	reason string
	// broken says what is wrong with a file; "" if nothing.
	broken func(s source) string
	// example is a file that breaks the rule: the proof that the rule can fail.
	example source
}

// deny makes a rule's check: files that match must not import what matches.
func deny(match func(s source) bool, denied func(imp string) bool) func(source) string {
	return func(s source) string {
		if !match(s) {
			return ""
		}
		for _, imp := range s.imports {
			if denied(imp) {
				return "imports " + imp
			}
		}
		return ""
	}
}

// unsafeAllowed are the packages whose *_unsafe.go files may import unsafe.
var unsafeAllowed = []string{"sdk/internal/shm", "core/kvm"}

// dataPlane packages hold no control plane.
var dataPlane = []string{"sdk/virtio", "sdk/virtq", "sdk/guestmem", "sdk/eventfd", "sdk/internal/shm", "sdk/driver"}

var rules = []rule{
	{
		name:   "sdk imports nothing of ours outside sdk",
		reason: "the SDK is the contract: a device author must not pull in the launcher, and it must not be bent to the launcher's needs",
		broken: deny(func(s source) bool { return s.in("sdk") }, func(imp string) bool {
			return ours(imp) != "" && !under(ours(imp), "sdk")
		}),
		example: source{path: "sdk/run.go", pkg: "sdk", imports: []string{module + "/core/device"}},
	},
	{
		name:   "plugins import only sdk",
		reason: "our plugins prove that the SDK is enough for a third party's",
		broken: deny(func(s source) bool { return s.in("plugins") }, func(imp string) bool {
			return ours(imp) != "" && (!under(ours(imp), "sdk") && !strings.HasPrefix(ours(imp), "plugins/"))
		}),
		example: source{path: "plugins/block/main.go", pkg: "main", imports: []string{module + "/core/memory"}},
	},
	{
		name:   "plugins do not use sdk/internal",
		reason: "a third party cannot, so ours must not",
		broken: deny(func(s source) bool { return s.in("plugins", "examples") }, func(imp string) bool {
			return under(ours(imp), "sdk/internal")
		}),
		example: source{path: "plugins/net/rx.go", pkg: "main", imports: []string{module + "/sdk/internal/shm"}},
	},
	{
		name:   "core imports only core and sdk",
		reason: "arrows point downward: cmd → core → sdk",
		broken: deny(func(s source) bool { return s.in("core") }, func(imp string) bool {
			return ours(imp) != "" && !under(ours(imp), "core", "sdk")
		}),
		example: source{path: "core/launcher/vm.go", pkg: "launcher", imports: []string{module + "/cmd/virtplug"}},
	},
	{
		name:   "examples import only sdk",
		reason: "an example is what a third party writes, in a module of its own",
		broken: deny(func(s source) bool { return s.in("examples") }, func(imp string) bool {
			return ours(imp) != "" && !under(ours(imp), "sdk")
		}),
		example: source{path: "examples/entropy/main.go", pkg: "main", imports: []string{module + "/core/config"}},
	},
	{
		name:   "the data plane knows neither gRPC nor go-plugin",
		reason: "no buffer byte crosses gRPC; a small plugin in another style must be able to use these packages alone",
		broken: deny(func(s source) bool { return s.in(dataPlane...) && !s.test() }, func(imp string) bool {
			return strings.HasPrefix(imp, "google.golang.org/grpc") || strings.HasPrefix(imp, "github.com/hashicorp/go-plugin") ||
				under(ours(imp), "sdk/proto", "sdk/pluginrpc")
		}),
		example: source{path: "sdk/virtq/queue.go", pkg: "virtq", imports: []string{"google.golang.org/grpc/status"}},
	},
	{
		name:   "sdk/virtio imports only the standard library",
		reason: "numbers and layouts of the specification are a leaf",
		broken: deny(func(s source) bool { return s.in("sdk/virtio") && !s.test() }, func(imp string) bool {
			return strings.Contains(strings.Split(imp, "/")[0], ".")
		}),
		example: source{path: "sdk/virtio/block.go", pkg: "virtio", imports: []string{module + "/sdk/guestmem"}},
	},
	{
		name:   "unsafe only in *_unsafe.go of " + strings.Join(unsafeAllowed, ", "),
		reason: "what the compiler does not check is in few files, which are read with that in mind",
		broken: deny(func(s source) bool {
			allowed := slices.Contains(unsafeAllowed, path.Dir(s.path)) &&
				(strings.HasSuffix(s.path, "_unsafe.go") || strings.HasSuffix(s.path, "_unsafe_test.go"))
			generated := strings.HasSuffix(s.path, ".pb.go") // strings without copies, by protoc-gen-go
			return !allowed && !generated
		}, func(imp string) bool { return imp == "unsafe" }),
		example: source{path: "sdk/internal/shm/shm.go", pkg: "shm", imports: []string{"unsafe"}},
	},
	{
		name:   "no C",
		reason: "programs are static and cross-compile: CGO_ENABLED=0",
		broken: deny(func(source) bool { return true }, func(imp string) bool {
			return imp == "C"
		}),
		example: source{path: "core/memory/map.go", pkg: "memory", imports: []string{"C"}},
	},
	{
		name:   "plugins are package main",
		reason: "the compiler itself then forbids linking a device into the launcher",
		broken: func(s source) string {
			// Packages below plugins/NAME/ are the plugin's own parts; they must be internal, or the launcher could import them.
			if !s.in("plugins") || strings.Contains(s.path, "/internal/") || strings.TrimSuffix(s.pkg, "_test") == "main" {
				return ""
			}
			return "is package " + s.pkg
		},
		example: source{path: "plugins/block/block.go", pkg: "block"},
	},
	{
		name:   "no fmt.Print in sdk and plugins",
		reason: "standard output belongs to the handshake with the launcher; a stray line breaks the start",
		broken: func(s source) string {
			if !s.in("sdk", "plugins") || s.test() || len(s.prints) == 0 {
				return ""
			}
			return fmt.Sprintf("prints at line %d", s.prints[0])
		},
		example: source{path: "plugins/console/main.go", pkg: "main", prints: []int{12}},
	},
	{
		name:   "no package of odds and ends",
		reason: "a package says what it is about",
		broken: func(s source) string {
			switch strings.TrimSuffix(s.pkg, "_test") {
			case "util", "utils", "common", "helpers", "helper", "types", "misc":
				return "is package " + s.pkg
			}
			return ""
		},
		example: source{path: "core/util/strings.go", pkg: "util"},
	},
}

func TestNoForbiddenArrow(t *testing.T) {
	t.Parallel()
	sources := readSources(t)
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			for _, s := range sources {
				if what := r.broken(s); what != "" {
					t.Errorf("%s: %s\n\trule: %s\n\tbecause %s", s.path, what, r.name, r.reason)
				}
			}
		})
	}
}

// A rule that cannot fail holds nothing.
func TestEachRuleCanFail(t *testing.T) {
	t.Parallel()
	for _, r := range rules {
		if r.broken(r.example) == "" {
			t.Errorf("rule %q: its example %s is not found to break it", r.name, r.example.path)
		}
		if r.reason == "" {
			t.Errorf("rule %q: has no reason", r.name)
		}
		if what := r.broken(source{path: "sdk/internal/shm/load_unsafe.go", pkg: "shm", imports: []string{"unsafe", "sync/atomic"}}); what != "" {
			t.Errorf("rule %q: forbids what is allowed: %s", r.name, what)
		}
	}
}

func TestSourcesAreReadRight(t *testing.T) {
	t.Parallel()
	s, err := readSource("plugins/x/x.go", []byte("package main\nimport f \"fmt\"\nimport _ \"unsafe\"\nfunc main() {\n\tf.Println()\n\tf.Fprintln(nil)\n}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if s.pkg != "main" || !slices.Equal(s.imports, []string{"fmt", "unsafe"}) || !slices.Equal(s.prints, []int{5}) {
		t.Errorf("got %+v", s)
	}
}

// readSources reads every Go file of the repository.
func readSources(t *testing.T) []source {
	t.Helper()
	var all []source
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin" || p == "tmp") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(p, ".go") {
			return nil
		}
		text, err := os.ReadFile(p) //nolint:gosec // G304: a file of this repository
		if err != nil {
			return err
		}
		s, err := readSource(filepath.ToSlash(p), text)
		all = append(all, s)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("only %d Go files found: wrong directory?", len(all))
	}
	return all
}

func readSource(name string, text []byte) (source, error) {
	f, err := parser.ParseFile(token.NewFileSet(), name, text, parser.SkipObjectResolution)
	if err != nil {
		return source{}, err
	}
	s := source{path: name, pkg: f.Name.Name}
	fmtName := ""
	for _, i := range f.Imports {
		imp, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			return source{}, fmt.Errorf("%s: %w", name, err)
		}
		s.imports = append(s.imports, imp)
		if imp == "fmt" {
			fmtName = "fmt"
			if i.Name != nil {
				fmtName = i.Name.Name
			}
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && x.Name == fmtName && fmtName != "" && slices.Contains([]string{"Print", "Printf", "Println"}, sel.Sel.Name) {
			s.prints = append(s.prints, strings.Count(string(text[:int(sel.Pos())-1]), "\n")+1)
		}
		return true
	})
	return s, nil
}
