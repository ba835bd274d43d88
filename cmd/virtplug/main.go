// Command virtplug runs virtual machines whose devices are plugins: programs of their own.
package main

import (
	"os"

	"github.com/virtplug/virtplug/core/terminal"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == terminal.GuardArg {
		os.Exit(terminal.GuardMain())
	}
	os.Exit(execute(os.Args[1:]))
}
