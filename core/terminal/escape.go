package terminal

// escapeKey is Ctrl-A.
const escapeKey = 0x01

// helpText is what Ctrl-A h prints, a line each.
const helpText = "Ctrl-A x       quit: stop the machine\nCtrl-A Ctrl-A  send one Ctrl-A to the guest\nCtrl-A h       this help\n"

// escape filters typed bytes for the escape key.
type escape struct {
	after      bool // the last byte was the escape key
	quit, help func()
}

// filter returns what of p is for the guest, appended to dst.
func (e *escape) filter(dst, p []byte) []byte {
	for _, b := range p {
		if !e.after {
			if e.after = b == escapeKey; !e.after {
				dst = append(dst, b)
			}
			continue
		}
		e.after = false
		switch b {
		case 'x':
			e.quit()
		case 'h', '?':
			e.help()
		case escapeKey:
			dst = append(dst, escapeKey)
		default:
			dst = append(dst, escapeKey, b)
		}
	}
	return dst
}

// rest is what filter still holds at the end of input.
func (e *escape) rest() []byte {
	if e.after {
		e.after = false
		return []byte{escapeKey}
	}
	return nil
}
