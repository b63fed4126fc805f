package kv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Options of Open. The zero value of each but Buckets stands for its default.
type Options struct {
	Buckets       []string      // names, by Bucket; only ever appended to between versions
	FlushInterval time.Duration // how long a write stays in memory only; 200 ms
	MaxBuffered   int           // keys in memory, of both generations; 64K. A flush begins at half of it.
	MaxBytes      int64         // likewise, in bytes; 128 MiB
	Logger        *slog.Logger

	mapSize int // address space mapped at first
}

func (o Options) withDefaults() Options {
	if o.FlushInterval <= 0 {
		o.FlushInterval = 200 * time.Millisecond
	}
	if o.MaxBuffered <= 0 {
		o.MaxBuffered = 64 << 10
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 128 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.mapSize <= 0 {
		o.mapSize = mapSize
	}
	return o
}

var (
	// ErrFailed is what every Update returns after a flush failed. Nothing of what was applied is lost to readers, but
	// nothing more is accepted: the database is opened again after what made it fail was put right.
	ErrFailed = errors.New("kv: the database failed")
	// ErrClosed is what a closed database returns.
	ErrClosed = errors.New("kv: the database is closed")
)

// DB is a database. Its methods may be called by many goroutines.
type DB struct {
	path string
	opts Options

	// Locks, in the order in which they are taken.
	updating sync.Mutex   // one Update, or one change of the file as a whole, at a time
	flushMu  sync.Mutex   // one flush at a time; it owns the file's write transactions
	files    sync.RWMutex // held for reading while the file is copied, for writing while another takes its place
	// reopening counts who waits to lock files for writing.
	reopening atomic.Int32
	mu        sync.RWMutex // held for reading by every reader of view, for writing to change what is in it
	view      *view
	unusable  error // why view must not be used: closed, or the file could not be opened again
	room      *sync.Cond

	txn txn // of the Update under way

	applied  atomic.Uint64
	durable  atomic.Uint64
	buffered atomic.Int64 // keys in both generations
	bytes    atomic.Int64

	failOnce sync.Once
	failed   chan struct{} // closed after failure was set
	failure  error

	kick chan struct{} // the buffer is half full
	stop chan struct{}
	done chan struct{} // the flusher ended

	mapped int  // address space, bytes; owned by flushMu
	stuck  bool // bbolt panicked while it held its locks: closing the file would wait for ever; owned by flushMu
	stats  counters
}

// Open opens the database at path, making it if there is none. It fails when another process has it open, when it is
// damaged as far as that can be seen without reading all of it, and when it was written by a newer version.
func Open(path string, o Options) (*DB, error) {
	o = o.withDefaults()
	if err := os.Remove(path + newSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("kv: remove what a crash left: %w", err)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := createFile(path, o.Buckets); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, fmt.Errorf("kv: %w", err)
	default:
		o.mapSize = max(o.mapSize, int(4*info.Size()))
	}
	db := &DB{path: path, opts: o, mapped: o.mapSize, failed: make(chan struct{}), kick: make(chan struct{}, 1),
		stop: make(chan struct{}), done: make(chan struct{})}
	db.room = sync.NewCond(&db.mu)
	v, applied, err := db.load()
	if err != nil {
		return nil, err
	}
	db.view = v
	db.applied.Store(applied)
	db.durable.Store(applied)
	go db.run()
	return db, nil
}

// load opens the file and checks it.
func (db *DB) load() (*view, uint64, error) {
	file, mapped, err := openFile(db.path, db.mapped)
	if err != nil {
		return nil, 0, err
	}
	db.mapped = mapped
	applied, err := adopt(file, db.opts.Buckets)
	if err == nil {
		var v *view
		if v, err = newView(file, db.opts.Buckets, newGeneration(len(db.opts.Buckets))); err == nil {
			return v, applied, nil
		}
	}
	return nil, 0, errors.Join(err, file.Close())
}

// View calls fn with a consistent state that contains every Update that returned before. Views run beside each other, but
// hold up Updates: fn must not block, and must not call View or Update.
func (db *DB) View(fn func(Reader) error) error {
	return db.ViewContext(context.Background(), fn)
}

// ViewContext is View, but the wait for a writer, who may wait for the disk, ends with ctx.
func (db *DB) ViewContext(ctx context.Context, fn func(Reader) error) (err error) {
	if err := db.rlock(ctx); err != nil {
		return err
	}
	defer db.mu.RUnlock()
	if db.unusable != nil {
		return db.unusable
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // the file may shrink under the mapping
	defer db.catch(&err)
	return fn(db.view)
}

func (db *DB) rlock(ctx context.Context) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case db.mu.TryRLock():
		return nil
	case ctx.Done() == nil:
		db.mu.RLock()
		return nil
	}
	locked := make(chan struct{}) // without room: it is sent only to a caller who still waits
	go func() {
		db.mu.RLock()
		select {
		case locked <- struct{}{}:
		case <-ctx.Done():
			db.mu.RUnlock()
		}
	}()
	select {
	case <-locked:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Update applies the command at a log index. The writes of fn become visible together when it returns nil; otherwise
// nothing changes and its error is returned. They are on disk when Durable reaches index. fn must not block, and must not
// call View or Update. Indices grow. While the buffer is full, Update waits for the flusher.
func (db *DB) Update(index uint64, fn func(Txn) error) error {
	db.updating.Lock()
	defer db.updating.Unlock()
	if err := db.admit(index); err != nil {
		return err
	}
	defer db.txn.Reset()
	if err := db.stage(fn); err != nil {
		return err
	}
	db.mu.Lock()
	if db.unusable != nil {
		db.mu.Unlock()
		return db.unusable
	}
	g := db.view.active
	keys, bytes := g.keys, g.bytes
	db.txn.mergeInto(g)
	g.applied = index
	keys, bytes = db.buffered.Add(g.keys-keys), db.bytes.Add(g.bytes-bytes)
	db.applied.Store(index)
	db.mu.Unlock()
	if keys >= int64(db.opts.MaxBuffered/2) || bytes >= db.opts.MaxBytes/2 {
		select {
		case db.kick <- struct{}{}:
		default: // the flusher was told already
		}
	}
	return nil
}

// admit waits until there is room.
func (db *DB) admit(index uint64) error {
	if applied := db.applied.Load(); index <= applied {
		return fmt.Errorf("kv: %s: index %d was applied already, the last one is %d", db.path, index, applied)
	}
	if db.full() {
		began := time.Now()
		db.mu.Lock()
		for db.full() && db.unusable == nil && db.Failure() == nil {
			db.room.Wait()
		}
		db.mu.Unlock()
		db.stats.waited.Add(int64(time.Since(began)))
	}
	if err := db.Failure(); err != nil {
		return err
	}
	return nil
}

func (db *DB) full() bool {
	return db.buffered.Load() >= int64(db.opts.MaxBuffered) || db.bytes.Load() >= db.opts.MaxBytes
}

// stage runs fn, with its writes kept in db.txn.
func (db *DB) stage(fn func(Txn) error) (err error) {
	db.mu.RLock()
	defer db.mu.RUnlock()
	if db.unusable != nil {
		return db.unusable
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer db.catch(&err)
	db.txn.begin(db.view)
	if err := fn(&db.txn); err != nil {
		return err
	}
	return db.txn.err
}

// catch turns the panic of a read that found damaged pages into an error, and stops the database.
func (db *DB) catch(err *error) {
	switch r := recover().(type) {
	case nil:
	case damage:
		db.fail(r.err)
		*err = db.Failure()
	default:
		panic(r)
	}
}

// Applied is the log index of the last Update.
func (db *DB) Applied() uint64 { return db.applied.Load() }

// Durable is the log index up to which everything is on disk.
func (db *DB) Durable() uint64 { return db.durable.Load() }

// Err is closed when the database failed. Failure says why.
func (db *DB) Err() <-chan struct{} { return db.failed }

// Failure is nil, or wraps ErrFailed and what happened.
func (db *DB) Failure() error {
	select {
	case <-db.failed:
		return db.failure
	default:
		return nil
	}
}

// fail stops the database. The caller holds mu, if only for reading, or broadcasts room under it afterwards: else an Update
// that is about to wait for room might miss it.
func (db *DB) fail(cause error) {
	db.failOnce.Do(func() {
		db.failure = fmt.Errorf("%w: %w", ErrFailed, cause)
		db.opts.Logger.Error("the metadata database failed; this metaserver stops applying", "path", db.path, "error", cause)
		close(db.failed)
		db.room.Broadcast()
	})
}

// Close writes what is buffered and closes the file. Views and Updates fail afterwards. It returns the error of the flush,
// or of an earlier one that failed.
func (db *DB) Close() error {
	db.updating.Lock()
	defer db.updating.Unlock()
	if db.closed() {
		return nil
	}
	close(db.stop)
	<-db.done
	err := db.Flush()
	db.flushMu.Lock()
	defer db.flushMu.Unlock()
	db.lockFiles()
	defer db.files.Unlock()
	return errors.Join(err, db.release(ErrClosed))
}

func (db *DB) closed() bool {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return errors.Is(db.unusable, ErrClosed)
}

// release closes the file; whoever comes from now on gets the error why. The caller holds flushMu and files.
func (db *DB) release(why error) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	gone := db.unusable
	db.unusable = why
	db.room.Broadcast()
	if gone != nil || db.stuck {
		return nil
	}
	return errors.Join(db.view.tx.Rollback(), db.view.file.Close())
}
