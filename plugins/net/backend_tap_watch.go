package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/virtplug/virtplug/sdk/eventfd"
)

// tapWatch looks whether an interface of the host is up. Netlink's messages only tell that something changed: what, it asks.
type tapWatch struct {
	index   int
	changed func(up, there bool)

	netlink, stop int
	ended         sync.WaitGroup
	up, there     atomic.Bool
	changes       atomic.Uint64
}

// findInterface is net.InterfaceByName with a cause that says more.
func findInterface(name string) (*net.Interface, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	return i, nil
}

// watchInterface calls changed, from a goroutine of its own, when the interface goes up or down, or away for ever.
func watchInterface(index int, changed func(up, there bool)) (*tapWatch, error) {
	w := &tapWatch{index: index, changed: changed, netlink: -1, stop: -1}
	var err error
	if w.netlink, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE); err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = os.NewSyscallError("bind", unix.Bind(w.netlink, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}))
	if err == nil {
		w.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		err = os.NewSyscallError("eventfd", err)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch interfaces: %w", err), w.close())
	}
	w.up.Store(true)
	w.there.Store(true)
	w.look()
	w.ended.Go(w.run)
	return w, nil
}

// state tells whether the interface is up and has a carrier, and whether it is there at all.
func (w *tapWatch) state() (up, there bool) { return w.up.Load(), w.there.Load() }

// look asks, and returns whether anything changed.
func (w *tapWatch) look() bool {
	flags, err := w.flags()
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return false // not told: as it was
	}
	const running = unix.IFF_UP | unix.IFF_RUNNING
	up, there := err == nil && flags&running == running, err == nil
	wasUp, wasThere := w.up.Swap(up), w.there.Swap(there)
	return wasUp != up || wasThere != there
}

// flags are the interface's IFF_*. ENODEV: it is not there.
func (w *tapWatch) flags() (uint16, error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return 0, err
	}
	ifr.SetUint32(uint32(w.index)) //nolint:gosec // G115: an interface's index is positive
	if err := unix.IoctlIfreq(w.netlink, unix.SIOCGIFNAME, ifr); err != nil {
		return 0, err
	}
	err = unix.IoctlIfreq(w.netlink, unix.SIOCGIFFLAGS, ifr)
	if errors.Is(err, unix.ENODEV) { // renamed just now: a message tells
		return 0, unix.EAGAIN
	}
	return ifr.Uint16(), err
}

// run ends at a call of Close, or when the interface is gone.
func (w *tapWatch) run() {
	fds := [2]unix.PollFd{{Fd: int32(w.netlink), Events: unix.POLLIN}, {Fd: int32(w.stop), Events: unix.POLLIN}} //nolint:gosec // G115: descriptors
	for w.there.Load() {
		if _, err := unix.Poll(fds[:], -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		w.drain()
		if w.look() {
			w.changes.Add(1)
			w.changed(w.state())
		}
	}
}

// drain takes all messages. One that was lost (ENOBUFS) is as good as one that came.
func (w *tapWatch) drain() {
	var buf [8192]byte
	for {
		_, err := unix.Read(w.netlink, buf[:])
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
			return
		}
	}
}

// Close ends the watch; changed is not called any more. changed must not call it.
func (w *tapWatch) Close() error {
	err := eventfd.Signal(w.stop)
	w.ended.Wait()
	return errors.Join(err, w.close())
}

func (w *tapWatch) close() error {
	err := os.NewSyscallError("close", unix.Close(w.netlink))
	if w.stop >= 0 {
		err = errors.Join(err, os.NewSyscallError("close", unix.Close(w.stop)))
	}
	return err
}
