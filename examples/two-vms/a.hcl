# The first of two machines that are connected by a cable: it waits for the other one at a unix socket. See README.md.
vm "a" {
  memory  = "128M"
  initrd  = "initrd.gz"
  cmdline = "quiet ip=off" # there is no DHCP server on this cable
}

# The network: eth0. The path is relative to this file.
device "net" "eth0" {
  backend = "socket"
  listen  = "link.sock"
}

# The console that you type at.
device "console" "con0" {
  backend = "stdio"
}
