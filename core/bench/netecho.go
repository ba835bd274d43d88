package bench

import "time"

// echo sends Depth frames and each time that one comes back another one.
func (p *netPair) echo() error {
	unlock, err := p.lock()
	defer unlock()
	if err != nil {
		return err
	}
	p.tx.DisableCalls()
	for arrived := time.Now(); !p.run.stopTx.Load(); {
		p.sendClock.follow(p.run.phase.Load())
		now := time.Now()
		p.reapSent()
		added := p.answer()
		for ; p.out < p.run.l.Depth; added++ {
			p.started[p.seq%echoWindow] = now
			if !p.put() {
				break
			}
			p.out++
		}
		if added > 0 {
			if err := p.kick(p.tx); err != nil {
				return err
			}
		}
		n, err := p.take(time.Now())
		switch {
		case err != nil:
			return err
		case n > 0:
			arrived = time.Now()
		case now.Sub(arrived) > time.Second: // they are lost
			p.oldest, p.out, arrived = p.seq, 0, now
		case !p.run.l.Poll && p.out > 0:
			if err := p.sleep(p.rx, 1); err != nil {
				return err
			}
		}
	}
	return p.finishEcho()
}

// finishEcho takes what still comes back, until that is everything or nothing has come for a while.
func (p *netPair) finishEcho() error {
	for last := time.Now(); p.out > 0 && time.Since(last) < p.run.l.Settle; {
		n, err := p.take(time.Now())
		if err != nil {
			return err
		}
		if n > 0 {
			last = time.Now()
		} else {
			time.Sleep(100 * time.Microsecond)
		}
	}
	return p.finish()
}
