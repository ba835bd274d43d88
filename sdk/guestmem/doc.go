// Package guestmem gives bounds-checked access to guest memory by guest-physical address.
//
// A Memory is an immutable table of regions, each backed by a byte slice: a mapping of a descriptor that the launcher
// passed, or plain heap memory in tests. Nothing here reads or writes the bytes: callers get slices that alias guest memory.
// The driver may change those bytes at any time, so each byte is to be read once, copied, and the copy validated.
//
// Slices alias the mapping and must not be used after Close; whoever keeps bytes copies them.
package guestmem
