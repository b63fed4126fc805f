package disk

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// What calls fail with, beside errors of the operating system.
var (
	ErrNotFound = errors.New("no such chunk here")
	ErrExists   = errors.New("the chunk exists already")
	ErrInvalid  = errors.New("invalid request")
	ErrTooLarge = errors.New("too large")
	ErrRange    = errors.New("beyond what is held of the chunk")
	ErrCorrupt  = errors.New("the stored copy is damaged")
	ErrFull     = errors.New("the disk is full")
	ErrFailed   = errors.New("the disk failed")
	ErrSealed   = errors.New("the chunk takes no more appends")
	ErrWriting  = errors.New("the chunk is being written")
	ErrClosed   = errors.New("the data directory is closed")

	// Of Open alone.
	ErrLocked  = errors.New("another process uses the data directory")
	ErrNewer   = errors.New("written by a newer version")
	ErrForeign = errors.New("no data directory of a chunk server")
	// ErrCluster is of SetIdentity too.
	ErrCluster = errors.New("the data directory belongs to another cluster or server")
)

// Options of a Disk; the zero value of each field is a sensible default.
type Options struct {
	Reserve     uint64 // bytes kept free: appends get ErrFull before less is left. 0: 1 GiB or 1% of the disk, whichever is less
	MaxOpen     int    // chunk files kept open for reading; 0: 512
	IndexMemory int64  // bytes of indexes kept for these; 0: 64 MiB
	Writeback   int64  // bytes after which early writeback is started; 0: 8 MiB, negative: never
	FS          FS     // nil: OS
	Logger      *slog.Logger
	Now         func() time.Time
	// OnBad is told of each chunk found bad, once, from any goroutine.
	OnBad func(chunk.ID, error)
	// OnFail is told once, from any goroutine, when the disk fails as a whole: see Err and List.
	OnFail func(error)
	// OnSync is told how long each fsync of a chunk file took, and what came of it.
	OnSync func(time.Duration, error)
}

func (o *Options) defaults() {
	if o.MaxOpen == 0 {
		o.MaxOpen = 512
	}
	if o.IndexMemory == 0 {
		o.IndexMemory = 64 << 20
	}
	if o.Writeback == 0 {
		o.Writeback = 8 << 20
	}
	if o.FS == nil {
		o.FS = OS
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.OnBad == nil {
		o.OnBad = func(chunk.ID, error) {}
	}
	if o.OnFail == nil {
		o.OnFail = func(error) {}
	}
	if o.OnSync == nil {
		o.OnSync = func(time.Duration, error) {}
	}
}

// Disk is an open data directory. All methods may be called at once from several goroutines.
type Disk struct {
	path       string
	uuid       [16]byte
	opts       Options
	fs         FS // of what clients wait for
	background FS // of everything else: it counts less when the disk is measured
	log        *slog.Logger
	lock       *os.File

	identity   atomic.Pointer[Identity]
	cache      *cache
	space      budget
	timings    timings
	failure    atomic.Pointer[error]
	readErrors atomic.Int32

	flushes chan flush // unbuffered: taken when the flusher is idle
	quit    chan struct{}
	tasks   sync.WaitGroup // that run until quit is closed

	mu       sync.RWMutex // never held while the disk is asked for anything: it may take for ever
	chunks   map[chunk.ID]state
	writers  map[chunk.ID]*Writer
	copies   map[chunk.ID]*Copy
	replaced uint32 // how often a Copy was put in place
	closed   bool
	bad      int
	used     uint64 // bytes of chunks, those that are being written left out
	foreign  int
}

// state is what is known of a chunk without opening it.
type state struct {
	length uint32 // bytes; while it is written, its Writer knows
	// file tells the files apart that the chunk has had one after the other under its name: what is found out about an old one
	// says nothing about the new one. 0 until a Copy was put in place.
	file  uint32
	bad   bool
	loose bool // it could not be sealed: no index is to be expected at the end of the file
}

// Open takes a data directory into use, making it if it is not there. It reads the end of every chunk file, and all of those
// that were being written when the server stopped without warning. Damaged and foreign files are logged and left alone.
func Open(dir string, opts Options) (*Disk, error) {
	opts.defaults()
	lock, id, uuid, err := prepare(dir)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", dir, err)
	}
	d := &Disk{
		path: dir, uuid: uuid, opts: opts, log: opts.Logger.With("disk", dir), lock: lock,
		cache:  newCache(opts.MaxOpen, opts.IndexMemory),
		chunks: map[chunk.ID]state{}, writers: map[chunk.ID]*Writer{}, copies: map[chunk.ID]*Copy{},
		flushes: make(chan flush), quit: make(chan struct{}),
	}
	d.identity.Store(&id)
	d.timings.now = opts.Now
	d.fs, d.background = timedFS{opts.FS, &d.timings, true}, timedFS{opts.FS, &d.timings, false}
	err = d.askSpace()
	if err == nil {
		err = d.scan()
	}
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("data directory %s: %w", dir, err)
	}
	d.tasks.Go(d.runFlusher)
	d.tasks.Go(d.runSpace)
	return d, nil
}

// Close finishes what is still being written and gives the directory up. Nothing may be appending any more.
func (d *Disk) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	writers := make([]*Writer, 0, len(d.writers))
	for _, w := range d.writers {
		writers = append(writers, w)
	}
	d.mu.Unlock()
	var err error
	for _, w := range writers {
		err = errors.Join(err, w.Finish())
	}
	close(d.quit)
	d.tasks.Wait()
	d.cache.clear()
	return errors.Join(err, d.lock.Close())
}

// Path is the directory.
func (d *Disk) Path() string { return d.path }

// UUID names the disk for ever.
func (d *Disk) UUID() [16]byte { return d.uuid }

// Identity says to whom the directory belongs.
func (d *Disk) Identity() Identity { return *d.identity.Load() }

// SetIdentity records, durably, to whom the directory belongs. What it says already cannot be changed.
func (d *Disk) SetIdentity(id Identity) error {
	old := d.Identity()
	if old == id {
		return nil
	}
	if !old.Cluster.IsZero() && old.Cluster != id.Cluster || old.UUID != [16]byte{} && old.UUID != id.UUID || old.Server != 0 && old.Server != id.Server {
		return fmt.Errorf("data directory %s: it is server %d (%x) of cluster %v, not server %d (%x) of cluster %v: %w",
			d.path, old.Server, old.UUID, old.Cluster, id.Server, id.UUID, id.Cluster, ErrCluster)
	}
	if err := writeIdentity(d.path, id, d.uuid); err != nil {
		return fmt.Errorf("data directory %s: write %s: %w", d.path, identityName, err)
	}
	d.identity.Store(&id)
	return nil
}

func (d *Disk) cluster() ClusterID { return d.identity.Load().Cluster }

func (d *Disk) dirOf(id chunk.ID) string {
	return filepath.Join(d.path, chunksName, fmt.Sprintf("%02x", uint8(id)))
}

func (d *Disk) pathOf(id chunk.ID) string { return filepath.Join(d.dirOf(id), id.String()+suffix) }

// suffix of the name of a chunk file.
const suffix = ".chunk"

// Create makes a new chunk, to be written by the caller alone. ErrExists where there is one of that id, whoever wrote it.
func (d *Disk) Create(id chunk.ID) (*Writer, error) {
	if d.cluster().IsZero() {
		return nil, fmt.Errorf("create chunk %v: the data directory belongs to no cluster yet: %w", id, ErrInvalid)
	}
	if err := d.Err(); err != nil {
		return nil, fmt.Errorf("create chunk %v: %w: %w", id, ErrFailed, err)
	}
	if err := d.admit(chunk.ChecksumBlock); err != nil {
		return nil, fmt.Errorf("create chunk %v: %w", id, err)
	}
	w := &Writer{d: d, id: id, stopped: make(chan struct{})}
	if err := d.claim(w); err != nil {
		return nil, fmt.Errorf("create chunk %v: %w", id, err)
	}
	if err := w.open(d.fs, d.pathOf(id)); err != nil {
		d.forget(w)
		return nil, fmt.Errorf("create chunk %v: %w", id, err)
	}
	return w, nil
}

// open makes the file that the writer appends to.
func (w *Writer) open(fs FS, path string) error {
	f, err := w.d.create(fs, path)
	if err != nil {
		return err
	}
	var salt [8]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return errors.Join(err, f.Close())
	}
	w.salt = binary.NativeEndian.Uint64(salt[:])
	w.seed = seed(w.d.cluster(), w.id, w.salt)
	w.mu.Lock()
	w.file = share(f)
	w.mu.Unlock()
	return nil
}

func (d *Disk) create(on FS, path string) (File, error) {
	f, err := on.Create(path)
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, fs.ErrExist):
		return nil, fmt.Errorf("%w: %w", ErrExists, err)
	case isFull(err):
		d.full()
		return nil, fmt.Errorf("%w: %w", ErrFull, err)
	}
	d.ioFailed(err)
	return nil, err
}

// claim takes the id for a writer that is being made.
func (d *Disk) claim(w *Writer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	if _, ok := d.chunks[w.id]; ok || d.copies[w.id] != nil {
		return ErrExists
	}
	d.setState(w.id, state{})
	d.writers[w.id] = w
	return nil
}

// forget undoes claim. It reports whether the writer was still there.
func (d *Disk) forget(w *Writer) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.writers[w.id] != w {
		return false
	}
	delete(d.writers, w.id)
	d.removeState(w.id)
	w.mu.Lock()
	w.gone = true
	w.mu.Unlock()
	return true
}

// retire makes a chunk that was written one that is only read.
func (d *Disk) retire(w *Writer, sealed bool) {
	var over []handle
	defer func() { release(over) }() // when nothing is locked any more
	d.mu.Lock()
	defer d.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	h := handle{file: w.file, ix: w.ix}
	if w.gone { // deleted meanwhile
		over = append(over, h)
		return
	}
	w.gone = true
	delete(d.writers, w.id)
	s := d.chunks[w.id]
	s.length, s.loose = uint32(w.ix.length), !sealed
	d.setState(w.id, s)
	over = d.cache.put(w.id, h)
}

// removeState drops what is known of a chunk; d.mu is held.
func (d *Disk) removeState(id chunk.ID) {
	if d.chunks[id].bad {
		d.bad--
	}
	d.used -= uint64(d.chunks[id].length)
	delete(d.chunks, id)
}

// setState notes what is known of a chunk; d.mu is held.
func (d *Disk) setState(id chunk.ID, s state) {
	d.used += uint64(s.length) - uint64(d.chunks[id].length)
	d.chunks[id] = s
}

// Has says whether there is a copy of the chunk, good or bad.
func (d *Disk) Has(id chunk.ID) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	_, ok := d.chunks[id]
	return ok
}

// Held says what the disk has of a chunk.
type Held struct {
	Length  uint64
	Bad     bool
	Writing bool // by a Writer
}

// Held returns false if there is nothing.
func (d *Disk) Held(id chunk.ID) (Held, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	s, ok := d.chunks[id]
	h := Held{Length: uint64(s.length), Bad: s.bad}
	if w := d.writers[id]; w != nil {
		h.Length, h.Writing = w.Length(), true
	}
	return h, ok
}

// Forget has the disk know nothing more of a chunk that cannot be deleted, because the disk fails. The file stays, and is
// found again when the directory is next opened.
func (d *Disk) Forget(id chunk.ID) {
	_, _, _ = d.hide(id)
	d.cache.drop(id)
}

// Report is a line of the inventory.
type Report struct {
	ID     chunk.ID
	Length uint64
	Bad    bool
}

// List returns all chunks, in no order. Those of a disk that failed are all bad: what can still be read of them is good as ever, but
// they have to be kept elsewhere from now on.
func (d *Disk) List() []Report {
	d.mu.RLock()
	defer d.mu.RUnlock()
	failed := d.Err() != nil
	all := make([]Report, 0, len(d.chunks))
	for id, s := range d.chunks {
		r := Report{ID: id, Length: uint64(s.length), Bad: s.bad || failed}
		if w := d.writers[id]; w != nil {
			r.Length = w.Length()
		}
		all = append(all, r)
	}
	return all
}
