package kv

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// newSuffix is what the name of a file ends in that does not count yet.
const newSuffix = ".new"

// Stream returns a consistent copy of the whole database as bytes that Replace takes, how many they are, and the index that
// they hold: at least Durable. The copy is made before Stream returns, so that a slow reader does not hold a transaction
// open, which would make the file grow; it needs as much free space beside the database as that is large.
func (db *DB) Stream() (_ io.ReadCloser, size int64, index uint64, err error) {
	tmp, err := db.unnamed(".stream-")
	if err != nil {
		return nil, 0, 0, err
	}
	if size, index, err = db.copyTo(tmp, nil); err == nil {
		_, err = tmp.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, 0, 0, errors.Join(fmt.Errorf("kv: copy %s: %w", db.path, err), tmp.Close())
	}
	return tmp, size, index, nil
}

// copyTo writes the file as it is now. fits, unless nil, is asked before whether so many bytes can be written.
func (db *DB) copyTo(w io.Writer, fits func(size int64) error) (size int64, index uint64, err error) {
	db.files.RLock()
	defer db.files.RUnlock()
	db.mu.RLock()
	file, unusable := db.view.file, db.unusable
	db.mu.RUnlock()
	if unusable != nil {
		return 0, 0, unusable
	}
	tx, err := file.Begin(false)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, tx.Rollback()) }()
	if index, err = checkFormat(tx, db.path); err != nil {
		return 0, 0, err
	}
	if fits != nil {
		if err := fits(tx.Size()); err != nil {
			return 0, 0, err
		}
	}
	size, err = tx.WriteTo(w)
	return size, index, err
}

// Replace puts another database, as Stream gave it, in the place of this one: what was applied here is forgotten, buffered
// or not, and Applied is the index that the new one holds. The bytes are written beside the database and checked first. A
// failure before that leaves the database as it was; a crash leaves the old one or the new one.
func (db *DB) Replace(r io.Reader) error {
	tmp := db.path + newSuffix
	defer func() { _ = os.Remove(tmp) }() // not there after success
	if err := db.receive(tmp, r); err != nil {
		return err
	}
	db.updating.Lock()
	defer db.updating.Unlock()
	db.flushMu.Lock()
	defer db.flushMu.Unlock()
	db.lockFiles()
	defer db.files.Unlock()
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.unusable != nil {
		return db.unusable
	}
	if err := db.Failure(); err != nil {
		return err
	}
	if err := os.Rename(tmp, db.path); err != nil {
		return fmt.Errorf("kv: %w", err)
	}
	// From here on the old file has no name, so there is no way back.
	if err := syncDir(filepath.Dir(db.path)); err != nil {
		db.fail(err)
		return db.Failure()
	}
	if err := db.reopen(nil); err != nil {
		return err
	}
	db.applied.Store(db.durable.Load())
	db.buffered.Store(0)
	db.bytes.Store(0)
	db.room.Broadcast()
	return nil
}

// receive writes a file and checks it.
func (db *DB) receive(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("kv: %w", err)
	}
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("kv: write %s: %w", path, err)
	}
	file, _, err := openFile(path, minMapSize)
	if err != nil {
		return err
	}
	_, err = adopt(file, db.opts.Buckets)
	return errors.Join(err, file.Close())
}
