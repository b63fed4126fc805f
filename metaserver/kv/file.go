package kv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

const (
	formatVersion = 1
	lockTimeout   = time.Second // how long another process may take to let go of the file

	// mapSize is how much address space is mapped at first, in bytes. bbolt cannot map more while a read transaction is
	// open, and one always is.
	mapSize    = 64 << 30
	minMapSize = 1 << 30
)

var (
	ownBucket  = []byte("shoalfs")
	formatKey  = []byte("format")
	appliedKey = []byte("applied")
)

func errDamaged(path string) error {
	return fmt.Errorf("kv: %s is damaged: if this metaserver has peers and ALL of them run and have caught up, stop it, move its data "+
		"directory away and start it again, and it takes a copy from them; else restore the directory from a backup", path)
}

// openFile opens a database that exists, with so much address space, or less where the system has not that much: it returns
// how much.
func openFile(path string, want int) (db *bolt.DB, mapped int, err error) {
	defer func() {
		if r := recover(); r != nil { // the list of free pages makes no sense
			db, mapped, err = nil, 0, fmt.Errorf("%w: %v", errDamaged(path), r)
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, fmt.Errorf("kv: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("kv: %s is no regular file", path)
	}
	if info.Size() == 0 {
		return nil, 0, fmt.Errorf("%w: it is empty", errDamaged(path))
	}
	mapped = want
	for {
		db, err = bolt.Open(path, 0o600, &bolt.Options{
			Timeout:         lockTimeout,
			FreelistType:    bolt.FreelistMapType,
			NoStatistics:    true,
			InitialMmapSize: mapped,
		})
		if !errors.Is(err, syscall.ENOMEM) || mapped <= minMapSize {
			break
		}
		mapped /= 4
	}
	switch {
	case err == nil:
		return db, mapped, nil
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, 0, fmt.Errorf("kv: %s is in use by another process: a data directory belongs to one metaserver at a time", path)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EROFS):
		return nil, 0, fmt.Errorf("kv: open %s: %w", path, err)
	}
	return nil, 0, fmt.Errorf("%w: it is no bbolt database (%w)", errDamaged(path), err)
}

// createFile makes an empty database at path, whole or not at all.
func createFile(path string, buckets []string) error {
	tmp := path + newSuffix
	db, err := bolt.Open(tmp, 0o600, &bolt.Options{Timeout: lockTimeout, NoStatistics: true})
	if err != nil {
		return fmt.Errorf("kv: create %s: %w", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		own, err := tx.CreateBucket(ownBucket)
		if err != nil {
			return err
		}
		if err := own.Put(formatKey, binary.BigEndian.AppendUint32(nil, formatVersion)); err != nil {
			return err
		}
		if err := putApplied(tx, 0); err != nil {
			return err
		}
		return makeBuckets(tx, buckets)
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("kv: create %s: %w", path, err)
	}
	return rename(tmp, path)
}

// adopt checks that an opened file is a database of ours and in one piece, as far as that can be seen at once, makes the
// buckets that it lacks, and returns its applied index.
func adopt(db *bolt.DB, buckets []string) (applied uint64, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errDamaged(db.Path()), r)
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	lacking := false
	if err := db.View(func(tx *bolt.Tx) error {
		if err := checkSize(tx, db.Path()); err != nil {
			return err
		}
		if applied, err = checkFormat(tx, db.Path()); err != nil {
			return err
		}
		for _, name := range buckets {
			b := tx.Bucket([]byte(name))
			if b == nil {
				lacking = true
				continue
			}
			c := b.Cursor()
			c.First()
			c.Last()
		}
		return nil
	}); err != nil {
		return 0, err
	}
	if lacking {
		if err := db.Update(func(tx *bolt.Tx) error { return makeBuckets(tx, buckets) }); err != nil {
			return 0, fmt.Errorf("kv: %s: %w", db.Path(), err)
		}
	}
	return applied, nil
}

func checkSize(tx *bolt.Tx, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("kv: %w", err)
	}
	if info.Size() < tx.Size() {
		return fmt.Errorf("%w: it was truncated to %d of %d bytes", errDamaged(path), info.Size(), tx.Size())
	}
	return nil
}

func checkFormat(tx *bolt.Tx, path string) (applied uint64, err error) {
	own := tx.Bucket(ownBucket)
	if own == nil {
		return 0, fmt.Errorf("kv: %s is a bbolt database, but not one of a shoalfs metaserver: choose another data directory", path)
	}
	format, index := own.Get(formatKey), own.Get(appliedKey)
	if len(format) != 4 || len(index) != 8 {
		return 0, fmt.Errorf("%w: its format or applied index is missing", errDamaged(path))
	}
	if v := binary.BigEndian.Uint32(format); v != formatVersion {
		return 0, fmt.Errorf("kv: %s has format %d, this version of shoalfs knows only %d: start the version that wrote it, or a newer one",
			path, v, formatVersion)
	}
	return binary.BigEndian.Uint64(index), nil
}

func makeBuckets(tx *bolt.Tx, names []string) error {
	for _, name := range names {
		if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
			return fmt.Errorf("bucket %q: %w", name, err)
		}
	}
	return nil
}

func putApplied(tx *bolt.Tx, index uint64) error {
	return tx.Bucket(ownBucket).Put(appliedKey, binary.BigEndian.AppendUint64(nil, index))
}

// rename gives a synced file its name, durably.
func rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("kv: %w", err)
	}
	return syncDir(filepath.Dir(to))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("kv: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("kv: sync %s: %w", dir, err)
	}
	return nil
}
