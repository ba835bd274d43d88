package kvm

import (
	"math/bits"
	"slices"

	"github.com/virtplug/virtplug/core/kvm"
)

// Leaves of CPUID (Intel SDM volume 2A, "CPUID"; AMD APM volume 3, appendix E).
const (
	leafVendor    = 0x0
	leafFeatures  = 0x1
	leafCaches    = 0x4 // Intel
	leafTopology  = 0xb
	leafTopology2 = 0x1f
	leafExtended  = 0x8000_0001
	leafSizes     = 0x8000_0008 // AMD
	leafCachesAMD = 0x8000_001d
	leafAPICID    = 0x8000_001e // AMD
)

// Feature bits.
const (
	featureTSCDeadline = 1 << 24 // leafFeatures, ECX
	featureHypervisor  = 1 << 31 // leafFeatures, ECX
	featureHTT         = 1 << 28 // leafFeatures, EDX: more than one logical processor in the package
	featureCmpLegacy   = 1 << 1  // leafExtended, ECX, AMD: they are cores
)

// Levels of the topology leaves.
const (
	levelSMT  = 1
	levelCore = 2
)

// cpuidOf is what the CPUID instruction answers on virtual CPU id of n, from what the host can do: one package of n cores
// with one thread each, which share the last cache. KVM's own leaves (0x40000000 and up) are what KVM offers.
func cpuidOf(supported []kvm.CPUIDEntry, id, n uint32, tscDeadline bool) []kvm.CPUIDEntry {
	out := make([]kvm.CPUIDEntry, 0, len(supported)+4)
	width := uint32(bits.Len32(n - 1)) //nolint:gosec // G115: at most 32
	amd, basic := false, uint32(0)
	for _, e := range supported {
		switch e.Function {
		case leafVendor:
			amd, basic = e.Ebx == vendorAMD || e.Ebx == vendorHygon, e.Eax
		case leafTopology, leafTopology2:
			continue // made anew below
		case leafFeatures:
			e.Ebx = e.Ebx&0x0000_ffff | min(n, 255)<<16 | id<<24
			e.Ecx = withBit(e.Ecx|featureHypervisor, featureTSCDeadline, tscDeadline)
			e.Edx = withBit(e.Edx, featureHTT, n > 1)
		case leafCaches:
			e.Eax = sharing(e.Eax, 3, n)
			if e.Eax&0x1f != 0 {
				e.Eax = e.Eax&^(0x3f<<26) | (min(uint32(1)<<width, 64)-1)<<26
			}
		case leafExtended:
			if amd {
				e.Ecx = withBit(e.Ecx, featureCmpLegacy, n > 1)
			}
		case leafSizes:
			if amd {
				e.Ecx = min(n-1, 255) | width<<12
			}
		case leafCachesAMD:
			e.Eax = sharing(e.Eax, 3, n)
		case leafAPICID:
			e.Eax, e.Ebx, e.Ecx = id, id&0xff, 0
		}
		out = append(out, e)
	}
	if basic >= leafTopology {
		out = append(out, topology(leafTopology, id, n, width)...)
	}
	if basic >= leafTopology2 {
		out = append(out, topology(leafTopology2, id, n, width)...)
	}
	slices.SortStableFunc(out, func(a, b kvm.CPUIDEntry) int {
		if a.Function != b.Function {
			return int(int64(a.Function) - int64(b.Function))
		}
		return int(int64(a.Index) - int64(b.Index))
	})
	return out
}

// First registers of the vendor leaf: "Auth" of AuthenticAMD, "Hygo" of HygonGenuine.
const (
	vendorAMD   = 0x6874_7541
	vendorHygon = 0x6f67_7948
)

func withBit(v, bit uint32, on bool) uint32 {
	if on {
		return v | bit
	}
	return v &^ bit
}

// sharing corrects EAX of a cache leaf: how many processors share the cache; below level, one.
func sharing(eax, level, n uint32) uint32 {
	const field = 0xfff << 14
	eax &^= field
	if eax>>5&7 >= level {
		eax |= min(uint32(1)<<bits.Len32(n-1)-1, 0xfff) << 14
	}
	return eax
}

// topology is leaf 0xB or 0x1F: threads, then cores, then the end of the list.
func topology(leaf, id, n, width uint32) []kvm.CPUIDEntry {
	level := func(index, shift, count, kind uint32) kvm.CPUIDEntry {
		return kvm.CPUIDEntry{
			Function: leaf, Index: index, Flags: kvm.CPUIDSignificantIndex,
			Eax: shift, Ebx: count, Ecx: kind<<8 | index, Edx: id,
		}
	}
	return []kvm.CPUIDEntry{level(0, 0, 1, levelSMT), level(1, width, n, levelCore), level(2, 0, 0, 0)}
}
