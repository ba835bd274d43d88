package kvm

import (
	"fmt"
	"testing"

	"github.com/virtplug/virtplug/core/kvm"
)

// answer is what CPUID leaf fn, index i, says.
func answer(t *testing.T, list []kvm.CPUIDEntry, fn, i uint32) kvm.CPUIDEntry {
	t.Helper()
	var found []kvm.CPUIDEntry
	for _, e := range list {
		if e.Function == fn && (e.Flags&kvm.CPUIDSignificantIndex == 0 || e.Index == i) {
			found = append(found, e)
		}
	}
	if len(found) != 1 {
		t.Fatalf("leaf %#x.%d: %d answers", fn, i, len(found))
	}
	return found[0]
}

// intel and amd are what hosts of 8 cores with two threads say: their own numbers must not show.
func intel() []kvm.CPUIDEntry {
	cache := func(i, eax uint32) kvm.CPUIDEntry {
		return kvm.CPUIDEntry{Function: leafCaches, Index: i, Flags: kvm.CPUIDSignificantIndex, Eax: eax}
	}
	return []kvm.CPUIDEntry{
		{Function: leafVendor, Eax: leafTopology2, Ebx: 0x756e6547},
		{Function: leafFeatures, Ebx: 0x0910_0800, Ecx: featureTSCDeadline, Edx: featureHTT},
		cache(0, 7<<26|1<<14|1<<5|1), cache(1, 7<<26|15<<14|3<<5|3), cache(2, 0),
		{Function: leafTopology, Index: 0, Flags: kvm.CPUIDSignificantIndex, Eax: 1, Ebx: 2, Ecx: 0x100, Edx: 9},
		{Function: leafTopology, Index: 1, Flags: kvm.CPUIDSignificantIndex, Eax: 4, Ebx: 16, Ecx: 0x201, Edx: 9},
		{Function: 0x4000_0001, Eax: 0x0100_7efb},
		{Function: leafExtended},
	}
}

func amd() []kvm.CPUIDEntry {
	return []kvm.CPUIDEntry{
		{Function: leafVendor, Eax: 0xd, Ebx: vendorAMD},
		{Function: leafFeatures, Ebx: 0x0910_0800, Edx: featureHTT},
		{Function: leafExtended, Ecx: featureCmpLegacy},
		{Function: leafSizes, Eax: 0x3030, Ecx: 0x700f},
		{Function: leafCachesAMD, Index: 3, Flags: kvm.CPUIDSignificantIndex, Eax: 15<<14 | 3<<5 | 3},
		{Function: leafAPICID, Eax: 9, Ebx: 0x104, Ecx: 3},
	}
}

func TestEachCPUKnowsItsNumberAndHowManyThereAre(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ n, width, caches uint32 }{{1, 0, 0}, {2, 1, 1}, {3, 2, 3}, {4, 2, 3}, {17, 5, 31}} {
		for id := range c.n {
			t.Run(fmt.Sprintf("%d of %d", id, c.n), func(t *testing.T) {
				t.Parallel()
				for name, host := range map[string][]kvm.CPUIDEntry{"intel": intel(), "amd": amd()} {
					l := cpuidOf(host, id, c.n, name == "intel")
					f := answer(t, l, leafFeatures, 0)
					if f.Ebx>>24 != id || f.Ebx>>16&0xff != c.n || f.Ebx&0xffff != 0x0800 {
						t.Errorf("%s: leaf 1 EBX %08x", name, f.Ebx)
					}
					if f.Ecx&featureHypervisor == 0 || (f.Ecx&featureTSCDeadline != 0) != (name == "intel") || (f.Edx&featureHTT != 0) != (c.n > 1) {
						t.Errorf("%s: leaf 1 ECX %08x EDX %08x", name, f.Ecx, f.Edx)
					}
					smt, core, end := answer(t, l, leafTopology, 0), answer(t, l, leafTopology, 1), answer(t, l, leafTopology, 2)
					if smt.Eax != 0 || smt.Ebx != 1 || smt.Ecx != 0x100 || core.Eax != c.width || core.Ebx != c.n || core.Ecx != 0x201 ||
						end.Ebx != 0 || end.Ecx != 2 || smt.Edx != id || core.Edx != id || end.Edx != id {
						t.Errorf("%s: leaf 0xb %+v %+v %+v", name, smt, core, end)
					}
				}
				i := cpuidOf(intel(), id, c.n, true)
				if a, b, z := answer(t, i, leafCaches, 0).Eax, answer(t, i, leafCaches, 1).Eax, answer(t, i, leafCaches, 2).Eax; a != c.caches<<26|1<<5|1 ||
					b != c.caches<<26|c.caches<<14|3<<5|3 || z != 0 {
					t.Errorf("leaf 4 EAX %08x %08x %08x", a, b, z)
				}
				if e := answer(t, i, leafTopology2, 1); e.Ebx != c.n || e.Edx != id {
					t.Errorf("leaf 0x1f %+v", e)
				}
				a := cpuidOf(amd(), id, c.n, false)
				s, e, x := answer(t, a, leafSizes, 0), answer(t, a, leafAPICID, 0), answer(t, a, leafExtended, 0)
				if s.Eax != 0x3030 || s.Ecx != c.n-1|c.width<<12 || e.Eax != id || e.Ebx != id || e.Ecx != 0 || (x.Ecx != 0) != (c.n > 1) {
					t.Errorf("AMD's leaves %+v %+v %+v", s, e, x)
				}
				if got := answer(t, a, leafCachesAMD, 3).Eax; got != c.caches<<14|3<<5|3 {
					t.Errorf("leaf 0x8000001d EAX %08x", got)
				}
			})
		}
	}
}

// With leaves that the host does not have, KVM would answer for them with those of its last one.
func TestLeavesThatTheHostDoesNotHaveAreNotMade(t *testing.T) {
	t.Parallel()
	for _, e := range cpuidOf([]kvm.CPUIDEntry{{Function: leafVendor, Eax: 4, Ebx: 0x756e6547}, {Function: leafFeatures}}, 0, 1, false) {
		if e.Function > leafFeatures {
			t.Errorf("leaf %#x", e.Function)
		}
	}
}
