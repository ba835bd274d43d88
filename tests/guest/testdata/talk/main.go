// Command talk is for guests of tests: busybox has nothing for UDP, and its nc moves a kibibyte at a time.
//
//	talk send ADDRESS          sends the bulk (numbered copies of /test/data) and prints what is answered
//	talk receive ADDRESS       prints the SHA-256 of what comes from there
//	talk listen ADDRESS        says "ready", then the same of what the first one who connects sends
//	talk echo ADDRESS          says "ready", then sends back each datagram
//	talk ask ADDRESS SIZE…     sends a datagram of each size and wants it back
package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "talk:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("want COMMAND ADDRESS…")
	}
	switch address := args[1]; args[0] {
	case "send":
		return send(address)
	case "receive":
		c, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		return sum(c)
	case "listen":
		return listen(address)
	case "echo":
		return echo(address)
	case "ask":
		return ask(address, args[2:])
	}
	return fmt.Errorf("%s: unknown", args[0])
}

// copies is how often the bulk has /test/data.
const copies = 34

func send(address string) error {
	data, err := os.ReadFile("/test/data")
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	for i := range copies {
		if _, err := fmt.Fprintln(c, i+1); err != nil {
			return err
		}
		if _, err := c.Write(data); err != nil {
			return err
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, c)
	return err
}

func listen(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	c, err := l.Accept()
	if err != nil {
		return err
	}
	return sum(c)
}

func sum(c net.Conn) error {
	h := sha256.New()
	n, err := io.CopyBuffer(h, struct{ io.Reader }{c}, make([]byte, 256<<10))
	fmt.Printf("%x %d bytes\n", h.Sum(nil), n)
	return errors.Join(err, c.Close())
}

func echo(address string) error {
	c, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	b := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(b[:n], from); err != nil {
			return err
		}
	}
}

// Datagrams may be lost: each is sent again, up to tries times, after pause. Arbitrary.
const (
	tries = 20
	pause = 3 * time.Second
)

func ask(address string, sizes []string) error {
	c, err := net.Dial("udp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	for i, s := range sizes {
		n, err := strconv.Atoi(s)
		if err != nil {
			return err
		}
		if err := askOne(c, bytes.Repeat([]byte{byte('a' + i)}, n)); err != nil {
			return fmt.Errorf("%s bytes: %w", s, err)
		}
	}
	return nil
}

func askOne(c net.Conn, want []byte) error {
	b := make([]byte, 64<<10)
	var last error
	for range tries {
		if _, err := c.Write(want); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(pause)); err != nil {
			return err
		}
		for {
			n, err := c.Read(b)
			if err != nil {
				last = err
				break
			}
			if bytes.Equal(b[:n], want) {
				return nil
			}
		}
	}
	return last
}
