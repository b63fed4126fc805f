package kv

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"math"
	"runtime/debug"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

const (
	// sumPiece is how much is hashed without a rest, in bytes of keys and values.
	sumPiece = 1 << 20
	// sumRest is how many times as long as a piece took the rest after it takes: commands come first.
	sumRest = 3
	// maxSumRest bounds it: whoever needs the file waits for it.
	maxSumRest = 50 * time.Millisecond
)

// Frozen is the state as it was at one index of the log, while commands go on. It holds a read transaction of the file open, so that
// the file grows by what changes meanwhile, and gives way to whoever has to open the file anew.
type Frozen struct {
	db      *DB
	tx      *bolt.Tx
	index   uint64
	release sync.Once
}

// Freeze keeps the state of what was applied last, which it first writes to the file: Updates wait for that. Sum or Release must be
// called.
func (db *DB) Freeze() (*Frozen, error) {
	db.updating.Lock()
	defer db.updating.Unlock()
	if err := db.Flush(); err != nil {
		return nil, err
	}
	db.files.RLock()
	f, err := db.freeze()
	if err != nil {
		db.files.RUnlock()
		return nil, fmt.Errorf("kv: freeze %s: %w", db.path, err)
	}
	return f, nil
}

func (db *DB) freeze() (*Frozen, error) {
	db.mu.RLock()
	file, unusable := db.view.file, db.unusable
	db.mu.RUnlock()
	if unusable != nil {
		return nil, unusable
	}
	tx, err := file.Begin(false)
	if err != nil {
		return nil, err
	}
	return &Frozen{db: db, tx: tx, index: db.Applied()}, nil
}

// Index is the log index whose state this is.
func (f *Frozen) Index() uint64 { return f.index }

// Release lets go of the state.
func (f *Frozen) Release() {
	f.release.Do(func() {
		if err := f.tx.Rollback(); err != nil {
			f.db.opts.Logger.Warn("could not end a read transaction", "path", f.db.path, "error", err)
		}
		f.db.files.RUnlock()
	})
}

// Sum returns the SHA-256 of every key and value of all buckets, and lets go of the state. Two databases that the same commands were
// applied to have the same one, whatever else differs in their files, also when one has empty buckets that the other does not know. It
// takes a quarter of one processor, fails when somebody else needs the file, and ends with ctx. Pages that make no sense are an error,
// and stop the database.
func (f *Frozen) Sum(ctx context.Context) (sum [sha256.Size]byte, err error) {
	defer f.Release()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil { // bbolt trusts its pages, and values are read from them here
			err = f.failed(fmt.Errorf("%w: %v", errDamaged(f.db.path), r))
		}
	}()
	s := &summing{ctx: ctx, db: f.db, hash: sha256.New(), began: time.Now()}
	for _, name := range f.db.opts.Buckets {
		b := f.tx.Bucket([]byte(name))
		if b == nil {
			return sum, fmt.Errorf("kv: %s: bucket %q is missing", f.db.path, name)
		}
		c := b.Cursor()
		k, v := c.First()
		if k != nil {
			s.bucket(name) // an empty one does not count: a newer version may have more of them
		}
		for ; k != nil; k, v = c.Next() {
			if err := s.entry(k, v); err != nil {
				return sum, err
			}
		}
	}
	return [sha256.Size]byte(s.hash.Sum(nil)), nil
}

// failed stops the database.
func (f *Frozen) failed(cause error) error {
	f.db.mu.RLock()
	defer f.db.mu.RUnlock()
	f.db.fail(cause)
	return f.db.Failure()
}

// summing hashes entries and rests now and then.
type summing struct {
	ctx    context.Context
	db     *DB
	hash   hash.Hash
	size   int // of the piece
	began  time.Time
	header [8]byte
}

// bucket begins the entries of another one. No value is as long as its header says.
func (s *summing) bucket(name string) {
	binary.BigEndian.PutUint32(s.header[:], uint32(len(name)))
	binary.BigEndian.PutUint32(s.header[4:], math.MaxUint32)
	_, _ = s.hash.Write(s.header[:]) // never fails
	_, _ = s.hash.Write([]byte(name))
}

func (s *summing) entry(key, value []byte) error {
	binary.BigEndian.PutUint32(s.header[:], uint32(len(key)))
	binary.BigEndian.PutUint32(s.header[4:], uint32(len(value)))
	for _, b := range [][]byte{s.header[:], key, value} {
		_, _ = s.hash.Write(b) // never fails
	}
	if s.size += len(key) + len(value); s.size < sumPiece {
		return nil
	}
	return s.rest()
}

func (s *summing) rest() error {
	if s.db.reopening.Load() > 0 {
		return fmt.Errorf("kv: sum of %s: %w", s.db.path, errGiveWay)
	}
	pause := time.NewTimer(min(sumRest*time.Since(s.began), maxSumRest))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-s.ctx.Done():
		return fmt.Errorf("kv: sum of %s: %w", s.db.path, s.ctx.Err())
	}
	s.size, s.began = 0, time.Now()
	return nil
}
