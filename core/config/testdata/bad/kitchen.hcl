# everything that can be wrong at once
plugin_dirs = "plugins"

vm "my demo" {
  memory  = 256
  cpus    = 1.5
  machine = "umll"
  memry   = "1G"
}

device "blok" "vda" {
  path = "disk.img"
}

device "block" "vdb" {
  read_onli  = true
  block_size = 100000
  cache      = "writebck"
  queues     = "many"
}

device "block" "vdb" {
  path      = ["a", "b"]
  read_only = 3
  timeout   = 5
  serial    = "0123456789012345678901"
  rign {
    indirect = true
  }
}

device "console" "con0" {
  port "serial" {
    socket = "s.sock"
    size   = "12Q"
  }
  port "serial" {
  }
  port "third" {
  }
  ring {
    indirect = "perhaps"
  }
  ring {
  }
  plugin {
    sha256 = "abc"
  }
}

device "bogus" "x" {
}
