package disk

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

func faultyDisk(t *testing.T, opts Options) (*Disk, *faulty, *atomic.Int64) {
	fs := newFaulty()
	bad := new(atomic.Int64)
	opts.FS = fs
	opts.OnBad = func(chunk.ID, error) { bad.Add(1) }
	return openT(t, t.TempDir(), opts), fs, bad
}

func tryAppend(w *Writer, b []byte) error {
	return w.Append(w.Length(), chunk.Checksums(nil, b), payload(b))
}

func TestFullDisk(t *testing.T) {
	for _, torn := range []int{0, 1, headerSize, headerSize + 10, 500} {
		for _, truncate := range []bool{true, false} {
			t.Run(fmt.Sprintf("torn=%d,truncate=%v", torn, truncate), func(t *testing.T) {
				d, fs, bad := faultyDisk(t, Options{})
				w := create(t, d, 1)
				appendTo(t, w, []byte("abc"))
				fs.torn = torn
				fs.set(func(op, _ string) error {
					if op == "write" {
						return syscall.ENOSPC
					}
					if op == "truncate" && !truncate {
						return syscall.EIO
					}
					return nil
				})
				if err := tryAppend(w, random(1000)); !errors.Is(err, ErrFull) {
					t.Fatalf("%v", err)
				}
				mustRead(t, d, 1, 0, []byte("abc"))
				fs.set(nil)
				if truncate {
					appendTo(t, w, []byte("def")) // there is room again
					finish(t, w)
					mustRead(t, d, 1, 0, []byte("abcdef"))
				} else {
					if err := tryAppend(w, []byte("def")); !errors.Is(err, ErrFull) {
						t.Errorf("append behind a torn record: %v", err)
					}
					_ = w.Finish()
					d.cache.drop(1)
					mustRead(t, d, 1, 0, []byte("abc"))
				}
				if bad.Load() != 0 || d.Err() != nil {
					t.Errorf("a full disk made %d chunks bad; the disk: %v", bad.Load(), d.Err())
				}
			})
		}
	}
}

func TestFullAtFirstAppend(t *testing.T) {
	d, fs, _ := faultyDisk(t, Options{})
	fs.set(failing("create", syscall.ENOSPC))
	if _, err := d.Create(1); !errors.Is(err, ErrFull) {
		t.Fatalf("%v", err)
	}
	fs.set(nil)
	w := create(t, d, 1)
	fs.torn = 30
	fs.set(failing("write", syscall.ENOSPC))
	if err := tryAppend(w, []byte("abc")); !errors.Is(err, ErrFull) {
		t.Fatalf("%v", err)
	}
	finish(t, w)
	if d.Has(1) || len(d.List()) != 0 {
		t.Error("an empty chunk stays")
	}
}

func TestReserve(t *testing.T) {
	var free atomic.Uint64
	free.Store(100 << 20)
	fs := spaceFS{newFaulty(), &free}
	d := openT(t, t.TempDir(), Options{FS: fs, Reserve: 50 << 20})
	w := create(t, d, 1)
	for range 10 {
		appendTo(t, w, make([]byte, chunk.MaxFrame))
	}
	// However long ago the file system was asked, the next append that could matter asks it again.
	free.Store(50<<20 + 1000)
	d.full()
	if err := tryAppend(w, make([]byte, 2000)); !errors.Is(err, ErrFull) {
		t.Fatalf("append into the reserve: %v", err)
	}
	if _, err := d.Create(2); !errors.Is(err, ErrFull) {
		t.Fatalf("create into the reserve: %v", err)
	}
	if got := d.Stats().Free; got > 1000 {
		t.Errorf("%d bytes are said to be free", got)
	}
	free.Store(200 << 20)
	finish(t, create(t, d, 2))
	finish(t, w)
}

type spaceFS struct {
	*faulty
	free *atomic.Uint64
}

func (s spaceFS) Space(string) (Space, error) {
	return Space{Capacity: 1 << 30, Free: s.free.Load()}, nil
}

func TestWriteFails(t *testing.T) {
	d, fs, bad := faultyDisk(t, Options{})
	w := create(t, d, 1)
	appendTo(t, w, []byte("abc"))
	fs.set(failing("write", syscall.EIO))
	if err := tryAppend(w, []byte("def")); !errors.Is(err, ErrFailed) {
		t.Fatalf("%v", err)
	}
	fs.set(nil)
	if err := tryAppend(w, []byte("def")); !errors.Is(err, ErrFailed) {
		t.Errorf("a failed chunk takes appends: %v", err)
	}
	if err := w.Sync(); !errors.Is(err, ErrFailed) {
		t.Errorf("a failed chunk is synced: %v", err)
	}
	if err := w.Finish(); !errors.Is(err, ErrFailed) {
		t.Errorf("finish: %v", err)
	}
	if bad.Load() != 1 || !report(t, d, 1).Bad {
		t.Errorf("reported %d times", bad.Load())
	}
	mustRead(t, d, 1, 0, []byte("abc"))
	if d.Err() == nil || d.Stats().Err == nil {
		t.Error("the disk is still in use")
	}
	if _, err := d.Create(2); !errors.Is(err, ErrFailed) {
		t.Errorf("a new chunk on a failed disk: %v", err)
	}
}

func TestSyncFails(t *testing.T) {
	for _, op := range []string{"sync", "syncdir"} {
		t.Run(op, func(t *testing.T) {
			d, fs, bad := faultyDisk(t, Options{})
			w := create(t, d, 1)
			appendTo(t, w, []byte("abc"))
			fs.set(failing(op, syscall.EIO))
			if err := w.Sync(); !errors.Is(err, ErrFailed) {
				t.Fatalf("%v", err)
			}
			fs.set(nil)
			before := fs.counted(op)
			if err := w.Sync(); !errors.Is(err, ErrFailed) || w.Durable() != 0 {
				t.Errorf("a failed sync is tried again: %v, durable %d", err, w.Durable())
			}
			if err := w.Finish(); !errors.Is(err, ErrFailed) {
				t.Errorf("finish: %v", err)
			}
			if fs.counted(op) != before || bad.Load() != 1 {
				t.Errorf("synced %d times more, reported %d times", fs.counted(op)-before, bad.Load())
			}
		})
	}
}

func TestFinishFails(t *testing.T) {
	d, fs, bad := faultyDisk(t, Options{})
	w := create(t, d, 1)
	appendTo(t, w, []byte("abc"))
	fs.set(failing("sync", syscall.EIO))
	if err := w.Finish(); !errors.Is(err, ErrFailed) || bad.Load() != 1 {
		t.Fatalf("%v, reported %d times", err, bad.Load())
	}
}

func TestIndexDoesNotFit(t *testing.T) {
	d, fs, bad := faultyDisk(t, Options{})
	w := create(t, d, 1)
	appendTo(t, w, []byte("abc"))
	fs.torn = 20
	fs.set(failing("write", syscall.ENOSPC))
	if err := w.Finish(); err == nil {
		t.Error("no error")
	}
	fs.set(nil)
	d.cache.drop(1)
	mustRead(t, d, 1, 0, []byte("abc"))
	if bad.Load() != 0 || d.Err() != nil {
		t.Error("that made the chunk or the disk bad")
	}
}

func TestReadFails(t *testing.T) {
	d, fs, bad := faultyDisk(t, Options{})
	for id := range chunk.ID(maxReadErrors + 1) {
		w := create(t, d, id)
		appendTo(t, w, []byte("abc"))
		finish(t, w)
	}
	fs.set(func(op, path string) error {
		if op == "read" && !strings.Contains(path, "00000.chunk") {
			return syscall.EIO
		}
		return nil
	})
	for id := chunk.ID(1); id <= maxReadErrors; id++ {
		if d.Err() != nil {
			t.Fatalf("the disk failed before chunk %v: %v", id, d.Err())
		}
		for range 2 {
			if _, err := read(d, id, 0, 3); !errors.Is(err, ErrCorrupt) || !errors.Is(err, syscall.EIO) {
				t.Fatalf("%v", err)
			}
		}
		if bad.Load() != int64(id) {
			t.Errorf("reported %d times", bad.Load())
		}
	}
	if d.Err() == nil {
		t.Error("the disk did not fail")
	}
	mustRead(t, d, 0, 0, []byte("abc"))
	for _, r := range d.List() {
		if !r.Bad {
			t.Errorf("what a failed disk holds is not to be kept elsewhere: %v", r)
		}
	}
}

func TestDeleteFails(t *testing.T) {
	d, fs, _ := faultyDisk(t, Options{})
	w := create(t, d, 1)
	appendTo(t, w, []byte("abc"))
	finish(t, w)
	fs.set(failing("remove", syscall.EIO))
	if err := d.Delete(1); err == nil {
		t.Fatal("no error")
	}
	mustRead(t, d, 1, 0, []byte("abc"))
	fs.set(nil)
	if err := d.Delete(1); err != nil || d.Has(1) {
		t.Errorf("%v", err)
	}
}

func TestScanSurvivesReadErrors(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir, Options{})
	for id := range chunk.ID(3) {
		w := create(t, d, id)
		appendTo(t, w, []byte("abc"))
		finish(t, w)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	fs := newFaulty()
	fs.set(func(op, path string) error {
		if (op == "read" || op == "open") && strings.Contains(path, "00001.chunk") {
			return syscall.EIO
		}
		return nil
	})
	d = openT(t, dir, Options{FS: fs})
	if st := d.Stats(); st.Chunks != 3 || st.Bad != 1 || st.Err != nil || st.Used != 6 {
		t.Errorf("%+v", st)
	}
	mustRead(t, d, 2, 0, []byte("abc"))
}

func TestDirectoriesOnOneFileSystemNameIt(t *testing.T) {
	parent := t.TempDir()
	a, b := openT(t, filepath.Join(parent, "a"), Options{}), openT(t, filepath.Join(parent, "b"), Options{})
	name := a.Stats().Filesystem
	if name == "" || name != b.Stats().Filesystem {
		t.Fatalf("%q and %q", name, b.Stats().Filesystem)
	}
	other, err := OS.Space("/proc")
	if err != nil || other.Filesystem == "" || other.Filesystem == name {
		t.Fatalf("%+v, %v", other, err)
	}
}
