vm "demo" {
  kernel = "no-such-kernel"
  initrd = "/dev/null"
}

device "block" "vda" {
  path = "no-such.img"
}

device "block" "vdb" {
  path = "."
}

device "console" "con0" {
  port "a" {
    socket = "no-such-dir/s.sock"
  }
}
