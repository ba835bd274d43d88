package devicetest_test

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/virtplug/virtplug/sdk"
	"github.com/virtplug/virtplug/sdk/devicetest"
	"github.com/virtplug/virtplug/sdk/virtio"
	"github.com/virtplug/virtplug/sdk/virtq"
)

// asPlugin makes the test binary a plugin; its value is the name in broken, or "good".
const asPlugin = "DEVICETEST_PLUGIN"

func TestMain(m *testing.M) {
	switch name := os.Getenv(asPlugin); name {
	case "":
		os.Exit(m.Run())
	case "panics":
		sdk.Main(pluginOf(panics{}))
	case "keeps", "trusts":
		p := pluginOf(nil)
		p.State, p.New = true, func(env *sdk.Env, _ sdk.NoConfig) (sdk.Device, error) {
			return &keeps{env: env, trusts: name == "trusts"}, nil
		}
		sdk.Main(p)
	default:
		sdk.Main(pluginOf(good{}))
	}
}

// pluginOf is a plugin whose device is d.
func pluginOf(d sdk.Device) sdk.Plugin[sdk.NoConfig] {
	return sdk.Plugin[sdk.NoConfig]{
		Name: "sample", Version: "1.0.0", Device: virtio.IDEntropy,
		New: func(*sdk.Env, sdk.NoConfig) (sdk.Device, error) { return d, nil },
	}
}

// good is a device without fault.
type good struct{}

func (good) Spec() sdk.Spec { return sdk.Spec{QueueSizes: []uint16{64, 16}, Features: 1 << 3} }

func (good) HandleChain(_ context.Context, _ *sdk.Queue, c *virtq.Chain) error {
	w := c.Writer()
	_, err := io.CopyN(w, rand.Reader, int64(w.Len()))
	return err
}

// keeps is a device that counts chains, over deaths.
type keeps struct {
	good

	env    *sdk.Env
	mu     sync.Mutex
	n      uint64
	trusts bool
}

func (k *keeps) HandleChain(ctx context.Context, q *sdk.Queue, c *virtq.Chain) error {
	k.mu.Lock()
	k.n++
	err := k.env.SaveState(binary.BigEndian.AppendUint64(nil, k.n))
	k.mu.Unlock()
	return errors.Join(err, k.good.HandleChain(ctx, q, c))
}

func (k *keeps) RestoreState(b []byte) error {
	if k.trusts {
		go func() { k.n = binary.BigEndian.Uint64(b) }() // where no panic is caught
		return nil
	}
	if len(b) != 8 {
		return errors.New("a count has 8 bytes")
	}
	k.n = binary.BigEndian.Uint64(b)
	return nil
}

func (k *keeps) Reset() error {
	k.n = 0
	return nil
}

// panics dies of a chain that is longer than it likes: what a hostile driver finds.
type panics struct{ good }

func (panics) HandleChain(_ context.Context, _ *sdk.Queue, c *virtq.Chain) error {
	_ = [3][]byte{}[len(c.Readable())]
	return nil
}

func TestAGoodDevicePasses(t *testing.T) {
	t.Parallel()
	devicetest.Run(t, pluginOf(good{}), devicetest.Options{})
}

func TestAGoodLegacyDevicePasses(t *testing.T) {
	t.Parallel()
	p := pluginOf(good{})
	p.Legacy = true
	devicetest.Run(t, p, devicetest.Options{Skip: skipAllBut("features/")})
}

// skipAllBut skips the cases of other names.
func skipAllBut(prefix string) map[string]string {
	skip := map[string]string{}
	for _, c := range devicetest.Cases() {
		if !strings.HasPrefix(c.Name, prefix) {
			skip[c.Name] = "another test has it"
		}
	}
	return skip
}

func TestAGoodProgramWithAStatePasses(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	devicetest.RunTarget(t, devicetest.Program(self, asPlugin+"=keeps"), devicetest.Options{Skip: skipAllBut("state/")})
}

func TestAGoodProgramPasses(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	devicetest.RunTarget(t, devicetest.Program(self, asPlugin+"=good"), devicetest.Options{})
}
