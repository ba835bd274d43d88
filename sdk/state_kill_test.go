package sdk

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
)

// asSaver makes the test binary a process that saves states to the region at descriptor 3 until it is killed.
const asSaver = "SDK_TEST_SAVER"

func TestMain(m *testing.M) {
	if os.Getenv(asSaver) != "" {
		fmt.Fprintln(os.Stderr, saver())
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// numbered is state n: its number, over and over, as often as a multiple of its number.
func numbered(n uint64) []byte {
	return bytes.Repeat(binary.NativeEndian.AppendUint64(nil, n), int(1+n*37%4000))
}

// numberOf is a state's number; an error if it is a mix.
func numberOf(b []byte) (uint64, error) {
	if len(b) < 8 {
		return 0, fmt.Errorf("%d bytes", len(b))
	}
	n := binary.NativeEndian.Uint64(b)
	if !bytes.Equal(b, numbered(n)) {
		return n, fmt.Errorf("%d bytes, not those of state %d", len(b), n)
	}
	return n, nil
}

// restorer is a device that only takes its state.
type restorer struct {
	scripted

	number uint64
	err    error
}

func (r *restorer) RestoreState(b []byte) error {
	r.number, r.err = numberOf(b)
	return r.err
}

// saver goes on from the state that is there, and writes the number of each state that it has saved to standard output.
func saver() error {
	k := &stateKeeper{declared: true}
	if err := k.open(3); err != nil {
		return err
	}
	r := &restorer{}
	if err := k.restore(r, hclog.NewNullLogger()); err != nil {
		return err
	}
	for n := r.number + 1; ; n++ {
		if err := k.save(numbered(n)); err != nil {
			return err
		}
		if _, err := os.Stdout.Write(binary.NativeEndian.AppendUint64(nil, n)); err != nil {
			return err
		}
	}
}

// A process that is killed at any moment leaves the state that it saved last, or the one that it was saving.
func TestAStateSurvivesKillAtAnyMoment(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	must(t, err)
	region := regionFile(t, 64<<10)
	rnd := rand.New(rand.NewPCG(5, uint64(time.Now().UnixNano()))) //nolint:gosec // G115, G404: a test
	last := uint64(0)
	for round := range 60 {
		acked := saveUntilKilled(t, self, region, time.Duration(rnd.IntN(3000))*time.Microsecond)
		k := &stateKeeper{declared: true}
		must(t, k.open(settingsWith(t, region).State))
		r := &restorer{}
		if err := k.restore(r, hclog.NewNullLogger()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if acked == 0 { // killed before the first save was told
			acked = last
		}
		if r.number != acked && r.number != acked+1 {
			t.Fatalf("round %d: state %d: want %d or the next", round, r.number, acked)
		}
		must(t, k.close())
		last = r.number
	}
	if last < 60 {
		t.Errorf("%d states in all: nothing is tested", last)
	}
}

// saveUntilKilled lets a process save for a while after its first, kills it, and returns the last number that it told.
func saveUntilKilled(t *testing.T, self string, region *os.File, after time.Duration) (acked uint64) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env, cmd.ExtraFiles, cmd.Stderr = append(os.Environ(), asSaver+"=1"), []*os.File{region}, os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	told := bufio.NewReader(out)
	var b [8]byte
	for first := true; ; first = false {
		_, err := io.ReadFull(told, b[:])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		must(t, err)
		acked = binary.NativeEndian.Uint64(b[:])
		if first {
			timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
			defer timer.Stop()
		}
	}
	_ = cmd.Wait() // killed
	return acked
}
