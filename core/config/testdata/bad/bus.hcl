vm "a" {
  machine = "uml"
  bus     = "lguest"
}
