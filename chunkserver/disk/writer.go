package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"syscall"

	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// Writer appends to one chunk. Append, Sync and Finish are for one goroutine at a time; reads of the chunk, and Delete, go
// on beside them.
type Writer struct {
	d    *Disk
	id   chunk.ID
	file *shared
	salt uint64
	seed uint32

	// of the appending goroutine
	pos     int64         // where the next record goes in the file
	flushed int64         // writeback was started up to here
	zeroed  int64         // the file reaches to here, with zeros beyond pos; 0 while nothing was written ahead
	small   int           // syncs in a row that had little to make durable
	named   bool          // the file's name is on disk
	done    bool          // Finish was called
	aside   bool          // it is a Copy's: the chunk of that id, if there is one, is another file
	stopped chan struct{} // closed when no more can be appended, for another reason than Finish
	head    []byte
	bufs    [][]byte

	mu      sync.Mutex
	ix      index
	durable uint64
	err     error // why no more can be appended
	gone    bool  // the disk knows the writer no more: deleted or finished
}

// Disk is where the chunk is.
func (w *Writer) Disk() *Disk { return w.d }

// Length is how many bytes the chunk holds: they survive the end of the process.
func (w *Writer) Length() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ix.length
}

// Durable is how many bytes of the chunk survive a loss of power.
func (w *Writer) Durable() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.durable
}

// Append writes a frame to the end of the chunk; offset is the length so far, as the sender believes it. The checksums
// must be those of the payload, one for each 64 KiB: the caller has checked them. The payload is not kept.
//
// ErrInvalid, ErrTooLarge and ErrFull leave the chunk as it was; after any other error it takes no more.
func (w *Writer) Append(offset uint64, sums []uint32, payload mem.BufferSlice) error {
	n := payload.Len()
	if err := w.admit(offset, n, len(sums)); err != nil {
		return err
	}
	size := int64(recordSize + 4*len(sums) + n)
	if err := w.d.admit(uint64(size)); err != nil {
		return fmt.Errorf("append to chunk %v: %w", w.id, err)
	}
	w.head = w.head[:0]
	at := w.pos
	if at == 0 {
		h := header{cluster: w.d.cluster(), id: w.id, salt: w.salt, created: w.d.opts.Now().UnixNano()}
		w.head = h.append(w.head)
	}
	r := record{kind: kindFrame, offset: offset, durable: w.Durable(), length: uint32(n), sums: uint32(len(sums))}
	w.head = r.append(w.head, w.seed, sums)
	w.bufs = append(w.bufs[:0], w.head)
	for _, b := range payload {
		w.bufs = append(w.bufs, b.ReadOnlyData())
	}
	end := at + int64(len(w.head)) + int64(n)
	zeroed := w.zeroAhead(end)
	err := w.file.WriteBuffers(w.bufs, at)
	clear(w.bufs) // the payload's buffers go back to their pool
	if err != nil {
		return w.writeFailed(err, at)
	}
	w.pos, w.zeroed = end, zeroed
	w.mu.Lock()
	w.ix.add(offset, n, w.pos-int64(n), sums)
	w.mu.Unlock()
	w.d.written(uint64(w.pos - at))
	w.writeback()
	return nil
}

// A sync of a file that grew makes the file system write its journal, which takes longer than the data of a small append.
// So once a chunk was synced smallSyncs times in a row with at most smallSync bytes each, it grows by aheadSize at a time.
// What is beyond the last record reads as no record, after a crash too; sealing cuts it off.
const (
	smallSyncs = 4
	smallSync  = 64 << 10
	aheadSize  = 256 << 10
)

var zeros [aheadSize]byte

// zeroAhead adds zeros to what is about to be written up to end, if they are wanted, and returns up to where the file
// then reaches.
func (w *Writer) zeroAhead(end int64) int64 {
	if end <= w.zeroed || w.small < smallSyncs {
		return w.zeroed
	}
	w.bufs = append(w.bufs, zeros[:])
	return end + aheadSize
}

// admit says whether a frame may be appended.
func (w *Writer) admit(offset uint64, n, sums int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.err != nil:
		return w.err
	case offset != w.ix.length:
		return fmt.Errorf("chunk %v: append at %d, its length is %d: %w", w.id, offset, w.ix.length, ErrInvalid)
	case n < 1 || n > chunk.MaxFrame:
		return fmt.Errorf("chunk %v: a frame of %d bytes: %w", w.id, n, ErrTooLarge)
	case sums != chunk.Blocks(n):
		return fmt.Errorf("chunk %v: %d checksums for %d bytes: %w", w.id, sums, n, ErrInvalid)
	case w.ix.length+uint64(n) > chunk.MaxLength:
		return fmt.Errorf("chunk %v: %d bytes at %d go beyond %d: %w", w.id, n, offset, uint64(chunk.MaxLength), ErrTooLarge)
	case len(w.ix.frames) >= chunk.MaxFrames:
		return fmt.Errorf("chunk %v: has %d frames already: %w", w.id, len(w.ix.frames), ErrTooLarge)
	}
	return nil
}

// writeFailed settles what a failed write at a position left behind. A full disk is no damage: what was written before is
// whole, and the torn record is cut off. Every other error closes the chunk for good.
func (w *Writer) writeFailed(err error, at int64) error {
	if !isFull(err) {
		return w.fail(err)
	}
	w.d.full()
	w.zeroed, w.small = 0, 0
	if cut := w.file.Truncate(at); cut != nil {
		w.stop(fmt.Errorf("chunk %v: %w", w.id, ErrFull)) // what is beyond its end is ignored, but nothing can follow it
		w.d.log.Warn("a record that did not fit on the disk could not be cut off", "chunk", w.id, "err", cut)
	}
	return fmt.Errorf("append to chunk %v: %w: %w", w.id, ErrFull, err)
}

func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// writeback has the kernel write early what it would else keep until Sync has to wait for all of it. Starting that can block
// while the disk's queue is full, which is no reason for appends to wait: while the disk's flusher is busy, it is put off.
func (w *Writer) writeback() {
	step := w.d.opts.Writeback
	if step <= 0 || w.pos-w.flushed < step {
		return
	}
	select {
	case w.d.flushes <- flush{w.file.ref(), w.flushed, w.pos - w.flushed}:
		w.flushed = w.pos
	default:
		_ = w.file.unref() // not the last reference: the writer has one
	}
}

// flush is a range of a file to be written early.
type flush struct {
	file   *shared
	off, n int64
}

// runFlusher starts early writeback until the disk is closed.
func (d *Disk) runFlusher() {
	for {
		select {
		case f := <-d.flushes:
			_ = f.file.StartWriteback(f.off, f.n) // only advice: an error of the disk shows at the next Sync
			_ = f.file.unref()
		case <-d.quit:
			return
		}
	}
}

// Sync makes all that was appended durable: contents, checksums and the file's name. An error closes the chunk for good:
// nobody knows what the kernel threw away.
func (w *Writer) Sync() error {
	w.mu.Lock()
	length, durable, err := w.ix.length, w.durable, w.err
	w.mu.Unlock()
	if err != nil || length == durable {
		return err
	}
	if err := w.toDisk(); err != nil {
		return w.fail(err)
	}
	if w.small++; length-durable > smallSync {
		w.small = 0
	}
	w.flushed = w.pos
	w.mu.Lock()
	w.durable = length
	w.mu.Unlock()
	return nil
}

// toDisk makes contents and name durable.
func (w *Writer) toDisk() error {
	if err := w.d.syncFile(w.file); err != nil || w.named {
		return err
	}
	err := w.d.fs.SyncDir(w.d.dirOf(w.id))
	w.named = err == nil
	return err
}

// fail closes the chunk for good and reports it.
func (w *Writer) fail(cause error) error {
	err := fmt.Errorf("chunk %v: %w: %w", w.id, ErrFailed, cause)
	if w.stop(err) {
		if !w.aside {
			w.d.markBad(w.id, 0, err)
		}
		w.d.ioFailed(cause)
	}
	return err
}

// stop makes every later append return err. It reports whether this was the first reason to stop.
func (w *Writer) stop(err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return false
	}
	w.err = err
	close(w.stopped)
	return true
}

// Stopped is closed when the chunk takes no more appends, though Finish was not called: something failed, the chunk was found
// damaged, or it was deleted.
func (w *Writer) Stopped() <-chan struct{} { return w.stopped }

// Err is why no more can be appended, nil while it can.
func (w *Writer) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Finish ends the appends: it makes the chunk durable and seals it with its index, so that it opens at once from now on. It
// must be called, whatever happened before, and may be called again. A chunk that nothing was ever appended to is removed.
func (w *Writer) Finish() error {
	if w.done {
		return nil
	}
	w.done = true
	w.mu.Lock()
	failed, empty, gone := w.err, w.ix.length == 0, w.gone
	if failed == nil {
		w.err = fmt.Errorf("chunk %v: %w", w.id, ErrSealed)
	}
	w.mu.Unlock()
	switch {
	case gone:
		return w.file.unref()
	case empty:
		return w.discard()
	case failed == nil:
		failed = w.settle()
	}
	w.d.retire(w, failed == nil)
	return failed
}

// settle makes the chunk durable, its name too, and then writes its index.
func (w *Writer) settle() error {
	if w.durable < w.ix.length { // only this goroutine changes them
		if err := w.toDisk(); err != nil {
			err = fmt.Errorf("chunk %v: %w: %w", w.id, ErrFailed, err)
			w.d.markBad(w.id, 0, err)
			w.d.ioFailed(err)
			return err
		}
	}
	return w.seal()
}

// seal writes the index. It need not be on disk: without it the records are found one by one.
func (w *Writer) seal() error {
	if w.zeroed > w.pos { // the index is found from the end of the file
		if err := w.file.Truncate(w.pos); err != nil {
			return fmt.Errorf("cut off what was written ahead of chunk %v: %w", w.id, err)
		}
	}
	b := appendSeal(nil, w.d.cluster(), w.id, w.salt, &w.ix, w.pos)
	if err := w.file.WriteBuffers([][]byte{b}, w.pos); err != nil {
		if isFull(err) {
			err = errors.Join(err, w.file.Truncate(w.pos))
		}
		return fmt.Errorf("write the index of chunk %v: %w", w.id, err)
	}
	w.d.written(uint64(len(b)))
	return nil
}

// appendSeal appends index record and trailer, to be written at position pos of the file.
func appendSeal(b []byte, cluster ClusterID, id chunk.ID, salt uint64, ix *index, pos int64) []byte {
	payload := encodeIndex(nil, ix)
	sums := chunk.Checksums(nil, payload)
	r := record{kind: kindIndex, offset: ix.length, durable: ix.length, length: uint32(len(payload)), sums: uint32(len(sums))}
	start := len(b)
	b = r.append(b, seed(cluster, id, salt), sums)
	b = append(b, payload...)
	t := trailer{salt: salt, index: uint64(pos), length: ix.length, size: uint32(len(b) - start)}
	return t.append(b, identity(cluster, id))
}

// discard removes the file of a chunk that holds nothing.
func (w *Writer) discard() error {
	if !w.d.forget(w) {
		return w.file.unref() // deleted meanwhile
	}
	err := w.d.fs.Remove(w.d.pathOf(w.id))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, w.file.unref())
}

// snapshot returns a handle for reading what is there now; false before there is a file.
func (w *Writer) snapshot() (handle, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return handle{}, false
	}
	return handle{file: w.file.ref(), ix: w.ix}, true
}

// progress is how far a writer was at some moment.
type progress struct {
	ix      index
	durable uint64
	salt    uint64
	seed    uint32
}

// progress returns false before there is a file.
func (w *Writer) progress() (progress, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return progress{}, false
	}
	return progress{ix: w.ix, durable: w.durable, salt: w.salt, seed: w.seed}, true
}

// end is where in the file the last record ends.
func (p *progress) end() int64 { return p.ix.endOf(len(p.ix.frames)) }

// onDisk is where in the file those records end that are on disk for certain.
func (p *progress) onDisk() int64 { return p.ix.endOf(p.ix.find(p.durable)) }
