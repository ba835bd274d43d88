package config

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	hcljson "github.com/hashicorp/hcl/v2/json"

	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// maxFileSize bounds a configuration file, so that a device or a disk image named by mistake is not read whole. 256 KiB are
// some thousand devices.
const maxFileSize = 256 << 10

// objectName is what VMs and devices may be called: it becomes part of paths and titles.
var objectName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$`)

// Input is where a configuration comes from: a file, flags, or a file with flags over it.
type Input struct {
	// Path is the file; empty: none.
	Path string
	// Flags replace attributes of the vm block and add devices behind the file's.
	Flags Flags
}

// Options are what the host adds to a check.
type Options struct {
	// CheckFiles: look whether the files that are named can be opened.
	CheckFiles bool
	// HostMemory is how much memory the host has, in bytes; 0: not checked.
	HostMemory uint64
}

// Load reads and checks a configuration. The error is an *Error with all that is wrong, or tells that the file cannot be read or
// that ctx ended.
func Load(ctx context.Context, in Input, plugins Plugins, opts Options) (*VM, error) {
	var src []byte
	if in.Path != "" {
		var err error
		if src, err = readFile(in.Path); err != nil {
			return nil, err
		}
	}
	return Parse(ctx, src, in, plugins, opts)
}

// Parse is Load with the file's text given; in.Path is its name, which tells its syntax and what relative paths start from.
func Parse(ctx context.Context, src []byte, in Input, plugins Plugins, opts Options) (*VM, error) {
	l := loader{
		decoder: decoder{bases: map[string]string{}, checkFiles: opts.CheckFiles},
		plugins: plugins, opts: opts,
		sources: Sources{},
	}
	content := &hcl.BodyContent{}
	if in.Path != "" {
		if content = l.parseFile(src, in.Path); content == nil {
			return nil, newError(l.diags, l.sources)
		}
	}
	in.Flags.addSources(l.sources)
	vm := &VM{sources: l.sources}
	l.vmBlock(vm, content, in)
	vm.PluginDirs = append(vm.PluginDirs, in.Flags.PluginDirs...)
	l.pluginDirs(vm, content)
	l.devices(ctx, vm, append(fileDevices(content), in.Flags.devices(content)...))
	if err := ctx.Err(); err != nil { // then plugins did not answer for that reason
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if len(l.diags) > 0 {
		return nil, newError(l.diags, l.sources)
	}
	return vm, nil
}

type loader struct {
	decoder

	plugins Plugins
	opts    Options
	sources Sources
	// terminalAt is the place of the port that has the terminal.
	terminalAt *hcl.Range
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // the user names the file
	if err != nil {
		return nil, fmt.Errorf("configuration: %s: %w", path, cause(err))
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("configuration: %s: %w", path, cause(err))
	case info.IsDir():
		return nil, fmt.Errorf("configuration: %s: is a directory; give the file in it", path)
	}
	src, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("configuration: %s: %w", path, cause(err))
	case len(src) > maxFileSize:
		return nil, fmt.Errorf("configuration: %s: larger than %s; is it a configuration?", path, FormatSize(maxFileSize))
	}
	return src, nil
}

// maxNesting bounds brackets in a file: the parsers are recursive.
const maxNesting = 64

// parseFile returns the top level of a file, nil if its syntax is wrong.
func (l *loader) parseFile(src []byte, path string) *hcl.BodyContent {
	l.bases[path] = filepath.Dir(path)
	l.sources[path] = &hcl.File{Bytes: src}
	if at, deep := tooDeep(src, path); deep {
		l.errorf(at, "Nested too deeply", "Brackets nest deeper than %d here.", maxNesting)
		return nil
	}
	var file *hcl.File
	var diags hcl.Diagnostics
	if strings.EqualFold(filepath.Ext(path), ".json") {
		file, diags = hcljson.Parse(src, path)
	} else {
		file, diags = hclsyntax.ParseConfig(src, path, hcl.InitialPos)
	}
	l.diags = append(l.diags, diags...)
	if file == nil || diags.HasErrors() {
		return nil
	}
	l.sources[path] = file
	content, diags := file.Body.Content(&hcl.BodySchema{
		Attributes: []hcl.AttributeSchema{{Name: "plugin_dirs"}},
		Blocks: []hcl.BlockHeaderSchema{
			{Type: "vm", LabelNames: []string{"name"}},
			{Type: "device", LabelNames: []string{"type", "name"}},
		},
	})
	l.diags = append(l.diags, diags...)
	return content
}

// tooDeep counts brackets, those in strings and comments too: more than maxNesting open ones are no configuration.
func tooDeep(src []byte, path string) (hcl.Range, bool) {
	depth, pos := 0, hcl.InitialPos
	for _, c := range src {
		switch c {
		case '{', '[', '(':
			if depth++; depth > maxNesting {
				return hcl.Range{Filename: path, Start: pos, End: pos}, true
			}
		case '}', ']', ')':
			depth = max(0, depth-1)
		case '\n':
			pos.Line++
			pos.Column = 0
		}
		pos.Byte++
		pos.Column++
	}
	return hcl.Range{}, false
}

// vmBlock fills what the vm block and its flags say.
func (l *loader) vmBlock(vm *VM, content *hcl.BodyContent, in Input) {
	in2 := body{hcl: &hclsyntax.Body{}, schema: vmSchema(), override: in.Flags.vmAttributes()}
	vm.Name = "vm"
	if in.Path != "" {
		in2.at = hcl.Range{Filename: in.Path}
	}
	found := content.Blocks.OfType("vm")
	if len(found) > 1 {
		l.errorf(found[1].DefRange, "More than one vm", "A file describes one VM; the first is at %s.", place(found[0].DefRange))
	}
	if len(found) > 0 {
		vm.Name, vm.Named = found[0].Labels[0], true
		l.checkName("VM", vm.Name, found[0].LabelRanges[0])
		in2.hcl, in2.at = found[0].Body, found[0].DefRange
	}
	if n := in.Flags.Name; n != "" {
		vm.Name, vm.Named = n, true
		l.checkName("VM", n, wholeFlag("--name", n))
	}
	out := l.decode(in2)
	vm.ranges = out.ranges
	vm.ranges[""] = in2.at
	memory, _ := out.values["memory"].(int64)
	vm.MemoryBytes = uint64(max(0, memory))
	switch at := nearest(vm.ranges, "memory"); {
	case memory%4096 != 0:
		l.errorf(at, "Bad value for \"memory\"", "%d is not a multiple of 4096, the size of a page.", memory)
	case l.opts.HostMemory != 0 && vm.MemoryBytes > l.opts.HostMemory:
		l.errorf(at, "Bad value for \"memory\"", "%s is more than this host has (%d MiB).", FormatSize(memory), l.opts.HostMemory>>20)
	}
	cpus, _ := out.values["cpus"].(int64)
	vm.VCPUs = int(cpus)
	l.machine(vm, out)
	vm.Kernel, _ = out.values["kernel"].(string)
	vm.Initrd, _ = out.values["initrd"].(string)
	vm.Cmdline, _ = out.values["cmdline"].(string)
	if strings.ContainsAny(vm.Cmdline, "\x00\n") {
		l.errorf(vm.ranges["cmdline"], "Bad value for \"cmdline\"", "A kernel command line cannot contain line breaks or zero bytes.")
	}
}

// machine reads which machine, and which bus.
func (l *loader) machine(vm *VM, out decoded) {
	vm.Machine, _ = out.values["machine"].(string)
	vm.Bus, _ = out.values["bus"].(string)
	switch {
	case vm.Bus == "" || vm.Machine == "kvm":
	case vm.Machine == MachineAuto:
		vm.Machine = "kvm"
	default:
		l.errorf(vm.ranges["bus"], "Bad value for \"bus\"", "Machine %q has no choice of a bus: it reaches its devices by vhost-user. Leave \"bus\" out, or use machine \"kvm\".", vm.Machine)
	}
}

// pluginDirs reads the plugin_dirs of a file.
func (l *loader) pluginDirs(vm *VM, content *hcl.BodyContent) {
	attr := content.Attributes["plugin_dirs"]
	if attr == nil {
		return
	}
	v, diags := attr.Expr.Value(nil)
	l.diags = append(l.diags, diags...)
	if diags.HasErrors() || v.IsNull() {
		return
	}
	list, err := convertValue(&pluginv1.Attribute{Name: attr.Name, Type: pluginv1.AttributeType_ATTRIBUTE_TYPE_STRING_LIST}, v, false)
	if err != nil {
		l.errorf(attr.Expr.Range(), "Bad value for \"plugin_dirs\"", "%s", asSentence(err))
		return
	}
	dirs, _ := list.([]string)
	for _, dir := range dirs {
		dir = l.resolve(dir, attr.Range)
		vm.PluginDirs = append(vm.PluginDirs, dir)
		if !l.opts.CheckFiles {
			continue
		}
		if err := checkDir(dir); err != nil {
			l.errorf(attr.Expr.Range(), "Cannot use \"plugin_dirs\"", "%s", asSentence(err))
		}
	}
}

func (l *loader) checkName(what, name string, at hcl.Range) {
	if !objectName.MatchString(name) {
		l.errorf(at, "Bad name", "A %s's name is 1 to 32 letters, digits, '_', '.' and '-', beginning with a letter or digit; %q is not.", what, name)
	}
}
