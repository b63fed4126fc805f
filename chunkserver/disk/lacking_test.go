package disk

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
)

// TestLackOfResources: a process that is short of descriptors or memory knows nothing bad about the copies it cannot look
// at. Were they reported as damaged, a good copy, or all of them, would be given up.
func TestLackOfResources(t *testing.T) {
	for _, op := range []string{"open", "read"} {
		for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
			t.Run(fmt.Sprint(op, errno), func(t *testing.T) {
				d, fs, bad := faultyDisk(t, Options{})
				w := create(t, d, 1)
				want := random(10_000)
				appendTo(t, w, want)
				finish(t, w)
				d.cache.drop(1)
				fs.set(failing(op, errno))
				if _, err := read(d, 1, 0, len(want)); !errors.Is(err, errno) || errors.Is(err, ErrCorrupt) {
					t.Errorf("read: %v", err)
				}
				fs.set(nil)
				mustRead(t, d, 1, 0, want)
				if bad.Load() != 0 || report(t, d, 1).Bad || d.Err() != nil {
					t.Errorf("the chunk was reported as damaged %d times; the disk: %v", bad.Load(), d.Err())
				}
			})
		}
	}
	t.Run("start", func(t *testing.T) {
		dir := t.TempDir()
		d := open(t, dir, Options{})
		finishOne(t, d)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		fs := newFaulty()
		fs.set(failing("open", syscall.EMFILE))
		if d, err := Open(dir, Options{FS: fs}); !errors.Is(err, syscall.EMFILE) {
			t.Errorf("opened without having seen its chunks: %v", err)
			if err == nil {
				_ = d.Close()
			}
		}
	})
}

func finishOne(t *testing.T, d *Disk) {
	w := create(t, d, 1)
	appendTo(t, w, []byte("abc"))
	finish(t, w)
}
