package virtq

import (
	"fmt"
	"io"
)

// Reader reads a chain's device-readable bytes in order. Each byte is fetched from guest memory once.
type Reader struct {
	bufs [][]byte
	off  int // into bufs[0]
	left int
}

// Len is how many bytes are left.
func (r *Reader) Len() int { return r.left }

// Read copies the next bytes into p; io.EOF at the end.
func (r *Reader) Read(p []byte) (n int, err error) {
	if r.left == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	for len(p) > 0 && r.left > 0 {
		k := copy(p, r.bufs[0][r.off:])
		p = p[k:]
		n += k
		r.advance(k)
	}
	return n, nil
}

// ReadFull fills p or fails: io.ErrUnexpectedEOF if fewer bytes are left (they stay unread).
func (r *Reader) ReadFull(p []byte) error {
	if r.left < len(p) {
		return fmt.Errorf("read request: %d bytes wanted, %d there: %w", len(p), r.left, io.ErrUnexpectedEOF)
	}
	_, err := r.Read(p)
	return err
}

// Skip passes over n bytes, at most what is left; it returns how many.
func (r *Reader) Skip(n int) int {
	n = max(0, min(n, r.left))
	for todo := n; todo > 0; {
		k := min(todo, len(r.bufs[0])-r.off)
		r.advance(k)
		todo -= k
	}
	return n
}

// Rest appends to dst the buffers that are left, without reading them; they alias guest memory.
func (r *Reader) Rest(dst [][]byte) [][]byte {
	for i, b := range r.bufs {
		if i == 0 {
			b = b[r.off:]
		}
		if len(b) > 0 {
			dst = append(dst, b)
		}
	}
	return dst
}

// WriteTo writes what is left to w, straight from guest memory.
func (r *Reader) WriteTo(w io.Writer) (n int64, err error) {
	for r.left > 0 {
		k, err := w.Write(r.bufs[0][r.off:])
		n += int64(k)
		r.advance(k)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (r *Reader) advance(k int) {
	r.off += k
	r.left -= k
	if r.off == len(r.bufs[0]) {
		r.bufs, r.off = r.bufs[1:], 0
	}
}

// Writer fills a chain's device-writable bytes in order; what it wrote is the length that Complete reports (2.7.8).
type Writer struct {
	c    *Chain
	bufs [][]byte
	off  int
}

// Len is how many bytes of room are left.
func (w *Writer) Len() int { return int(w.c.writeLen - w.c.written) }

// Written is how many bytes were written.
func (w *Writer) Written() int { return int(w.c.written) }

// Write copies p into the chain; io.ErrShortWrite if it does not fit (what fits is written).
func (w *Writer) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		if w.Len() == 0 {
			return n, io.ErrShortWrite
		}
		k := copy(w.bufs[0][w.off:], p)
		p = p[k:]
		n += k
		w.Advance(k)
	}
	return n, nil
}

// ReadFrom reads from r straight into guest memory until the chain is full or r ends.
func (w *Writer) ReadFrom(r io.Reader) (n int64, err error) {
	for w.Len() > 0 {
		k, err := r.Read(w.bufs[0][w.off:])
		w.Advance(k)
		n += int64(k)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// Rest appends to dst the room that is left; whoever fills it calls Advance.
func (w *Writer) Rest(dst [][]byte) [][]byte {
	for i, b := range w.bufs {
		if i == 0 {
			b = b[w.off:]
		}
		if len(b) > 0 {
			dst = append(dst, b)
		}
	}
	return dst
}

// Advance counts the next n bytes of room as written, at most what is left; it returns how many.
func (w *Writer) Advance(n int) int {
	n = max(0, min(n, w.Len()))
	for todo := n; todo > 0; {
		k := min(todo, len(w.bufs[0])-w.off)
		w.off += k
		todo -= k
		w.c.written += uint32(k) //nolint:gosec // G115: at most Len
		if w.off == len(w.bufs[0]) {
			w.bufs, w.off = w.bufs[1:], 0
		}
	}
	return n
}
