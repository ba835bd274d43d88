# The second of two machines that are connected by a cable: it goes to the first one's unix socket. See README.md.
vm "b" {
  memory  = "128M"
  initrd  = "initrd.gz"
  cmdline = "quiet ip=off"
}

# The network: eth0. The path is relative to this file too.
device "net" "eth0" {
  backend = "socket"
  connect = "unix:link.sock"
  capture = "b.pcapng" # what goes over the cable, for Wireshark
}

device "console" "con0" {
  backend = "stdio"
}
