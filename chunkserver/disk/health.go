package disk

import (
	"errors"
	"fmt"
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
	// How long reads, and appends and syncs, took lately in the mean; 0 where there were none. While one is stuck for longer
	// than that, how long it has been.
	ReadTime, WriteTime time.Duration
}

// Stats returns the present state.
func (d *Disk) Stats() Stats {
	d.mu.RLock()
	defer d.mu.RUnlock()
	space, free := d.space.get()
	return Stats{
		UUID: d.uuid, Path: d.path, Capacity: space.Capacity, Free: free, Filesystem: space.Filesystem, Chunks: len(d.chunks), Bad: d.bad, Foreign: d.foreign,
		Writers: len(d.writers), Open: d.cache.len(), Err: d.Err(),
		ReadTime: d.timings.mean(reading), WriteTime: d.timings.mean(writing),
	}
}

// Space is how many bytes appends may still take.
func (d *Disk) Space() uint64 {
	_, free := d.space.get()
	return free
}

// Stalled says that something that was asked of the disk has had no answer for long.
func (d *Disk) Stalled() bool { return d.timings.oldest() > stalled }

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
