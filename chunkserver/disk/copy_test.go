package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

func startCopy(t *testing.T, d *Disk, id chunk.ID, length int) *Copy {
	t.Helper()
	c, err := d.Copy(id, uint64(length))
	if err != nil {
		t.Fatalf("copy: %v", err)
	}
	t.Cleanup(func() { _ = c.Discard() })
	return c
}

// fill appends data in frames of that size.
func (c *Copy) fill(data []byte, frame int) error {
	for f := range slices.Chunk(data, frame) {
		if err := c.Append(c.Length(), chunk.Checksums(nil, f), payload(f)); err != nil {
			return err
		}
	}
	return nil
}

func mustCopy(t *testing.T, d *Disk, id chunk.ID, data []byte) {
	t.Helper()
	c := startCopy(t, d, id, len(data))
	err := c.fill(data, 1000)
	if err == nil {
		err = c.Commit()
	}
	if err := errors.Join(err, c.Discard()); err != nil {
		t.Fatalf("copy: %v", err)
	}
}

func asides(t *testing.T, d *Disk) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(d.path, chunksName, "*", "*"+copySuffix))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestCopyReplaces(t *testing.T) {
	d, _, bad := faultyDisk(t, Options{})
	data := random(3000)
	mustCopy(t, d, 1, data)
	mustRead(t, d, 1, 0, data)
	for i := range 3 {
		old, err := d.acquire(1) // a reader that is slow
		if err != nil {
			t.Fatal(err)
		}
		d.markBad(1, old.of, errors.New("test"))
		if !report(t, d, 1).Bad || bad.Load() != int64(i+1) {
			t.Fatal("not bad")
		}
		data = random(3000 + i)
		mustCopy(t, d, 1, data)
		mustRead(t, d, 1, 0, data)
		if r := report(t, d, 1); r.Bad || r.Length != uint64(len(data)) {
			t.Errorf("%+v", r)
		}
		// What it finds out about the old file is none of the new one's business, nor does the old file come back.
		_ = d.damaged(1, old.of, ErrCorrupt)
		release(d.keep(1, old))
		if report(t, d, 1).Bad {
			t.Error("damage of the old file made the new one bad")
		}
		mustRead(t, d, 1, 0, data)
		old.release()
	}
	if st := d.Stats(); st.Bad != 0 || st.Chunks != 1 {
		t.Errorf("%+v", st)
	}
	if err := d.Verify(t.Context(), 1, nil); err != nil {
		t.Error(err)
	}
	if left := asides(t, d); len(left) > 0 {
		t.Errorf("%v", left)
	}
}

func TestCopyAndOthers(t *testing.T) {
	d, _, _ := faultyDisk(t, Options{})
	data := random(3000)
	c := startCopy(t, d, 1, len(data))
	if _, err := d.Copy(1, 10); !errors.Is(err, ErrExists) {
		t.Errorf("a second copy: %v", err)
	}
	if _, err := d.Create(1); !errors.Is(err, ErrExists) {
		t.Errorf("a writer beside a copy: %v", err)
	}
	if d.Has(1) || len(d.List()) > 0 {
		t.Error("an unfinished copy shows")
	}
	if err := c.Commit(); !errors.Is(err, ErrInvalid) {
		t.Errorf("an empty copy: %v", err)
	}
	if err := c.fill(data, 500); err != nil {
		t.Fatal(err)
	}
	if err := d.Delete(1); err != nil {
		t.Error(err)
	}
	if err := c.Commit(); !errors.Is(err, ErrNotFound) || d.Has(1) {
		t.Errorf("commit after the deletion: %v", err)
	}
	if err := c.Discard(); err != nil || len(asides(t, d)) > 0 {
		t.Errorf("%v, %v", err, asides(t, d))
	}

	w := create(t, d, 2)
	appendTo(t, w, data)
	if _, err := d.Copy(2, 10); !errors.Is(err, ErrWriting) {
		t.Errorf("a copy beside a writer: %v", err)
	}
	finish(t, w)
	mustCopy(t, d, 2, data)

	put(t, filepath.Join(d.dirOf(3), chunk.ID(3).String()+copySuffix), []byte("could not be removed"))
	mustCopy(t, d, 3, data)
	mustRead(t, d, 3, 0, data)
}

// TestCopyFails has every operation fail in turn: what was there before stays, and nothing new shows.
func TestCopyFails(t *testing.T) {
	data := random(5000)
	for _, op := range []string{"create", "write", "sync", "rename"} {
		for _, cause := range []error{syscall.EIO, syscall.ENOSPC} {
			for _, had := range []bool{false, true} {
				t.Run(fmt.Sprint(op, cause, had), func(t *testing.T) {
					d, fs, bad := faultyDisk(t, Options{})
					if had {
						w := create(t, d, 1)
						appendTo(t, w, data[:100])
						finish(t, w)
					}
					list := func() []Report {
						all := d.List()
						for i := range all {
							all[i].Bad = all[i].Bad && d.Err() == nil // of a disk that failed all are
						}
						return all
					}
					before := list()
					fs.set(failing(op, cause))
					c, err := d.Copy(1, uint64(len(data)))
					if err == nil {
						err = c.fill(data, 1000)
						if err == nil {
							err = c.Commit()
						}
						_ = c.Discard()
					}
					fs.set(nil)
					if want := map[error]error{syscall.EIO: ErrFailed, syscall.ENOSPC: ErrFull}[cause]; !errors.Is(err, want) && op != "sync" {
						t.Errorf("%v", err)
					}
					if err == nil || !slices.Equal(list(), before) || bad.Load() > 0 || len(asides(t, d)) > 0 {
						t.Errorf("%v; now %v, before %v; reported %d; %v", err, d.List(), before, bad.Load(), asides(t, d))
					}
					if failed := d.Err() != nil; failed != (cause == syscall.EIO) {
						t.Errorf("the disk: %v", d.Err())
					}
					if had {
						mustRead(t, d, 1, 0, data[:100])
					}
				})
			}
		}
	}
	t.Run("syncdir", func(t *testing.T) { // nobody knows whether the new name lasts
		d, fs, _ := faultyDisk(t, Options{})
		fs.set(failing("syncdir", syscall.EIO))
		c := startCopy(t, d, 1, len(data))
		if err := errors.Join(c.fill(data, 1000), c.Commit()); !errors.Is(err, ErrFailed) {
			t.Fatal(err)
		}
		if r := report(t, d, 1); !r.Bad || d.Err() == nil {
			t.Errorf("%+v, %v", r, d.Err())
		}
	})
}

func TestCopyKeepsReserve(t *testing.T) {
	var free atomic.Uint64
	free.Store(60 << 20)
	d := openT(t, t.TempDir(), Options{FS: spaceFS{newFaulty(), &free}, Reserve: 50 << 20})
	if _, err := d.Copy(1, 11<<20); !errors.Is(err, ErrFull) {
		t.Errorf("%v", err)
	}
	c := startCopy(t, d, 1, 8<<20)
	free.Store(50<<20 + 1000)
	d.full()
	if err := c.fill(make([]byte, 1<<20), 1<<20); !errors.Is(err, ErrFull) {
		t.Errorf("%v", err)
	}
}

func TestUnfinishedCopiesAreRemoved(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir, Options{})
	mustCopy(t, d, 1, []byte("abc"))
	for _, id := range []chunk.ID{1, 2} {
		if err := startCopy(t, d, id, 10).fill([]byte("defghi"), 3); err != nil {
			t.Fatal(err)
		}
	}
	crash(d)
	if len(asides(t, d)) != 2 {
		t.Fatal("there are none")
	}
	other := filepath.Join(d.dirOf(5), "not mine"+copySuffix)
	put(t, other, []byte("x"))
	d = openT(t, dir, Options{})
	if st := d.Stats(); st.Chunks != 1 || st.Bad != 0 || st.Foreign != 1 {
		t.Errorf("%+v", st)
	}
	if left := asides(t, d); !slices.Equal(left, []string{other}) {
		t.Errorf("%v", left)
	}
	mustRead(t, d, 1, 0, []byte("abc"))
}

// powerFS knows what a loss of power may leave of files and names: contents as of the last sync, or of any later moment,
// or zeros where something was written since; names likewise.
type powerFS struct {
	FS
	now, durable map[string]*inode
	after        func() // called after every operation, and amid every write
}

type inode struct{ now, durable []byte }

func (p *powerFS) Create(path string) (File, error) {
	f, err := p.FS.Create(path)
	if err != nil {
		return nil, err
	}
	i := &inode{}
	p.now[path] = i
	p.after()
	return &powerFile{f, p, i}, nil
}

func (p *powerFS) Rename(from, to string) error {
	p.now[to] = p.now[from]
	delete(p.now, from)
	p.after()
	return p.FS.Rename(from, to)
}

func (p *powerFS) Remove(path string) error {
	delete(p.now, path)
	p.after()
	return p.FS.Remove(path)
}

func (p *powerFS) SyncDir(dir string) error {
	for _, names := range []map[string]*inode{p.durable, p.now} {
		for path := range names {
			if filepath.Dir(path) == dir {
				p.durable[path] = p.now[path]
			}
		}
	}
	p.after()
	return nil
}

// left is what may be under a name after a loss of power; nil: nothing.
func (p *powerFS) left(path string) [][]byte {
	var all [][]byte
	for _, i := range []*inode{p.now[path], p.durable[path]} {
		if i == nil {
			all = append(all, nil)
			continue
		}
		grown := make([]byte, len(i.now))
		copy(grown, i.durable)
		all = append(all, i.now, append([]byte{}, i.durable...), grown)
	}
	return all
}

type powerFile struct {
	File
	p *powerFS
	i *inode
}

func (f *powerFile) WriteBuffers(bufs [][]byte, off int64) error {
	all := slices.Concat(bufs...)
	for _, part := range [][]byte{all[:len(all)/2], all} {
		if grow := int(off) + len(part) - len(f.i.now); grow > 0 {
			f.i.now = append(f.i.now, make([]byte, grow)...)
		}
		copy(f.i.now[off:], part)
		f.p.after()
	}
	return f.File.WriteBuffers(bufs, off)
}

func (f *powerFile) Sync() error {
	f.i.durable = bytes.Clone(f.i.now)
	f.p.after()
	return nil
}

// TestCopyAndPowerLoss cuts the power at every moment of a copy: under the chunk's name is what was there before, or the whole
// copy; when Commit has returned, only that.
func TestCopyAndPowerLoss(t *testing.T) {
	const id = 0x11
	data := random(2500)
	for _, before := range [][]byte{nil, []byte("a damaged file")} {
		fs := &powerFS{FS: OS, now: map[string]*inode{}, durable: map[string]*inode{}}
		fs.after = func() {}
		d := openT(t, t.TempDir(), Options{FS: fs})
		s := newShelf(t, id)
		if before != nil {
			put(t, d.pathOf(id), before)
			fs.now[d.pathOf(id)] = &inode{before, before}
			fs.durable[d.pathOf(id)] = fs.now[d.pathOf(id)]
			d.chunks[id] = state{bad: true}
			d.bad++
		}
		moments := 0
		check := func(committed bool) {
			t.Helper()
			moments++
			for i, left := range fs.left(d.pathOf(id)) {
				if !committed && (left == nil) == (before == nil) && bytes.Equal(left, before) {
					continue
				}
				if left == nil {
					t.Fatalf("moment %d, case %d: nothing is there", moments, i)
				}
				was := bytes.Clone(left)
				mustRead(t, s.with(t, left), id, 0, data)
				if err := s.d.Verify(t.Context(), id, nil); err != nil {
					t.Fatalf("moment %d, case %d: what is there is not whole: %v", moments, i, err)
				}
				if !bytes.Equal(contents(t, s.path), was) {
					t.Fatalf("moment %d, case %d: it was not sealed", moments, i)
				}
			}
		}
		fs.after = func() { check(false) }
		mustCopy(t, d, id, data)
		check(true)
		if moments < 12 {
			t.Errorf("only %d moments were seen", moments)
		}
		if _, err := os.Stat(d.pathOf(id)); err != nil {
			t.Error(err)
		}
		fs.after = func() {}
	}
}
