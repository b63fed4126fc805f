package kv

import (
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
)

// mapMargin is how much of the mapped address space is kept free: more than one flush can take, in bytes, beside four times
// the bytes that it holds.
const mapMargin = 64 << 20

// counters are what Stats reports.
type counters struct {
	flushes, keys, spent, waited atomic.Int64
}

// Stats tells how the database does.
type Stats struct {
	Applied, Durable uint64
	BufferedKeys     int64
	BufferedBytes    int64
	FileBytes        int64         // in use in the file, free pages included
	Flushes          int64         // since Open
	FlushedKeys      int64         // since Open
	FlushTime        time.Duration // spent in flushes since Open
	WaitTime         time.Duration // that Updates waited for room since Open
}

// Stats returns the present figures.
func (db *DB) Stats() Stats {
	s := Stats{
		Applied: db.Applied(), Durable: db.Durable(),
		BufferedKeys: db.buffered.Load(), BufferedBytes: db.bytes.Load(),
		Flushes: db.stats.flushes.Load(), FlushedKeys: db.stats.keys.Load(),
		FlushTime: time.Duration(db.stats.spent.Load()), WaitTime: time.Duration(db.stats.waited.Load()),
	}
	db.mu.RLock()
	defer db.mu.RUnlock()
	if db.unusable == nil {
		s.FileBytes = db.view.tx.Size()
	}
	return s
}

// run flushes until Close.
func (db *DB) run() {
	defer close(db.done)
	tick := time.NewTicker(db.opts.FlushInterval)
	defer tick.Stop()
	for {
		select {
		case <-db.stop:
			return
		case <-tick.C:
		case <-db.kick:
		}
		if db.Applied() != db.Durable() && db.flush() != nil {
			return // nothing more is accepted
		}
	}
}

// Flush returns when everything that was applied before the call is on disk.
func (db *DB) Flush() error {
	for target := db.Applied(); db.Durable() < target; {
		if err := db.flush(); err != nil {
			return err
		}
	}
	return db.Failure()
}

// flush moves the active generation to the file.
func (db *DB) flush() error {
	db.flushMu.Lock()
	defer db.flushMu.Unlock()
	if err := db.Failure(); err != nil {
		return err
	}
	g, err := db.rotate()
	if err != nil || g == nil {
		return err
	}
	return db.land(g)
}

// land writes the generation being flushed to the file and takes it out of the view.
func (db *DB) land(g *generation) error {
	began := time.Now()
	next, err := db.store(g)
	if err != nil {
		db.fail(fmt.Errorf("flush %s: %w", db.path, err))
		db.mu.Lock()
		db.room.Broadcast()
		db.mu.Unlock()
		return db.Failure()
	}
	db.mu.Lock()
	old := db.view
	next.active = old.active
	db.view = next
	db.buffered.Add(-g.keys)
	db.bytes.Add(-g.bytes)
	db.durable.Store(g.applied)
	db.room.Broadcast()
	db.mu.Unlock()
	if err := old.tx.Rollback(); err != nil {
		db.opts.Logger.Warn("could not end a read transaction", "path", db.path, "error", err)
	}
	db.stats.flushes.Add(1)
	db.stats.keys.Add(g.keys)
	db.stats.spent.Add(int64(time.Since(began)))
	return nil
}

// rotate makes the active generation the one that is flushed; nil when there is nothing to flush.
func (db *DB) rotate() (*generation, error) {
	if err := db.ensureMapped(); err != nil {
		return nil, err
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.unusable != nil {
		return nil, db.unusable
	}
	g := db.view.active
	if g.applied == 0 {
		return nil, nil
	}
	v := *db.view
	v.flushing, v.active = g, newGeneration(len(db.opts.Buckets))
	db.view = &v
	return g, nil
}

// store writes a generation to the file in one transaction and returns a view of the file afterwards, without generations.
func (db *DB) store(g *generation) (v *view, err error) {
	defer func() {
		if r := recover(); r != nil { // bbolt trusts its pages
			db.stuck = true
			v, err = nil, fmt.Errorf("%w: %v", errDamaged(db.path), r)
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	file := db.view.file // only changed under flushMu
	tx, err := file.Begin(true)
	if err != nil {
		return nil, err
	}
	err = db.fill(tx, g)
	if err == nil {
		err = tx.Commit()
	} else {
		_ = tx.Rollback() // the first error counts
	}
	if err != nil {
		return nil, err
	}
	return newView(file, db.opts.Buckets, nil)
}

func (db *DB) fill(tx *bolt.Tx, g *generation) (err error) {
	for i, name := range db.opts.Buckets {
		if g.trees[i].Len() == 0 {
			continue
		}
		b := tx.Bucket([]byte(name))
		if b == nil {
			return fmt.Errorf("bucket %q is missing", name)
		}
		g.trees[i].Scan(func(e entry) bool {
			if e.value == nil {
				err = b.Delete(e.key)
			} else {
				err = b.Put(e.key, e.value)
			}
			return err == nil
		})
		if err != nil {
			return fmt.Errorf("bucket %q: %w", name, err)
		}
	}
	return putApplied(tx, g.applied)
}

// ensureMapped opens the file again with more address space when the next flush might need it: bbolt would wait for our
// own read transaction to end.
func (db *DB) ensureMapped() error {
	db.mu.RLock()
	if db.unusable != nil {
		db.mu.RUnlock()
		return db.unusable
	}
	size := int(db.view.tx.Size())
	db.mu.RUnlock()
	need := size + int(4*db.bytes.Load()) + mapMargin
	if need < db.mapped {
		return nil
	}
	db.lockFiles()
	defer db.files.Unlock()
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.unusable != nil {
		return db.unusable
	}
	db.mapped = 4 * max(db.mapped, need)
	if err := db.reopen(db.view.active); err != nil {
		return err
	}
	if db.mapped < need {
		db.fail(fmt.Errorf("flush %s: the process may have only %d bytes of address space for it, it needs %d", db.path, db.mapped, need))
		return db.Failure()
	}
	return nil
}

// lockFiles locks files for writing. A Copy under way gives way.
func (db *DB) lockFiles() {
	db.reopening.Add(1)
	db.files.Lock()
	db.reopening.Add(-1)
}

// reopen closes the file and opens the one that has its name now. The caller holds flushMu, files and mu.
func (db *DB) reopen(active *generation) error {
	err := db.view.tx.Rollback()
	if err == nil {
		err = db.view.file.Close()
	}
	if err == nil {
		var v *view
		var applied uint64
		if v, applied, err = db.load(); err == nil {
			if active != nil {
				v.active = active
			}
			db.view = v
			db.durable.Store(applied)
			return nil
		}
	}
	db.fail(fmt.Errorf("open %s again: %w", db.path, err))
	db.unusable = db.Failure()
	db.room.Broadcast()
	return db.unusable
}
