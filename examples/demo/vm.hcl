# The machine of `make demo`. Paths are relative to this file. What runs it, and on which bus, comes from the command line:
# virtplug run examples/demo/vm.hcl --machine kvm
vm "demo" {
  memory  = "128M"
  initrd  = "../../.demo/initrd.gz"
  cmdline = "quiet"
}

# The disk: /dev/vda, served by the program virtplug-plugin-block.
device "block" "vda" {
  path = "../../.demo/disk.img"
}

# The console that you type at: /dev/hvc0, served by the program virtplug-plugin-console.
device "console" "con0" {
  backend = "stdio"
}
