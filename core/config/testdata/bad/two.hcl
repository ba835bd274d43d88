vm "a" {
  memory = "64M"
  cmdline = "x ${var.y}"
}
vm "b" {
}
devise "block" "vda" {
}
device "block" {
}
