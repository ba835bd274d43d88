package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/virtplug/virtplug/core/machine/loopback"
	"github.com/virtplug/virtplug/sdk/driver"
	"github.com/virtplug/virtplug/sdk/virtio"
)

// netPairs is how many queue pairs the device has that are started.
func netPairs(m *loopback.Machine) int {
	queues := len(m.Queues())
	if m.Features().Has(virtio.FNetCtrlVQ) {
		queues--
	}
	if !m.Features().Has(virtio.FNetMQ) {
		return min(1, queues/2)
	}
	return queues / 2
}

// setNetPairs tells the device how many pairs the driver uses (5.1.6.5.5).
func setNetPairs(ctx context.Context, m *loopback.Machine, pairs int) error {
	if !m.Features().Has(virtio.FNetMQ) || pairs == 1 {
		return nil
	}
	q := m.Queues()[len(m.Queues())-1]
	command, err := m.Arena().Buffer(4)
	ack, err2 := m.Arena().Buffer(1)
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	b := m.Arena().Bytes(command)
	b[0], b[1] = virtio.NetCtrlMQ, virtio.NetCtrlMQPairsSet
	binary.LittleEndian.PutUint16(b[2:], uint16(pairs)) //nolint:gosec // G115: half the queues
	m.Arena().Bytes(ack)[0] = 0xff
	q.Add([]driver.Buffer{command}, []driver.Buffer{ack})
	if err := q.Send(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		if _, _, ok := q.Used(); ok {
			break
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return fmt.Errorf("the device did not answer on its control queue: %w", err)
		}
	}
	if got := m.Arena().Bytes(ack)[0]; got != virtio.NetCtrlOK {
		return fmt.Errorf("the device refuses %d queue pairs (answer %d)", pairs, got)
	}
	return nil
}
