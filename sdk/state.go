package sdk

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// MaxStateBytes is the longest state that Env.SaveState takes: half of a launcher's region without the header.
const MaxStateBytes = 32<<10 - stateHeader

// StateRestorer takes back what Env.SaveState saved. A plugin whose Plugin.State is set makes devices that implement it.
type StateRestorer interface {
	// RestoreState is called once in an instance's life at most: after FeatureSetter and before the first queue starts, if a former
	// instance saved a state and the driver has not reset the device since. b is the device's own. The former instance may have
	// been of another version of the plugin, and b is no more to be trusted than a file: check it. Chains that were in flight
	// come again afterwards (Queue.Resubmitted), also those whose effect b has already.
	//
	// An error says that b means nothing to this version or cannot be taken up. Then the instance cannot continue: the driver
	// would go on with a device that is not as it left it. The device asks the driver for a reset (VIRTIO 1.2, 2.1.2), which
	// forgets b. A device that can do without what it does not understand returns nil.
	RestoreState(b []byte) error
}

// SaveState keeps b, in place of what was saved before, for the case that this process dies: the next instance gets it by
// StateRestorer. When it returns nil, b is out of reach of this process's death; if it dies earlier, the former state
// or b is there, never a mix. So a device that saves before it completes the chain that told it something never forgets what
// the driver was told is done. It is copying and a check sum, no system call: cheap enough for a control queue, not for each
// request of a data queue.
//
// It is meant for what the driver told the device and cannot be asked again. Features, queues, chains in flight and writes to the
// configuration space are kept by the launcher; files, terminals and connections are not the driver's. The driver's reset
// forgets the state. Until features are negotiated (again) the driver has told nothing: then the call does nothing. It does
// nothing either where the launcher has no region, as of an older version.
//
// Calls are serialised; the one that comes last stays. Allocates nothing. Errors: b is longer than MaxStateBytes, or
// Plugin.State is not set.
func (e *Env) SaveState(b []byte) error {
	if len(b) > MaxStateBytes {
		return fmt.Errorf("save state: %d bytes: want at most %d", len(b), MaxStateBytes)
	}
	if e.host == nil {
		return nil
	}
	return e.host.saveState(b)
}

// KeepsState tells whether the launcher gave a region, so that SaveState saves. Where it did, and RestoreState was not called by the time
// that a queue starts, no former instance has told this driver anything that it saved: the driver begins with this one.
func (e *Env) KeepsState() bool { return e.host != nil && e.host.keepsState() }

// errNoState is what a device gets that saves without having said so.
var errNoState = errors.New("save state: the plugin does not set Plugin.State")

// stateKeeper is the state region of one instance. Safe for concurrent use; its lock is never held while the device is called.
type stateKeeper struct {
	declared bool // Plugin.State

	mu     sync.Mutex
	region *stateRegion // nil: the launcher gave none
	unmap  func() error
	// live: the driver has negotiated features, and the device is as the driver left it. Only then is there something to save.
	live bool
}

// open maps the region behind fd and closes that; 0: there is none.
func (k *stateKeeper) open(fd int) error {
	if fd == 0 {
		return nil
	}
	defer unix.Close(fd) //nolint:errcheck // mapped, or of no use
	if !k.declared {
		return nil // it did not ask for one
	}
	mem, err := mapState(fd)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.region, k.unmap = newStateRegion(mem), func() error { return os.NewSyscallError("munmap", unix.Munmap(mem)) }
	return nil
}

// save implements Env.SaveState.
func (k *stateKeeper) save(b []byte) error {
	if !k.declared {
		return errNoState
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.live || k.region == nil {
		return nil
	}
	if room := k.region.room(); len(b) > room {
		return fmt.Errorf("save state: %d bytes: the launcher's region has room for %d", len(b), room)
	}
	k.region.save(b)
	return nil
}

// kept tells whether there is a region.
func (k *stateKeeper) kept() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.region != nil
}

// restore gives dev what a former instance saved, unless that was done; then saving begins. Called when features were set.
func (k *stateKeeper) restore(dev Device, log hclog.Logger) error {
	k.mu.Lock()
	if k.live || k.region == nil {
		k.live = true
		k.mu.Unlock()
		return nil
	}
	b, bad := k.region.load()
	k.mu.Unlock()
	if bad != nil {
		log.Warn("the state region holds what nobody saved: ignored", "restored", b != nil, "error", bad)
	}
	if b != nil {
		if err := restoreState(dev, b, log); err != nil {
			return fmt.Errorf("restore the state of a former instance (%d bytes): %w", len(b), err)
		}
		log.Info("continues with the state of a former instance", "bytes", len(b))
	}
	k.mu.Lock()
	k.live = true
	k.mu.Unlock()
	return nil
}

// restoreState makes a panic an error: the device has bytes before it that it may not have foreseen.
func restoreState(dev Device, b []byte, log hclog.Logger) (err error) {
	r, ok := dev.(StateRestorer)
	if !ok { // it is: checkDevice
		return fmt.Errorf("%T is no StateRestorer", dev)
	}
	defer func() {
		if p := recover(); p != nil {
			log.Error("panic in RestoreState", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = fmt.Errorf("the device panicked: %v (its log has the stack)", p)
		}
	}()
	return r.RestoreState(b)
}

// forget is the driver's reset: nothing is kept until features are set again.
func (k *stateKeeper) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.live = false
	if k.region != nil {
		k.region.clear()
	}
}

// close leaves the region as it is, for the next instance.
func (k *stateKeeper) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.region == nil {
		return nil
	}
	k.region = nil
	return k.unmap()
}
