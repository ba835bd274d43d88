package devicetest_test

import (
	"context"
	"crypto/rand"
	"io"
	"os"
	"strings"
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

func TestAGoodProgramPasses(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	devicetest.RunTarget(t, devicetest.Program(self, asPlugin+"=good"), devicetest.Options{})
}
