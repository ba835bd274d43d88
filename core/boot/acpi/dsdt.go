package acpi

import "fmt"

const (
	dsdtRevision  = 2    // 64-bit integers
	pressed       = 0x80 // notification of a power button (ACPI 6.5, 5.6.6)
	present       = 0x0f // _STA: present, enabled, shown, working
	panicPorts    = 1
	serialPorts   = 8
	lguestPorts   = 12 // three 32-bit registers
	deviceNames   = 1 << 12
	sb            = "_SB_"
	powerButton   = "PWRB"
	eventDevice   = "GED_"
	hidVirtioMMIO = "LNRO0005"
	hidLguest     = "VPLG0001"
	hidPanic      = "QEMU0001"
	hidEvents     = "ACPI0013"
	hidSerial     = "PNP0501"
	hidButton     = "PNP0C0C"
)

// dsdt is the definition block: what is fixed, then devices.
func dsdt(c *Config, devices []byte) []byte {
	body := name("_S5_", packageOf(SleepTypeOff, 0, 0, 0))
	var terms [][]byte
	if c.SerialPort != 0 {
		terms = append(terms, device("COM1", name("_HID", eisaID(hidSerial)), name("_UID", integer(0)), name("_STA", integer(present)),
			name("_CRS", resources(ioPorts(c.SerialPort, serialPorts), interrupt(c.SerialGSI, exclusive)))))
	}
	if c.PanicPort != 0 {
		terms = append(terms, device("PEVT", name("_HID", text(hidPanic)), name("_STA", integer(present)),
			name("_CRS", resources(ioPorts(c.PanicPort, panicPorts)))))
	}
	if c.ButtonGSI != 0 {
		terms = append(terms, button(c.ButtonGSI)...)
	}
	if l := c.Lguest; l != nil {
		r := [][]byte{qwordMemory(l.Page, l.Size, cacheable), ioPorts(l.Port, lguestPorts)}
		for _, g := range l.GSIs {
			r = append(r, interrupt(g, shared))
		}
		terms = append(terms, device("LGST", name("_HID", text(hidLguest)), name("_UID", integer(0)), name("_CCA", integer(1)),
			name("_STA", integer(present)), name("_CRS", resources(r...))))
	}
	terms = append(terms, devices)
	return table("DSDT", dsdtRevision, append(body, scope(path(`\`, sb), terms...)...))
}

// button is a power button and the event device that presses it when its interrupt comes (ACPI 6.5, 4.8.2.2.1.2 and 5.6.9).
func button(gsi uint32) [][]byte {
	return [][]byte{
		device(powerButton, name("_HID", eisaID(hidButton)), name("_UID", integer(0)), name("_STA", integer(present))),
		device(eventDevice, name("_HID", text(hidEvents)), name("_UID", integer(0)), name("_STA", integer(present)),
			name("_CRS", resources(interrupt(gsi, exclusive))),
			method("_EVT", 1, ifEqual(term{opArg0}, integer(uint64(gsi)), notify(path(`\`, sb, powerButton), pressed)))),
	}
}

// mmioDevice is the i-th virtio-mmio device (VIRTIO 1.2, 4.2.1 leaves its discovery open; the identifier is Linux's).
func mmioDevice(i int, d MMIODevice) []byte {
	return device(fmt.Sprintf("V%03X", i), name("_HID", text(hidVirtioMMIO)), name("_UID", integer(uint64(d.UID))), //nolint:gosec // G115: Build checks it
		name("_CCA", integer(1)), name("_STA", integer(present)), name("_CRS", resources(memory(d.Base, d.Size), interrupt(d.GSI, shared))))
}
