package pluginrpc_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// asPlugin makes the test binary a plugin: these tests start real processes of it.
const asPlugin = "PLUGINRPC_TEST_PLUGIN"

func TestMain(m *testing.M) {
	if path := os.Getenv(asLauncher); path != "" {
		launch(path)
	}
	if os.Getenv(asPlugin) != "" {
		sdk.Main(sdk.Plugin[mirrorConfig]{
			Name: "mirror", Version: "1.2.3", Device: virtio.IDEntropy, Description: "Answers what it reads, reversed.", New: newMirror,
			State: true,
			Commands: []sdk.CommandSpec{
				{Name: "keep", Description: "Saves a state.", Args: keepArgs{}},
				{Name: "kept", Description: "Tells what state it has, and who it is."},
				{Name: "grow", Description: "Changes the configuration space.", Args: growArgs{}},
				{Name: "release", Description: "Finishes held chains."},
				{Name: "panic"}, {Name: "fail"}, {Name: "flood"}, {Name: "exit"},
			},
		})
	}
	os.Exit(m.Run())
}

type mirrorConfig struct {
	File   sdk.File     `config:"file" file:"write"`
	Socket sdk.Listener `config:"socket"`
	Hold   bool         `config:"hold" help:"Keep chains until the command release."`
	Closed sdk.File     `config:"closed" file:"append" help:"Close writes a line."`
	Ports  []struct {
		Name string   `config:"name,label"`
		Log  sdk.File `config:"log" file:"append"`
	} `config:"port"`
	Wrong bool `config:"wrong"`
	Panic bool `config:"panic"`
}

type growArgs struct {
	By int `config:"by,required" min:"1"`
}

type keepArgs struct {
	State string `config:"state,required"`
}

// mirror writes each chain's readable bytes, reversed, into its writable part.
type mirror struct {
	env *sdk.Env
	cfg mirrorConfig

	mu       sync.Mutex
	size     uint64
	features virtio.Features
	resets   uint64
	held     []func() error
	state    string
}

func newMirror(env *sdk.Env, cfg mirrorConfig) (sdk.Device, error) {
	if cfg.Panic {
		panic("as asked")
	}
	if cfg.Wrong {
		return nil, sdk.SettingError("port.0.log", "%s: it is wrong", cfg.Ports[0].Name)
	}
	if cfg.File.File != nil {
		if _, err := fmt.Fprintf(cfg.File, "hello from %s, %s", env.Name, cfg.File.Path); err != nil {
			return nil, err
		}
	}
	for i, p := range cfg.Ports {
		if _, err := fmt.Fprintf(p.Log, "port %d is %s", i, p.Name); err != nil {
			return nil, err
		}
	}
	if l := cfg.Socket.UnixListener; l != nil {
		go func() {
			if c, err := l.Accept(); err == nil {
				_, _ = io.WriteString(c, cfg.Socket.Path)
				_ = c.Close()
			}
		}()
	}
	env.Notice("ready", map[string]string{"name": env.Name})
	return &mirror{env: env, cfg: cfg, size: 1}, nil
}

func (m *mirror) Spec() sdk.Spec {
	return sdk.Spec{Features: 1 << 5, QueueSizes: []uint16{64, 8}}
}

func (m *mirror) HandleChain(_ context.Context, q *sdk.Queue, c *virtq.Chain) error {
	if m.cfg.Hold {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.held = append(m.held, func() error { return errors.Join(answer(c), q.Finish(c)) })
		return sdk.ErrLater
	}
	return answer(c)
}

func answer(c *virtq.Chain) error {
	b, err := io.ReadAll(c.Reader())
	if err != nil {
		return err
	}
	slices.Reverse(b)
	_, err = c.Writer().Write(b)
	return err
}

func (m *mirror) ReadConfig() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return binary.LittleEndian.AppendUint64(nil, m.size)
}

func (m *mirror) WriteConfig(offset int, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := binary.LittleEndian.AppendUint64(nil, m.size)
	copy(b[offset:], data)
	m.size = binary.LittleEndian.Uint64(b)
	return nil
}

func (m *mirror) SetFeatures(f virtio.Features) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.features = f
	return nil
}

func (m *mirror) RestoreState(b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if string(b) == "unknown" {
		return errors.New("a state that this version does not know")
	}
	m.state = string(b)
	return nil
}

func (m *mirror) Reset() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state = ""
	m.resets++
	return nil
}

func (m *mirror) Statistics() map[string]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return map[string]uint64{"resets": m.resets, "held": uint64(len(m.held)), "features": uint64(m.features)}
}

func (m *mirror) Command(_ context.Context, name string, args json.RawMessage) (any, error) {
	switch name {
	case "keep":
		a, err := sdk.DecodeArgs[keepArgs](args)
		if err != nil {
			return nil, err
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.state = a.State
		return nil, m.env.SaveState([]byte(a.State))
	case "kept":
		m.mu.Lock()
		defer m.mu.Unlock()
		return map[string]string{"state": m.state, "identity": fmt.Sprintf("%x", m.env.Identity)}, nil
	case "grow":
		a, err := sdk.DecodeArgs[growArgs](args)
		if err != nil {
			return nil, err
		}
		m.mu.Lock() // held over ConfigChanged: must not deadlock with ReadConfig
		defer m.mu.Unlock()
		m.size += uint64(a.By) //nolint:gosec // G115: at least 1
		m.env.ConfigChanged()
		return map[string]uint64{"size": m.size}, nil
	case "release":
		m.mu.Lock()
		defer m.mu.Unlock()
		var errs []error
		for _, finish := range m.held {
			errs = append(errs, finish())
		}
		m.held = nil
		return nil, errors.Join(errs...)
	case "panic":
		panic("as asked")
	case "fail":
		m.env.Fail(errors.New("broken\x1b[2J"), true)
	case "flood":
		for i := range 1000 {
			m.env.Notice(fmt.Sprint("notice ", i), nil)
		}
	case "exit":
		os.Exit(7) //nolint:gocritic // exitAfterDefer: no process, no mutex
	}
	return nil, nil //nolint:nilnil // no result is {}
}

func (m *mirror) Close() error {
	if m.cfg.Closed.File == nil {
		return nil
	}
	_, err := io.WriteString(m.cfg.Closed, "closed\n")
	return err
}
