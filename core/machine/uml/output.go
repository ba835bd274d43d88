package uml

import (
	"strings"

	"github.com/virtplug/virtplug/core/machine"
	"github.com/virtplug/virtplug/core/machine/kernellog"
)

// detailLines is how many lines of output explain a crash.
const detailLines = 10

// explain derives why a guest ended from the shell's exit code (128+n: signal n) and the last output.
func explain(code int, lines []string) machine.Exit {
	ended := kernellog.Last(lines, kernellog.EndMark)
	if code == 0 {
		if strings.Contains(ended, "Restarting system") {
			return machine.Exit{Reason: machine.Reboot, Detail: ended}
		}
		return machine.Exit{Reason: machine.PowerOff, Detail: ended}
	}
	if l := kernellog.Last(lines, kernellog.PanicMark); l != "" {
		return machine.Exit{Reason: machine.Panic, Detail: l}
	}
	// Now and then linux.uml 6.1 aborts while it tidies up its own process, after the guest has ended.
	if ended != "" {
		exit := explain(0, lines)
		exit.Detail += "; then linux.uml: " + codeText(code)
		return exit
	}
	detail := append([]string{"linux.uml: " + codeText(code)}, lines[max(0, len(lines)-detailLines):]...)
	return machine.Exit{Reason: machine.Crashed, Detail: strings.Join(detail, "\n")}
}
