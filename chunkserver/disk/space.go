package disk

import (
	"fmt"
	"sync"
	"time"
)

// budget is the free space of the disk: asked of the file system now and then, counted down in between.
type budget struct {
	asking sync.Mutex // held while the file system is asked, which may take for ever on a disk that hangs

	mu      sync.Mutex
	space   Space
	reserve uint64
	asked   time.Time
	answers uint64 // how often it was asked
	spent   uint64 // since then
}

const (
	spaceAge   = 500 * time.Millisecond
	spaceEvery = time.Second
	spaceSpent = 64 << 20
)

func (b *budget) get() (Space, uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.space, b.free()
}

func (b *budget) free() uint64 {
	if taken := b.spent + b.reserve; taken < b.space.Free {
		return b.space.Free - taken
	}
	return 0
}

// askSpace asks the file system. Who comes while another does so takes the other's answer.
func (d *Disk) askSpace() error {
	b := &d.space
	b.mu.Lock()
	answers := b.answers
	b.mu.Unlock()
	b.asking.Lock()
	defer b.asking.Unlock()
	b.mu.Lock()
	before, answered := b.spent, b.answers != answers
	b.mu.Unlock()
	if answered {
		return nil
	}
	s, err := d.fs.Space(d.path)
	if err != nil {
		d.ioFailed(err)
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.space, b.asked = s, d.opts.Now()
	b.answers++
	b.spent -= min(b.spent, before) // what was written meanwhile may not be in the answer
	b.reserve = d.opts.Reserve
	if b.reserve == 0 {
		b.reserve = min(1<<30, s.Capacity/100)
	}
	return nil
}

// runSpace keeps the answer fresh while nothing is written, until the disk is closed. Nobody who only wants to know how the
// disk is ever waits for it.
func (d *Disk) runSpace() {
	tick := time.NewTicker(spaceEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = d.askSpace() // noted as a failure of the disk if it is one
		case <-d.quit:
			return
		}
	}
}

// admit says whether size more bytes may be written.
func (d *Disk) admit(size uint64) error {
	b := &d.space
	b.mu.Lock()
	doubtful := b.spent > spaceSpent || b.free() < size || d.opts.Now().Sub(b.asked) >= spaceAge
	b.mu.Unlock()
	if doubtful {
		if err := d.askSpace(); err != nil {
			return fmt.Errorf("%w: %w", ErrFailed, err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.free() < size {
		return fmt.Errorf("%d bytes are free, of which %d are kept in reserve: %w", b.space.Free, b.reserve, ErrFull)
	}
	return nil
}

// written counts bytes that a file grew by.
func (d *Disk) written(n uint64) {
	d.space.mu.Lock()
	d.space.spent += n
	d.space.mu.Unlock()
}

// full notes that the file system has no room, whatever it said before.
func (d *Disk) full() {
	d.space.mu.Lock()
	d.space.spent = d.space.space.Free
	d.space.mu.Unlock()
}
