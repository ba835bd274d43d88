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

# The network: eth0, served by the program virtplug-plugin-net. It needs no privileges: connections of the guest become connections of
# that program. In the guest the host is called host.virtplug.internal.
device "net" "eth0" {}

# The console that you type at: /dev/hvc0, served by the program virtplug-plugin-console.
device "console" "con0" {
  backend = "stdio"
}
