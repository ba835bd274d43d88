// Package process tests real plugin programs, each in its own process, on the loopback machine: broker, contract, descriptor
// socket, rings and devices together, without a guest.
package process
