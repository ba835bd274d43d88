// Package config turns a configuration file or command-line flags into the description of one virtual machine, and checks
// all of it before anything starts.
//
// A file is HCL, or HCL's JSON form if its name ends in .json:
//
//	vm "demo" {
//	  memory = "256M"
//	  kernel = "linux"
//	}
//
//	device "block" "vda" {
//	  path      = "disk.img"
//	  read_only = true
//	}
//
//	device "console" "con0" {
//	  port "serial" { socket = "serial.sock" }
//	  ring { event_idx = false }
//	}
//
// What stands in a device block is checked against the schema that the device's plugin tells (pluginv1.Schema); only the
// blocks `plugin` and `ring` are the launcher's own. Flags become the same syntax tree, with the flag's name as the place, so
// both ways share every check.
//
// Words: an attribute is `name = value`; its path names it within one device, as in the plugin contract: "path",
// "port.0.socket". A diagnostic is one thing that is wrong, with its place.
package config
