package sdk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// heapState is a region on the heap, where the race detector sees it.
func heapState(size int) sharedState {
	words := make([]byte, size+8) // one of more than 8 bytes is 8-aligned
	return words[:size]
}

// journal is a region's memory that notes each store.
type journal struct {
	sharedState
	stores []storeAt
}

type storeAt struct {
	off int
	b   []byte
}

func (j *journal) store64(off int, v uint64) {
	j.stores = append(j.stores, storeAt{off, binary.NativeEndian.AppendUint64(nil, v)})
	j.sharedState.store64(off, v)
}

func (j *journal) write(off int, b []byte) {
	j.stores = append(j.stores, storeAt{off, bytes.Clone(b)})
	j.sharedState.write(off, b)
}

// pattern is a state that is wrong if a byte of another is in it.
func pattern(n int, fill byte) []byte { return bytes.Repeat([]byte{fill}, n) }

// reopened is what the next instance finds.
func reopened(mem sharedState) (*stateRegion, []byte) {
	r := newStateRegion(mem)
	b, _ := r.load()
	return r, b
}

// regions are what a save may find, with the state that they hold (nil: none).
func regions() map[string]struct {
	mem sharedState
	old []byte
} {
	const size = stateRegionMin
	type start = struct {
		mem sharedState
		old []byte
	}
	saved := func(states ...[]byte) sharedState {
		mem := heapState(size)
		r := newStateRegion(mem)
		for _, b := range states {
			r.save(b)
		}
		return mem
	}
	spoilt := func(mem sharedState, at ...int) sharedState {
		for _, i := range at {
			mem[i] ^= 0x55
		}
		return mem
	}
	garbage := heapState(size)
	for i := range garbage {
		garbage[i] = byte(i*7 + 3)
	}
	return map[string]start{
		"empty":                 {heapState(size), nil},
		"one":                   {saved(pattern(40, 1)), pattern(40, 1)},
		"two":                   {saved(pattern(60, 1), pattern(20, 2)), pattern(20, 2)},
		"three":                 {saved(pattern(60, 1), pattern(20, 2), pattern(90, 3)), pattern(90, 3)},
		"an empty state":        {saved([]byte{}), []byte{}},
		"garbage":               {garbage, nil},
		"the newer one spoilt":  {spoilt(saved(pattern(60, 1), pattern(20, 2)), size/2+20), pattern(60, 1)},
		"the older one spoilt":  {spoilt(saved(pattern(60, 1), pattern(20, 2)), 20), pattern(20, 2)},
		"a sequence without it": {spoilt(heapState(size), 0, size/2+3), nil},
	}
}

// A process may die between any two stores, and a store of many bytes may be cut anywhere: what the next one finds is the
// former state or the new one, and it can go on from there.
func TestASaveThatIsCutShortLeavesTheOldStateOrTheNew(t *testing.T) {
	t.Parallel()
	for name, start := range regions() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fresh := pattern(50, 9)
			rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test
			images := cutShort(start.mem, fresh, rnd)
			news := 0
			for i, mem := range images {
				r, got := reopened(mem)
				isNew := bytes.Equal(got, fresh)
				if !isNew && (!bytes.Equal(got, start.old) || (got == nil) != (start.old == nil)) {
					t.Fatalf("image %d of %d: %x: want %x or %x", i, len(images), got, start.old, fresh)
				}
				if isNew {
					news++
				}
				again := pattern(10+i%70, 7)
				r.save(again)
				if _, got := reopened(mem); !bytes.Equal(got, again) {
					t.Fatalf("image %d: a further save: %x: want %x", i, got, again)
				}
			}
			if news == 0 || news == len(images) {
				t.Errorf("%d of %d images hold the new state: nothing is tested", news, len(images))
			}
		})
	}
}

// cutShort makes every image that a death while saving b can leave, and some in which a long store was not made from its first byte
// to its last.
func cutShort(before sharedState, b []byte, rnd *rand.Rand) []sharedState {
	j := &journal{sharedState: slices.Clone(before)}
	r, _ := reopened(j.sharedState)
	r.mem = j
	r.save(b)
	image := slices.Clone(before)
	images := []sharedState{slices.Clone(image)}
	for _, s := range j.stores {
		for range 20 {
			some := slices.Clone(image)
			for i, v := range s.b {
				if rnd.IntN(2) == 0 {
					some[s.off+i] = v
				}
			}
			images = append(images, some)
		}
		for i, v := range s.b {
			image[s.off+i] = v
			images = append(images, slices.Clone(image))
		}
	}
	return images
}

// The check sum finds what is cut short, but only nearly always; the order of stores, always: the slot holds nothing from the first
// store to the last, and the other slot is left alone.
func TestASaveHidesItsSlotUntilItIsComplete(t *testing.T) {
	t.Parallel()
	for name, start := range regions() {
		j := &journal{sharedState: start.mem}
		r, _ := reopened(start.mem)
		r.mem = j
		r.save(pattern(50, 9))
		first, last := j.stores[0], j.stores[len(j.stores)-1]
		if first.off != last.off || first.off != r.last*r.slotBytes() || binary.NativeEndian.Uint64(first.b) != 0 ||
			binary.NativeEndian.Uint64(last.b) != r.sequence || r.sequence == 0 {
			t.Errorf("%s: first %+v, last %+v", name, first, last)
		}
		for _, s := range j.stores[1 : len(j.stores)-1] {
			if s.off < first.off+8 || s.off+len(s.b) > first.off+r.slotBytes() {
				t.Errorf("%s: a store of %d bytes at %d", name, len(s.b), s.off)
			}
		}
	}
}

// Two deaths in a row, each in a save.
func TestASaveAfterOneThatWasCutShortIsCutShort(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // a test
	old, first, second := pattern(30, 1), pattern(45, 2), pattern(20, 3)
	mem := heapState(stateRegionMin)
	newStateRegion(mem).save(old)
	for i, cut := range cutShort(mem, first, rnd) {
		_, found := reopened(cut)
		for k, twice := range cutShort(cut, second, rnd) {
			if _, got := reopened(twice); !bytes.Equal(got, found) && !bytes.Equal(got, second) {
				t.Fatalf("cut %d, %d: %x: want %x or %x", i, k, got, found, second)
			}
		}
	}
}

func TestWhatIsNoStateIsNotTakenForOne(t *testing.T) {
	t.Parallel()
	const half = stateRegionMin / 2
	slot := func(mem sharedState, at int, sequence uint64, length, sum uint32, b []byte) {
		binary.NativeEndian.PutUint64(mem[at:], sequence)
		binary.NativeEndian.PutUint32(mem[at+8:], length)
		binary.NativeEndian.PutUint32(mem[at+12:], sum)
		copy(mem[at+16:], b)
	}
	valid := func(mem sharedState, at int, sequence uint64, b []byte) {
		slot(mem, at, sequence, uint32(len(b)), 0, b) //nolint:gosec // G115: small
		binary.NativeEndian.PutUint32(mem[at+12:], slotSum(mem[at:at+12], b))
	}
	for name, tc := range map[string]struct {
		make func(mem sharedState)
		want string
		bad  bool
	}{
		"nothing":                   {func(sharedState) {}, "", false},
		"sequence 0":                {func(m sharedState) { valid(m, 0, 0, []byte("a")) }, "", false},
		"a valid one":               {func(m sharedState) { valid(m, half, 5, []byte("a")) }, "a", false},
		"the higher one":            {func(m sharedState) { valid(m, 0, 6, []byte("a")); valid(m, half, 5, []byte("b")) }, "a", false},
		"length too long":           {func(m sharedState) { slot(m, 0, 1, half-15, 0, nil); valid(m, half, 1, []byte("b")) }, "b", true},
		"length of all ones":        {func(m sharedState) { slot(m, 0, 9, 1<<32-1, 0, nil); valid(m, half, 1, []byte("b")) }, "b", true},
		"wrong sum":                 {func(m sharedState) { slot(m, half, 9, 1, 77, nil); valid(m, 0, 1, []byte("b")) }, "b", true},
		"another slot's sum":        {func(m sharedState) { valid(m, 0, 1, []byte("b")); copy(m[half:], m[:40]); m[half] = 2 }, "b", true},
		"sequence out of this life": {func(m sharedState) { valid(m, 0, 1<<63+1, []byte("a")); valid(m, half, 3, []byte("b")) }, "b", true},
		"the longest":               {func(m sharedState) { valid(m, 0, 1, pattern(half-16, 'z')) }, string(pattern(half-16, 'z')), false},
	} {
		mem := heapState(stateRegionMin)
		tc.make(mem)
		r := newStateRegion(mem)
		got, err := r.load()
		if string(got) != tc.want || (err != nil) != tc.bad {
			t.Errorf("%s: %q, %v: want %q", name, got, err, tc.want)
		}
		r.save([]byte("next"))
		if _, got := reopened(mem); string(got) != "next" {
			t.Errorf("%s: saved over it: %q", name, got)
		}
		r.clear()
		if _, got := reopened(mem); got != nil {
			t.Errorf("%s: cleared: %q", name, got)
		}
	}
}

func TestARegionOfAnySizeKeepsWhatFits(t *testing.T) {
	t.Parallel()
	for _, size := range []int{stateRegionMin, stateRegionMin + 1, stateRegionMin + 13, 8191, 64 << 10, stateRegionMax} {
		mem := heapState(size)
		r := newStateRegion(mem)
		if size == 64<<10 && r.room() != MaxStateBytes {
			t.Errorf("a launcher's region has room for %d: want %d", r.room(), MaxStateBytes)
		}
		for i := range byte(3) {
			b := pattern(r.room(), i+1)
			r.save(b)
			if _, got := reopened(mem); !bytes.Equal(got, b) {
				t.Errorf("size %d: state %d is not what was saved", size, i)
			}
		}
	}
}

func TestSavingAllocatesNothing(t *testing.T) { //nolint:paralleltest // it counts allocations
	k := &stateKeeper{declared: true, live: true, region: newStateRegion(heapState(64 << 10))}
	b := pattern(1000, 1)
	if n := testing.AllocsPerRun(100, func() {
		if err := k.save(b); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a save", n)
	}
}

// FuzzStateRegion reads a region that anybody may have written: the beginnings of its slots, with check sums made right where fix says so.
func FuzzStateRegion(f *testing.F) {
	slot := func(sequence uint64, length uint32, b string) []byte {
		head := binary.NativeEndian.AppendUint64(nil, sequence)
		return append(binary.NativeEndian.AppendUint32(head, length), "sum."+b...)
	}
	f.Add([]byte{}, []byte{}, byte(0), []byte("x"))
	f.Add(slot(1, 5, "state"), slot(2, 0, ""), byte(3), []byte{})
	f.Add(slot(7, 5, "state"), slot(6, 2032, "x"), byte(2), []byte("next"))
	f.Add(slot(1<<63, 3, "abc"), slot(1<<63+1, 3, "abc"), byte(3), []byte("next"))
	f.Add(slot(1, 2033, "x"), slot(1, 1<<32-1, "x"), byte(3), []byte("next"))
	f.Fuzz(func(t *testing.T, first, second []byte, fix byte, b []byte) {
		const half = stateRegionMin / 2
		mem := heapState(stateRegionMin)
		for i, s := range [][]byte{first, second} {
			at := mem[i*half:][:half]
			copy(at, s)
			if n := binary.NativeEndian.Uint32(at[8:]); fix>>i&1 != 0 && n <= half-stateHeader {
				binary.NativeEndian.PutUint32(at[12:], slotSum(at[:stateHeader], at[stateHeader:][:n]))
			}
		}
		r := newStateRegion(mem)
		got, _ := r.load()
		if len(got) > r.room() || (got == nil) != (r.last < 0) {
			t.Fatalf("a state of %d bytes, in slot %d of %d", len(got), r.last, r.slotBytes())
		}
		if _, again := reopened(mem); !bytes.Equal(got, again) {
			t.Fatal("reading changed it")
		}
		if r.sequence == stateSequenceMax { // nobody's who counts from 1
			return
		}
		b = b[:min(len(b), r.room())]
		r.save(b)
		if _, got := reopened(mem); !bytes.Equal(got, b) {
			t.Fatalf("saved %d bytes, got %d others", len(b), len(got))
		}
	})
}

func BenchmarkSaveState(b *testing.B) {
	for _, n := range []int{64, 1024, MaxStateBytes} {
		b.Run(fmt.Sprintf("bytes=%d", n), func(b *testing.B) {
			k := &stateKeeper{declared: true, live: true, region: newStateRegion(heapState(64 << 10))}
			s := pattern(n, 1)
			b.SetBytes(int64(n))
			for b.Loop() {
				if err := k.save(s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
