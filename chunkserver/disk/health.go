package disk

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// Stats describes a Disk.
type Stats struct {
	UUID     [16]byte
	Path     string
	Capacity uint64 // bytes
	Free     uint64 // bytes that appends may still take, the reserve taken off
	// Filesystem names the file system that the directory lies on, see Space.
	Filesystem string
	Chunks     int
	Bad        int // chunks known to be damaged
	Foreign    int // files in the directory that are no chunks
	Writers    int // chunks being written
	Open       int // chunk files kept open for reading
	Err        error
}

// Stats returns the present state.
func (d *Disk) Stats() Stats {
	d.mu.RLock()
	defer d.mu.RUnlock()
	space, free := d.space.get()
	return Stats{
		UUID: d.uuid, Path: d.path, Capacity: space.Capacity, Free: free, Filesystem: space.Filesystem, Chunks: len(d.chunks), Bad: d.bad, Foreign: d.foreign,
		Writers: len(d.writers), Open: d.cache.len(), Err: d.Err(),
	}
}

// Space is how many bytes appends may still take.
func (d *Disk) Space() uint64 {
	_, free := d.space.get()
	return free
}

// Err is what made the disk unusable for new chunks, nil while it works. What it still holds can be read.
func (d *Disk) Err() error {
	if p := d.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// markBad notes that a file of a chunk is damaged.
func (d *Disk) markBad(id chunk.ID, of uint32, cause error) {
	d.mu.Lock()
	s, ok := d.chunks[id]
	first := ok && !s.bad && s.file == of
	if first {
		s.bad = true
		d.chunks[id] = s
		d.bad++
	}
	d.mu.Unlock()
	if first {
		d.log.Error("a chunk is damaged here; it is kept, but has to be copied from another server", "chunk", id, "err", cause)
		d.opts.OnBad(id, cause)
	}
}

// damaged notes what a failed read of a file says about chunk and disk. The result is an ErrCorrupt, this copy is of no use,
// unless it is the process that lacks something: that says nothing about the copy.
func (d *Disk) damaged(id chunk.ID, of uint32, err error) error {
	if lacking(err) {
		return fmt.Errorf("chunk %v: %w", id, err)
	}
	d.ioFailed(err)
	if !errors.Is(err, ErrCorrupt) {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	err = fmt.Errorf("chunk %v: %w", id, err)
	d.markBad(id, of, err)
	return err
}

// lacking tells whether an operation failed for want of descriptors or memory, and would succeed another time.
func lacking(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM)
}

// ioFailed takes the disk out of use for new chunks if the error is one of the device.
func (d *Disk) ioFailed(err error) {
	if !errors.Is(err, syscall.EIO) && !errors.Is(err, syscall.EROFS) && !errors.Is(err, syscall.ENXIO) && !errors.Is(err, syscall.ENODEV) &&
		!errors.Is(err, errCorrupted) {
		return
	}
	if d.failure.CompareAndSwap(nil, &err) {
		d.log.Error("the disk fails; no more is written to it", "err", err)
	}
}

// errCorrupted is EUCLEAN, how Linux file systems report that they are damaged themselves.
const errCorrupted = syscall.Errno(117)

func (d *Disk) syncFile(f File) error {
	start := time.Now()
	err := f.Sync()
	d.opts.OnSync(time.Since(start), err)
	return err
}

// budget is the free space of the disk: asked of the file system now and then, counted down in between.
type budget struct {
	mu      sync.Mutex
	space   Space
	reserve uint64
	asked   time.Time
	spent   uint64 // since then
}

const (
	spaceAge   = 500 * time.Millisecond
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

// refreshSpace asks the file system.
func (d *Disk) refreshSpace() error {
	b := &d.space
	b.mu.Lock()
	defer b.mu.Unlock()
	return d.askSpace()
}

// askSpace is refreshSpace with the lock held.
func (d *Disk) askSpace() error {
	b := &d.space
	s, err := d.fs.Space(d.path)
	if err != nil {
		d.ioFailed(err)
		return err
	}
	b.space, b.asked, b.spent = s, d.opts.Now(), 0
	b.reserve = d.opts.Reserve
	if b.reserve == 0 {
		b.reserve = min(1<<30, s.Capacity/100)
	}
	return nil
}

// RefreshSpace asks the file system for its free space if the last answer is old.
func (d *Disk) RefreshSpace() {
	b := &d.space
	b.mu.Lock()
	defer b.mu.Unlock()
	if d.opts.Now().Sub(b.asked) >= spaceAge {
		_ = d.askSpace() // noted as a failure of the disk if it is one
	}
}

// admit says whether size more bytes may be written.
func (d *Disk) admit(size uint64) error {
	b := &d.space
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.spent > spaceSpent || b.free() < size || d.opts.Now().Sub(b.asked) >= spaceAge {
		if err := d.askSpace(); err != nil {
			return fmt.Errorf("%w: %w", ErrFailed, err)
		}
	}
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
