package kvm

import (
	"strings"
	"testing"

	"github.com/virtplug/virtplug/core/machine"
	"github.com/virtplug/virtplug/core/memory"
)

func TestAGuestEndsAsItAsks(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		code   []byte
		reason machine.Reason
		detail string
	}{
		"sleep register": {powerOff(), machine.PowerOff, "switched itself off"},
		"its last words": {join(say("reboot: Power down\r\n"), powerOff()), machine.PowerOff, "reboot: Power down"},
		"reset register": {outb(resetPort, 6), machine.Reboot, "reset"},
		"hard reset":     {outb(resetPort, 0xe), machine.Reboot, "reset"},
		"i8042":          {outb(i8042Port, 0xfe), machine.Reboot, "reset"},
		"pvpanic":        {outb(panicPort, 1), machine.Panic, "panic device"},
		"a reset after a panic": {
			join(say("[    0.1] Kernel panic - not syncing: no init found\r\n"), outb(resetPort, 6)),
			machine.Panic, "not syncing: no init found",
		},
		"triple fault": {join(say("last words"), ud2()), machine.Crashed, "triple fault"},
		"its output":   {join(say("last words"), ud2()), machine.Crashed, "\nlast words"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, _ := trial{code: join(c.code, forever())}.try(t)
			wantExit(t, e, c.reason, c.detail)
		})
	}
}

func TestACrashTellsTheRegisters(t *testing.T) {
	t.Parallel()
	e, _ := trial{code: ud2()}.try(t)
	// AMD's processors forget them.
	if !strings.Contains(e.Detail, "registers not known") {
		wantExit(t, e, machine.Crashed, "rip 0000000000100000")
		wantExit(t, e, machine.Crashed, "code 0f 0b")
	}
}

// What looks like the end but is not: each is followed by words that must come.
func TestAGuestGoesOnAfterHarmlessWrites(t *testing.T) {
	t.Parallel()
	code := join(
		outb(sleepPort, 5<<2),       // no SLP_EN
		outb(sleepPort, 3<<2|1<<5),  // another state
		outb(resetPort, 2),          // no RST_CPU
		outl(0xcf8, 0xffff_ffff),    // PCI's address register covers resetPort
		outb(i8042Port, 0xd1),       // another command
		outb(panicPort, 2),          // a crash kernel takes over
		inb(sleepPort+1), wantAL(0), // sleep status
		inb(panicPort), wantAL(3), // what it may be told
		inb(0x71), wantAL(0xff), // no clock chip
		inl(0xcfc), want(0xffff_ffff), // no PCI
		load(0xc800_0000), want(^uint32(0)), store(0xc800_0000, 1), // the hole
		load(0xd000_0000), want(^uint32(0)), // a window without a device
		// Eight bytes, then one that is not aligned.
		movRCX(0xc800_0000), []byte{0x48, 0x8b, 0x01}, want(^uint32(0)),
		movRCX(0xc800_0003), []byte{0x8a, 0x01}, wantAL(0xff),
		// "rep outsb" of five bytes of the code, then "rep insb" to memory.
		movRAX(codeStart), []byte{0x48, 0x89, 0xc6}, movEAX(5), []byte{0x89, 0xc1}, movDX(0x80), []byte{0xf3, 0x6e},
		movRAX(0x20_0000), []byte{0x48, 0x89, 0xc7}, movEAX(5), []byte{0x89, 0xc1}, movDX(0x2f8), []byte{0xf3, 0x6c},
		load(0x20_0001), want(^uint32(0)),
		say("still here\n"), powerOff(), forever(),
	)
	e, out := trial{code: code}.try(t)
	wantExit(t, e, machine.PowerOff, "")
	if out != "still here\n" {
		t.Errorf("printed %q", out)
	}
}

func TestMemoryGoesOnAboveTheHole(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("SKIPPED: -short")
	}
	if err := memory.CheckSize(holeStart + 512<<20); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	const low, high = holeStart - 4096, holeEnd + (512 << 20) - 4096
	code := join(
		store(low, 0x1111), store(high, 0x2222), load(low), want(0x1111), load(high), want(0x2222),
		load(holeStart), want(^uint32(0)), load(holeEnd), want(0),
		powerOff(), forever(),
	)
	e, _ := trial{code: code, memory: holeStart + 512<<20}.try(t)
	wantExit(t, e, machine.PowerOff, "")
}

func TestWhatKVMCannotDoIsSaid(t *testing.T) {
	t.Parallel()
	// Execution of what is no memory.
	e, _ := trial{code: join(movRAX(0xc800_0000), []byte{0xff, 0xe0})}.try(t)
	wantExit(t, e, machine.Crashed, "rip 00000000c8000000")
	if !strings.Contains(e.Detail, "internal error") && !strings.Contains(e.Detail, "triple fault") {
		t.Errorf("detail %q: does not say what happened", e.Detail)
	}
}
