package main

// emergencyWrite puts out one byte without a queue (5.3.4, emerg_wr). It never waits: what the back-end does not take in
// time is dropped and counted.
func (p *port) emergencyWrite(b byte) {
	p.emergOnce.Do(func() {
		p.workers.Go(p.emergencyLoop)
	})
	select {
	case p.emergency <- b:
	default:
		p.emergDropped.Add(1)
	}
}

func (p *port) emergencyLoop() {
	for {
		var b []byte
		select {
		case c := <-p.emergency:
			b = append(b, c)
		case <-p.quit.Done():
			return
		}
		for more := true; more; {
			select {
			case c := <-p.emergency:
				b = append(b, c)
			default:
				more = false
			}
		}
		n, err := p.write(p.quit, b)
		p.out.Add(uint64(n)) //nolint:gosec // G115: a length
		if err != nil {
			p.emergDropped.Add(uint64(len(b) - n)) //nolint:gosec // G115: a length
		}
	}
}
