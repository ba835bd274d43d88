package sdk

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
)

// collect streams until n events came.
func collect(t *testing.T, h *eventHub, n int) []pluginrpc.Event {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []pluginrpc.Event
	err := h.stream(ctx, func(ev pluginrpc.Event) error {
		if got = append(got, ev); len(got) == n {
			cancel()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestAFullHubKeepsWhatMattersMost(t *testing.T) {
	t.Parallel()
	h := newEventHub(hclog.NewNullLogger())
	h.add(pluginrpc.DeviceError{Message: "first", NeedsReset: true})
	h.add(pluginrpc.DeviceError{Message: "minor"})
	h.configChanged()
	for i := range 10 * maxEvents {
		h.add(pluginrpc.Notice{Message: fmt.Sprint(i)})
	}
	for i := range maxEvents - 1 {
		h.add(pluginrpc.DeviceError{Message: fmt.Sprint("error ", i), NeedsReset: true})
	}
	got := collect(t, h, maxEvents+2)
	if n, ok := got[0].(pluginrpc.Notice); !ok || n.Message != "641 events of the device were dropped: nobody read them" {
		t.Errorf("first %+v", got[0])
	}
	if _, ok := got[1].(pluginrpc.ConfigChanged); !ok {
		t.Errorf("then %+v: want ConfigChanged", got[1])
	}
	if e, ok := got[2].(pluginrpc.DeviceError); !ok || e.Message != "first" {
		t.Errorf("then %+v", got[2])
	}
	for _, ev := range got[2:] {
		if e, ok := ev.(pluginrpc.DeviceError); !ok || !e.NeedsReset {
			t.Errorf("%+v was kept instead of an error", ev)
		}
	}
}

func TestAnEventThatCouldNotBeSentIsNotLost(t *testing.T) {
	t.Parallel()
	h := newEventHub(hclog.NewNullLogger())
	h.add(pluginrpc.Notice{Message: "a"})
	h.add(pluginrpc.Notice{Message: "b"})
	h.configChanged()
	gone := errors.New("gone")
	for range 3 {
		if err := h.stream(t.Context(), func(pluginrpc.Event) error { return gone }); !errors.Is(err, gone) {
			t.Fatal(err)
		}
	}
	// The mark goes first; then a notice fails.
	err := h.stream(t.Context(), func(ev pluginrpc.Event) error {
		if _, changed := ev.(pluginrpc.ConfigChanged); changed {
			return nil
		}
		return gone
	})
	if !errors.Is(err, gone) {
		t.Fatal(err)
	}
	h.configChanged()
	got := collect(t, h, 3)
	if _, ok := got[0].(pluginrpc.ConfigChanged); !ok || fmt.Sprint(got[1:]) != "[{a map[]} {b map[]}]" {
		t.Errorf("%+v", got)
	}
}
