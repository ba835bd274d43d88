vm "demo" {
  memory = "256M
}
