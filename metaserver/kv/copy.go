package kv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// copySpare is how much of the disk a copy leaves free beside a quarter of its own size, in bytes; of a small disk it is a
// tenth. A database that cannot grow stops, and before it comes to that the metaserver refuses changes.
const copySpare = 512 << 20

// Copy is a database as it was at one moment. It can be read for as long as one likes: it has a file of its own, without a
// name, so that it holds up neither Updates nor flushes, and no page of the database itself. Several may read it at once.
type Copy struct {
	view  *view
	index uint64
}

// Copy makes a copy of what was applied before the call. It takes as much disk beside the database as that is large, until it
// is closed; the error is ENOSPC, in a sentence, when there is not enough. The making ends early with ctx.
func (db *DB) Copy(ctx context.Context) (*Copy, error) {
	if err := db.Flush(); err != nil {
		return nil, err
	}
	tmp, err := db.unnamed(".copy-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = tmp.Close() }() // the copy has the file under another descriptor
	index, err := db.copyInto(ctx, tmp)
	if err != nil {
		return nil, fmt.Errorf("kv: copy %s: %w", db.path, err)
	}
	file, err := db.openCopy(tmp)
	if err != nil {
		return nil, fmt.Errorf("kv: open the copy of %s: %w", db.path, err)
	}
	v, err := newView(file, db.opts.Buckets, newGeneration(len(db.opts.Buckets)))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("kv: open the copy of %s: %w", db.path, err), file.Close())
	}
	return &Copy{view: v, index: index}, nil
}

// errGiveWay ends a copy because the file has to be opened anew.
var errGiveWay = errors.New("the file is opened again")

// copyInto fills f with a copy, and begins again where the file was needed for something that cannot wait.
func (db *DB) copyInto(ctx context.Context, f *os.File) (uint64, error) {
	for {
		w := &copying{ctx: ctx, db: db, f: f}
		_, index, err := db.copyTo(w, func(size int64) error { return room(f, size) })
		if w.err != nil {
			err = w.err // bbolt does not wrap it everywhere
		}
		if err == nil || !errors.Is(err, errGiveWay) {
			return index, err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return 0, err
		}
		if err := f.Truncate(0); err != nil {
			return 0, err
		}
	}
}

// copying writes a copy until ctx ends or somebody waits for the file.
type copying struct {
	ctx context.Context
	db  *DB
	f   *os.File
	err error // why it stopped
}

func (c *copying) Write(b []byte) (int, error) {
	if c.err == nil {
		c.err = c.ctx.Err()
	}
	if c.err == nil && c.db.reopening.Load() > 0 {
		c.err = errGiveWay
	}
	if c.err != nil {
		return 0, c.err
	}
	return c.f.Write(b)
}

// unnamed makes a file beside the database that lives as long as it is open.
func (db *DB) unnamed(suffix string) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(db.path), filepath.Base(db.path)+suffix)
	if err != nil {
		return nil, fmt.Errorf("kv: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("kv: %w", err), f.Close())
	}
	return f, nil
}

// openCopy opens the database in a file that has no name any more; errors about it name the original.
func (db *DB) openCopy(f *os.File) (file *bolt.DB, err error) {
	defer func() {
		if r := recover(); r != nil { // bbolt trusts its pages
			file, err = nil, fmt.Errorf("%w: %v", errDamaged(db.path), r)
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	return bolt.Open(db.path, 0, &bolt.Options{ReadOnly: true, NoStatistics: true, Timeout: lockTimeout,
		OpenFile: func(string, int, os.FileMode) (*os.File, error) {
			fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			return os.NewFile(uintptr(fd), db.path), nil
		}})
}

// room says whether a file of that size fits where f is.
func room(f *os.File, size int64) error {
	var st unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &st) != nil {
		return nil // writing will tell
	}
	bytes := func(blocks uint64) int64 { return int64(min(blocks, math.MaxInt64/uint64(st.Bsize))) * st.Bsize }
	free := bytes(st.Bavail)
	if need := size + size/4 + min(copySpare, bytes(st.Blocks)/10); free < need {
		return fmt.Errorf("it takes %d MiB beside the database, where %d MiB are free; to leave some for the database itself %d MiB have to be: %w",
			size>>20, free>>20, need>>20, unix.ENOSPC)
	}
	return nil
}

// Index is the log index of the last command that the copy holds.
func (c *Copy) Index() uint64 { return c.index }

// View calls fn with the copy. What it reads is valid until Close. Pages that make no sense are an error.
func (c *Copy) View(fn func(Reader) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch r := recover().(type) {
		case nil:
		case damage:
			err = r.err
		default:
			panic(r)
		}
	}()
	return fn(c.view)
}

// Close gives the disk space back.
func (c *Copy) Close() error { return errors.Join(c.view.tx.Rollback(), c.view.file.Close()) }
