package initrd

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// outOfTree is a kernel module that no package of a kernel holds, and what it says of itself (its section .modinfo).
type outOfTree struct {
	path, name string
	// release is the kernel that it was built for.
	release string
	depends []string
	aliases []string
}

// readOutOfTree reads what a module file says of itself.
func readOutOfTree(file string) (outOfTree, error) {
	bad := func(why string) error {
		return fmt.Errorf("module %s: %s: want a Linux kernel module (.ko)", file, why)
	}
	data, err := readModule(file)
	if err != nil {
		return outOfTree{}, err
	}
	e, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return outOfTree{}, bad("not an ELF file")
	}
	section := e.Section(".modinfo")
	if section == nil {
		return outOfTree{}, bad("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return outOfTree{}, bad(err.Error())
	}
	x, err := parseModinfo(info)
	if err != nil {
		return outOfTree{}, bad(err.Error())
	}
	x.path = file
	if x.name == "" { // before Linux 4.13 only the file's name tells
		x.name = moduleName(file)
	}
	return x, nil
}

// parseModinfo reads NUL-terminated texts KEY=VALUE (Linux, include/linux/moduleparam.h).
func parseModinfo(info []byte) (outOfTree, error) {
	var x outOfTree
	for field := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		switch key {
		case "name":
			x.name = value
		case "vermagic": // "6.1.0-56-cloud-amd64 SMP preempt mod_unload modversions "
			x.release, _, _ = strings.Cut(value, " ")
		case "depends":
			for d := range strings.SplitSeq(value, ",") {
				if d != "" {
					x.depends = append(x.depends, d)
				}
			}
		case "alias":
			if strings.ContainsAny(value, " \n") {
				return x, fmt.Errorf("alias %q has a blank in it", value)
			}
			x.aliases = append(x.aliases, value)
		}
	}
	if firstWord(x.release+" ") != x.release || x.release == "" {
		return x, errors.New("it does not tell which kernel it is for")
	}
	if strings.ContainsAny(x.name, "/ \n") {
		return x, fmt.Errorf("its name %q is none", x.name)
	}
	slices.Sort(x.aliases)
	return x, nil
}
