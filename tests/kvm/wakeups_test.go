package kvm_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/virtplug/virtplug/tests/session"
)

// running is what `virtplug ps --json` tells of a VM.
type running struct {
	Name, State, Machine string
	// Counters are the machine's.
	Counters map[string]number
	Devices  []struct {
		Name   string
		State  string
		Pid    int
		Queues []struct{ Kicks, Completed number }
		// Counters are the plugin's.
		Counters map[string]number
	}
}

// number is an unsigned number, which protobuf writes as a text.
type number uint64

// UnmarshalJSON implements json.Unmarshaler.
func (n *number) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return err
	}
	u, err := strconv.ParseUint(text, 10, 64)
	*n = number(u)
	return err
}

// describe asks the only VM of the test's directories.
func describe(t *testing.T, v *session.VM) running {
	t.Helper()
	cmd := v.Virtplug("ps", "--json")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("virtplug ps: %v", err)
	}
	var all struct{ VMs []running }
	if err := json.Unmarshal(out, &all); err != nil || len(all.VMs) != 1 {
		t.Fatalf("virtplug ps --json: %v, %d VMs, want 1:\n%s", err, len(all.VMs), out)
	}
	return all.VMs[0]
}

// served is how many requests the devices have completed.
func (r running) served() uint64 {
	n := uint64(0)
	for _, d := range r.Devices {
		for _, q := range d.Queues {
			n += uint64(q.Completed)
		}
	}
	return n
}

// woken is how often the launcher was woken by the guest, but for the serial port: the guest prints there, a byte a time.
func (r running) woken(t *testing.T) uint64 {
	t.Helper()
	if _, ok := r.Counters["exits"]; !ok {
		t.Fatalf("the machine does not count exits: %v", r.Counters)
	}
	return uint64(r.Counters["exits"] - r.Counters["exits.io"] + r.Counters["kicks"])
}

// Requests do not wake the launcher: kicks go from KVM to the plugin, interrupts from the plugin to KVM. Ten times as many requests
// must not cost more exits.
func TestBareLoadDoesNotWakeTheLauncher(t *testing.T) {
	t.Parallel()
	const few, many = 200, 2000
	for _, bus := range buses {
		t.Run(bus, func(t *testing.T) {
			t.Parallel()
			woken := func(requests int) (uint64, running) {
				v := newBare(t)
				startBare(v, fmt.Sprintf("test=start,load load=%d depth=4 timeout=120 end=halt", requests), "--bus", bus, "--block", disk(t, v, "d", session.Pattern(1, mebi)))
				r := waitDone(t, v)
				r.good(t, "disk0.load")
				if n := r.number(t, "disk0.load", "requests"); n != uint64(requests) { //nolint:gosec // G115: a constant
					t.Errorf("the guest made %d requests, want %d", n, requests)
				}
				vm := describe(t, v)
				if n := vm.served(); n < uint64(requests) { //nolint:gosec // G115: a constant
					t.Errorf("the plugin has served %d requests, want %d", n, requests)
				}
				stop(t, v)
				return vm.woken(t), vm
			}
			less, _ := woken(few)
			more, vm := woken(many)
			t.Logf("%d requests: launcher woken %d times; %d requests: %d times; %v", few, less, many, more, vm.Counters)
			if more > less+(many-few)/20 {
				t.Errorf("%d requests woke the launcher %d times, %d requests %d times: %v", few, less, many, more, vm.Counters)
			}
		})
	}
}
