package vhostuser

import (
	"bytes"
	"context"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

func dial(tb testing.TB, path string) *net.UnixConn {
	tb.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// FuzzMessage: no bytes make a decoder panic, and what it takes it makes again.
func FuzzMessage(f *testing.F) {
	f.Add(AppendMessage(nil, ReqSetMemTable, FlagVersion, EncodeMemTable(twoRegions())))
	f.Add(AppendMessage(nil, ReqSetVringAddr, FlagVersion|FlagNeedReply, addr(3).Encode()))
	f.Add(AppendMessage(nil, ReqSetVringNum, FlagVersion, VringState{1, 256}.Encode()))
	f.Add(AppendMessage(nil, ReqGetConfig, FlagVersion, ConfigAccess{Offset: 4, Data: make([]byte, 8)}.Encode()))
	f.Add(AppendMessage(nil, ReqSetFeatures, FlagVersion, EncodeU64(accepted)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderSize {
			if _, err := DecodeHeader(b); err == nil {
				t.Error("a short header was taken")
			}
			return
		}
		h, err := DecodeHeader(b[:HeaderSize])
		if err != nil {
			return
		}
		p := b[HeaderSize:]
		if back := AppendMessage(nil, h.Request, h.Flags, p); uint64(h.Size) == uint64(len(p)) && !bytes.Equal(back, b) {
			t.Errorf("message %x became %x", b, back)
		}
		same := func(what string, got []byte, err error) {
			if err == nil && !bytes.HasPrefix(p, got) {
				t.Errorf("%s %x became %x", what, p, got)
			}
		}
		v, err := DecodeU64(p)
		same("u64", EncodeU64(v), err)
		s, err := DecodeVringState(p)
		same("state", s.Encode(), err)
		a, err := DecodeVringAddr(p)
		same("address", a.Encode(), err)
		c, err := DecodeConfig(p)
		same("config", c.Encode(), err)
		if r, err := DecodeMemTable(p); err == nil && !bytes.Equal(EncodeMemTable(r)[memHeaderSize:], p[memHeaderSize:memHeaderSize+len(r)*memRegionSize]) {
			t.Errorf("table %x became %+v", p, r)
		}
	})
}

// FuzzSession: no sequence of messages, with any descriptors, makes a session panic, hang, or leave the device in use.
// A message is: u8 request, u8 flags (bits 0-3 header flags, 4-5 how many descriptors, 6 which kind), u8 length, payload.
func FuzzSession(f *testing.F) {
	msg := func(r Request, how byte, p []byte) []byte { return append([]byte{byte(r), how, byte(len(p))}, p...) } //nolint:gosec // short
	setup := bytes.Join([][]byte{
		msg(ReqSetProtocolFeatures, 1, EncodeU64(0x229)), msg(ReqSetFeatures, 9, EncodeU64(accepted)),
		msg(ReqSetMemTable, 9|2<<4, EncodeMemTable(twoRegions())), msg(ReqSetVringNum, 9, VringState{0, 256}.Encode()),
		msg(ReqSetVringBase, 9, VringState{0, 0}.Encode()), msg(ReqSetVringAddr, 9, addr(0).Encode()),
		msg(ReqSetVringCall, 9|1<<4|1<<6, EncodeU64(0)), msg(ReqSetVringKick, 9|1<<4|1<<6, EncodeU64(0)),
		msg(ReqSetVringEnable, 9, VringState{0, 1}.Encode()),
	}, nil)
	f.Add(setup)
	f.Add(append(bytes.Clone(setup), msg(ReqGetVringBase, 1, VringState{0, 0}.Encode())...))
	f.Add(append(bytes.Clone(setup), setup...))
	f.Add(append(bytes.Clone(setup), msg(ReqGetConfig, 1, ConfigAccess{Data: make([]byte, 60)}.Encode())...))
	f.Add(append(bytes.Clone(setup), msg(ReqResetOwner, 9, nil)...))
	f.Add(msg(ReqSetBackendReqFD, 9|1<<4, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := newFake(256, 64)
		a, sock := pair(t)
		done := make(chan error, 1)
		go func() { done <- Serve(context.Background(), sock, d, Options{}) }()
		files := [2]int{memfd(t, 2*mib), eventfd(t)}
		go func() { // a front-end that never reads would stop the session, rightly
			buf := make([]byte, 4096)
			for {
				if _, err := a.Read(buf); err != nil {
					return
				}
			}
		}()
		for len(b) >= 3 {
			n := min(int(b[2]), len(b)-3)
			var oob []byte
			if k := int(b[1] >> 4 & 3); k > 0 {
				fd := files[b[1]>>6&1]
				oob = unix.UnixRights([]int{fd, fd, fd}[:k]...)
			}
			raw := AppendMessage(nil, Request(b[0]), uint32(b[1]&15), b[3:3+n])
			if _, _, err := a.WriteMsgUnix(raw, oob, nil); err != nil {
				break // refused already
			}
			b = b[3+n:]
		}
		_ = a.CloseWrite()
		if err := <-done; err != nil && err.Error() == "" { // any answer is right, but there must be one
			t.Error("an error without a text")
		}
		_ = a.Close()
		calls := d.took()
		if len(calls) == 0 || calls[len(calls)-1] != "release" {
			t.Errorf("device not released: %q", calls)
		}
	})
}
