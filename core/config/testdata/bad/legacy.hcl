vm "a" {
  bus = "lguest"
}
device "console" "con0" {
}
device "block" "vda" {
  path = "disk.img"
}
