package uml

import (
	"fmt"
	"strings"

	"github.com/virtplug/virtplug/core/machine"
)

// Names in RunDir. The guest is started there and gets relative names, which keeps its command line short and free of
// characters that its parser would take for something else.
const (
	initrdName = "initrd"
	umidDir    = "umid"
	umid       = "g"
)

func socketName(i int) string { return fmt.Sprintf("d%d", i) }

// cmdlineMax is the kernel's COMMAND_LINE_SIZE on um, less its terminator and what it appends itself ("root=98:0").
const cmdlineMax = 4095 - 64

// arguments are linux.uml's.
func arguments(g machine.Guest, eps []endpoint) ([]string, error) {
	args := []string{
		fmt.Sprintf("mem=%dK", g.MemoryBytes>>10),
		"umid=" + umid, "uml_dir=" + umidDir,
		// Nothing but the kernel's own messages on our pipe; no input; no host terminal; no host files.
		"con=null", "con0=null,fd:1", "ssl=null", "console=tty0", "hostfs=/dev/null/none",
		// Exit instead of executing itself again.
		"noreboot",
	}
	if g.Initrd != "" {
		args = append(args, "initrd="+initrdName)
	}
	for i, ep := range eps {
		args = append(args, fmt.Sprintf("virtio_uml.device=%s:%d:%d", socketName(i), uint32(ep.id), i))
	}
	args = append(args, strings.Fields(g.Cmdline)...)
	if n := len(strings.Join(args, " ")); n > cmdlineMax {
		return nil, fmt.Errorf("user-mode linux: kernel command line of %d bytes with %d devices: at most %d: shorten it", n, len(eps), cmdlineMax)
	}
	return args, nil
}
