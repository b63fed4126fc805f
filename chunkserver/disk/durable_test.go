package disk

import (
	"errors"
	"slices"
	"syscall"
	"testing"
)

// TestNameIsDurableBeforeIndex: an index proves that a loss of power takes neither contents nor name; when the name cannot be
// made durable the chunk is bad.
func TestNameIsDurableBeforeIndex(t *testing.T) {
	d, fs, bad := faultyDisk(t, Options{})
	w := create(t, d, 1)
	appendTo(t, w, []byte("abc"))
	var ops []string
	fs.set(func(op, _ string) error {
		ops = append(ops, op)
		return nil
	})
	finish(t, w)
	fs.set(nil)
	if want := []string{"sync", "syncdir", "write"}; !slices.Equal(ops, want) {
		t.Errorf("%v, want %v", ops, want)
	}
	for _, failed := range []string{"syncdir", "write"} { // the index may be missing, as long as all is on disk
		before := bad.Load()
		w := create(t, d, 2)
		appendTo(t, w, []byte("abc"))
		fs.set(failing(failed, syscall.ENOSPC))
		synced := fs.counted("syncdir")
		if err := w.Finish(); err == nil {
			t.Error("no error")
		}
		fs.set(nil)
		if fs.counted("syncdir") == synced || bad.Load()-before != map[string]int64{"syncdir": 1}[failed] {
			t.Errorf("%s fails: reported %d times", failed, bad.Load()-before)
		}
		if err := d.Delete(2); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRecoveredIsDurable: what the end of a process left is on disk once the directory is open, sealed or not; else it is bad.
func TestRecoveredIsDurable(t *testing.T) {
	for _, fault := range []string{"", "write", "sync", "syncdir"} {
		t.Run(fault, func(t *testing.T) {
			dir := t.TempDir()
			d := open(t, dir, Options{})
			w := create(t, d, 1)
			appendTo(t, w, []byte("abc"))
			crash(d)
			fs := newFaulty()
			fs.set(failing(fault, syscall.ENOSPC))
			d = openT(t, dir, Options{FS: fs})
			fs.set(nil)
			if fault == "" || fault == "write" {
				if fs.counted("sync") == 0 || fs.counted("syncdir") == 0 {
					t.Error("it may be in memory only")
				}
				mustRead(t, d, 1, 0, []byte("abc"))
			} else if !report(t, d, 1).Bad {
				t.Error("nothing is said about it")
			}
		})
	}
}

func TestPersist(t *testing.T) {
	d, fs, bad := faultyDisk(t, Options{})
	if err := d.Persist(1); !errors.Is(err, ErrNotFound) {
		t.Errorf("no chunk: %v", err)
	}
	w := create(t, d, 1)
	appendTo(t, w, []byte("abc"))
	if err := d.Persist(1); !errors.Is(err, ErrWriting) {
		t.Errorf("a chunk that is written: %v", err)
	}
	finish(t, w)
	for i, op := range []string{"", "sync", "syncdir"} {
		sync, syncdir := fs.counted("sync"), fs.counted("syncdir")
		fs.set(failing(op, syscall.EIO))
		err := d.Persist(1)
		fs.set(nil)
		if op == "" && (err != nil || fs.counted("sync") == sync || fs.counted("syncdir") == syncdir) {
			t.Errorf("%v, %d syncs, %d of the directory", err, fs.counted("sync")-sync, fs.counted("syncdir")-syncdir)
		}
		if op != "" && (!errors.Is(err, ErrFailed) || bad.Load() != 1 || !report(t, d, 1).Bad) {
			t.Errorf("%d: %s fails: %v, reported %d times", i, op, err, bad.Load())
		}
	}
	if d.Err() == nil {
		t.Error("the disk is said to work")
	}
}
