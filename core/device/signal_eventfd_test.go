package device

import (
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/eventfd"
)

// A plugin has the kick eventfd too, and may fill it at any moment, also between a look at it and the write to it. Here it has
// left room for one more count, and somebody else (KVM, for the guest) is faster.
func TestASignalNeverBlocksWhateverAPluginDoesToTheEventfd(t *testing.T) {
	t.Parallel()
	for range 2000 {
		f, err := eventfd.New()
		if err != nil {
			t.Fatal(err)
		}
		n := fd(f)
		if _, err := unix.Write(n, binary.NativeEndian.AppendUint64(nil, 1<<64-3)); err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		begin := make(chan struct{})
		for range 8 {
			all.Go(func() { <-begin; signal(f) })
		}
		close(begin)
		done := make(chan struct{})
		go func() { defer close(done); all.Wait() }()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			var b [8]byte
			_, _ = unix.Read(n, b[:]) // lets them go
			<-done
			t.Fatal("a signal blocks for as long as the plugin likes")
		}
		_ = f.Close()
	}
}
