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
	Used       uint64 // bytes of chunks
	Bad        int    // chunks known to be damaged
	Foreign    int    // files in the directory that are no chunks
	Writers    int    // chunks being written
	Open       int    // chunk files kept open for reading
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
	used := d.used
	for _, w := range d.writers {
		used += w.Length()
	}
	return Stats{
		UUID: d.uuid, Path: d.path, Capacity: space.Capacity, Free: free, Filesystem: space.Filesystem, Chunks: len(d.chunks), Used: used, Bad: d.bad, Foreign: d.foreign,
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

// markBad notes that a file of a chunk is damaged. Nothing more is appended to it: the writer has to go on elsewhere.
func (d *Disk) markBad(id chunk.ID, of uint32, cause error) {
	d.mu.Lock()
	s, ok := d.chunks[id]
	first := ok && !s.bad && s.file == of
	var w *Writer
	if first {
		s.bad = true
		d.setState(id, s)
		d.bad++
		w = d.writers[id]
	}
	d.mu.Unlock()
	if w != nil {
		w.stop(fmt.Errorf("no more is appended: %w", cause))
	}
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
	d.readFailed(id, err)
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

// maxReadErrors is how many reads a disk may fail, of different chunks, before it counts as failed: a sector that cannot be read is not
// yet a disk that cannot be written.
const maxReadErrors = 3

// readFailed notes that a read failed with an error of the device. Each chunk is counted once: it is bad then.
func (d *Disk) readFailed(id chunk.ID, err error) {
	if deviceError(err) && !d.isBad(id) && d.readErrors.Add(1) >= maxReadErrors {
		d.ioFailed(err)
	}
}

func (d *Disk) isBad(id chunk.ID) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.chunks[id].bad
}

// ioFailed takes the disk out of use for new chunks if the error is one of the device.
func (d *Disk) ioFailed(err error) {
	if !deviceError(err) {
		return
	}
	if d.failure.CompareAndSwap(nil, &err) {
		d.log.Error("the disk fails; no more is written to it, and what it holds is made anew elsewhere", "err", err)
		d.opts.OnFail(err)
	}
}

func deviceError(err error) bool {
	return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.ENXIO) || errors.Is(err, syscall.ENODEV) ||
		errors.Is(err, errCorrupted)
}

// errCorrupted is EUCLEAN, how Linux file systems report that they are damaged themselves.
const errCorrupted = syscall.Errno(117)

func (d *Disk) syncFile(f File) error {
	start := time.Now()
	err := f.Sync()
	d.opts.OnSync(time.Since(start), err)
	return err
}
