package devicetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// prepared are a device's settings as a launcher passes them on: complete, with the files open. All instances of a run get
// the same open files, as successors of each other do.
type prepared struct {
	settings pluginrpc.Settings
	files    []*os.File
	paths    []string // sockets to remove
}

// prepare fills in defaults and opens files as the schema says.
func prepare(schema *pluginv1.Schema, values map[string]any) (*prepared, error) {
	raw, err := json.Marshal(values)
	if err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	members := map[string]any{}
	if err := json.Unmarshal(raw, &members); err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	if members == nil {
		members = map[string]any{}
	}
	p := &prepared{}
	if err := p.block(schema, members, ""); err != nil {
		return nil, errors.Join(err, p.close())
	}
	text, err := json.Marshal(members)
	p.settings.DeviceName, p.settings.ConfigJSON = "check0", text
	return p, err
}

func (p *prepared) close() error {
	var errs []error
	for _, f := range p.files {
		errs = append(errs, f.Close())
	}
	for _, path := range p.paths {
		if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (p *prepared) block(schema *pluginv1.Schema, members map[string]any, prefix string) error {
	for _, a := range schema.GetAttributes() {
		v, given := members[a.GetName()]
		if !given && a.GetDefaultJson() != "" {
			members[a.GetName()] = json.RawMessage(a.GetDefaultJson())
		}
		path, text := v.(string)
		if !text || path == "" {
			continue
		}
		var opened []*os.File
		var f *os.File
		var err error
		switch a.GetType() { //nolint:exhaustive // the others are no files
		case pluginv1.AttributeType_ATTRIBUTE_TYPE_FILE:
			f, err = open(path, a.GetFile(), members)
		case pluginv1.AttributeType_ATTRIBUTE_TYPE_LISTENER:
			f, err = p.listen(path)
		case pluginv1.AttributeType_ATTRIBUTE_TYPE_TAP:
			opened, path, err = taps(schema, a, path, members)
			members[a.GetName()] = path
		default:
			continue
		}
		if err != nil {
			return fmt.Errorf("setting %s: %w", prefix+a.GetName(), err)
		}
		if f != nil {
			opened = append(opened, f)
		}
		for _, f := range opened {
			p.files = append(p.files, f)
			p.settings.Files = append(p.settings.Files, pluginrpc.FileGrant{Attribute: prefix + a.GetName(), FD: int(f.Fd())})
		}
	}
	for _, b := range schema.GetBlocks() {
		items, _ := members[b.GetName()].([]any)
		for i, item := range items {
			if m, ok := item.(map[string]any); ok { // if not, the plugin says so
				if err := p.block(b.GetSchema(), m, prefix+b.GetName()+"."+strconv.Itoa(i)+"."); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func open(path string, a *pluginv1.FileAccess, members map[string]any) (*os.File, error) {
	readOnly := !a.GetWrite() && !a.GetAppend()
	if name := a.GetReadOnlyIf(); name != "" && members[name] == true {
		readOnly = true
	}
	flags := unix.O_CLOEXEC | unix.O_NOCTTY
	switch {
	case readOnly:
		flags |= unix.O_RDONLY
	case a.GetAppend():
		flags |= unix.O_WRONLY | unix.O_APPEND
	default:
		flags |= unix.O_RDWR
	}
	if a.GetCreate() && !readOnly {
		flags |= unix.O_CREAT
	}
	return os.OpenFile(path, flags, 0o600) //nolint:gosec // G304: named by whoever runs the test
}

func (p *prepared) listen(path string) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	p.paths = append(p.paths, path)
	f, err := l.File()
	return f, errors.Join(err, l.Close())
}
