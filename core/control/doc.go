// Package control lets other processes speak to a running launcher: a gRPC service on a unix socket in the VM's run
// directory (v1/control.proto). Serve is the launcher's half; Find and Dial are a command's.
package control
