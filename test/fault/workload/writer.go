package workload

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
)

// slot is a name under which a writer keeps a file.
type slot struct {
	path  string
	limit int64 // of the file's size
	id    int64 // of the file; 0: there is none that anything is known of
}

// writer writes files of its own, one operation after another.
type writer struct {
	part
	ctx   context.Context
	h     *History // of itself: what it may expect to read
	slots []slot
	stamp uint64
}

const smallLimit = 64 << 10

// write is the role of a writer: it makes files, appends to them, writes over parts of them and replaces them as a whole.
func (p part) write(ctx context.Context) error {
	w := &writer{part: p, ctx: ctx, h: &History{files: map[int64]*file{}, paths: map[string][]binding{}, tree: NewTree()}}
	p.j.history = w.h
	for i := range 12 {
		w.slots = append(w.slots, slot{path: path.Join(w.dir(), fmt.Sprintf("small%d", i)), limit: smallLimit})
	}
	for i := range 4 {
		w.slots = append(w.slots, slot{path: path.Join(w.dir(), fmt.Sprintf("large%d", i)), limit: w.Large})
	}
	for ctx.Err() == nil {
		s := &w.slots[w.rng.IntN(len(w.slots))]
		f := w.h.files[s.id]
		var ok bool
		switch action := w.rng.IntN(10); {
		case f == nil || f.failed || f.size() >= s.limit || action == 0:
			ok = w.replace(s)
		case action == 1:
			ok = w.remove(s)
		case action < 5:
			ok = w.append(s, f)
		case action < 9:
			ok = w.overwrite(s, f)
		default:
			ok = w.verify(s.path, f)
		}
		if !ok {
			s.id = 0 // what is there now is not known: it is replaced by something that is
		}
	}
	return nil
}

// size of a file of which no operation has failed.
func (f *file) size() int64 {
	size := int64(0)
	for _, w := range f.writes {
		size = max(size, w.off+w.len)
	}
	return size
}

// do does an operation of a file, and tells whether it succeeded. The error is in the journal.
func (w *writer) do(op string, id int64, path string, do func() error) bool {
	return w.j.Do(Entry{Op: op, File: id, Path: path}, func(*Entry) error { return do() }) == nil
}

// open opens a file that exists, or makes a new one.
func (w *writer) open(op, path string, id int64, flag int) (f File, made int64) {
	err := w.j.Do(Entry{Op: op, File: id, Path: path}, func(e *Entry) (err error) {
		made = e.File
		f, err = w.fs.Open(path, flag)
		return err
	})
	if err != nil {
		return nil, 0
	}
	return f, made
}

// put writes n bytes at off, or, opened with O_APPEND, at the end, which is there.
func (w *writer) put(f File, op string, id, off, n int64) bool {
	w.pace.spend(w.ctx, n)
	w.stamp++
	e := Entry{Op: op, File: id, Off: off, Len: n, Stamp: stampOf(w.Seed, w.stamp)}
	p := make([]byte, n)
	e.Stamp.Fill(p, off)
	return w.j.Do(e, func(*Entry) error {
		done, err := 0, error(nil)
		if op == opAppend {
			done, err = f.Write(p)
		} else {
			done, err = f.WriteAt(p, off)
		}
		if err == nil && done < len(p) {
			err = io.ErrShortWrite
		}
		return err
	}) == nil
}

// piece is the length of a write: small ones are frequent.
func (w *writer) piece(most int64) int64 {
	n := int64(1) << w.rng.IntN(20)
	return min(n+w.rng.Int64N(n), most)
}

func (w *writer) sync(f File, id int64) bool { return w.do(opSync, id, "", f.Sync) }

// finish closes a file, after a sync half of the time.
func (w *writer) finish(f File, id int64, ok bool) bool {
	if ok && w.rng.IntN(2) == 0 {
		ok = w.sync(f, id)
	}
	return w.do(opClose, id, "", f.Close) && ok
}

// replace makes a new file beside the one of the slot, and renames it over that.
func (w *writer) replace(s *slot) bool {
	temporary := path.Join(w.dir(), fmt.Sprintf("new%d", w.j.seq))
	f, id := w.open(opCreate, temporary, 0, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if f == nil {
		return false
	}
	size := min(1+w.rng.Int64N(s.limit), w.piece(s.limit)*8)
	ok := true
	for off := int64(0); ok && off < size; {
		n := min(size-off, w.piece(512<<10))
		ok = w.put(f, opWrite, id, off, n)
		off += n
	}
	if !w.finish(f, id, ok) {
		return false
	}
	if w.j.Do(Entry{Op: opRename, File: id, Path: temporary, To: s.path}, func(e *Entry) error { return w.fs.Rename(e.Path, e.To) }) != nil {
		return false
	}
	s.id = id
	return true
}

func (w *writer) remove(s *slot) bool {
	ok := w.do(opRemove, s.id, s.path, func() error { return w.fs.Remove(s.path) })
	s.id = 0
	return ok
}

// append writes to the end of a file, several times, with or without syncs.
func (w *writer) append(s *slot, model *file) bool {
	f, id := w.open(opOpen, s.path, s.id, os.O_WRONLY|os.O_APPEND)
	if f == nil {
		return false
	}
	ok := true
	for range 1 + w.rng.IntN(6) {
		if ok = ok && w.put(f, opAppend, id, model.size(), w.piece(32<<10)); ok && w.rng.IntN(2) == 0 {
			ok = w.sync(f, id)
		}
	}
	return w.finish(f, id, ok)
}

// overwrite writes to random places of a file, now and then beyond its end, and reads some of it back.
func (w *writer) overwrite(s *slot, model *file) bool {
	f, id := w.open(opOpen, s.path, s.id, os.O_RDWR)
	if f == nil {
		return false
	}
	ok := true
	for range 1 + w.rng.IntN(8) {
		if !ok {
			break
		}
		switch w.rng.IntN(6) {
		case 0:
			ok = w.sync(f, id)
		case 1:
			ok = w.verifyOpen(f, s.path, model)
		default:
			ok = w.put(f, opWrite, id, w.rng.Int64N(model.size()+1+s.limit/64), w.piece(128<<10))
		}
	}
	return w.finish(f, id, ok)
}

// verify reads the whole file, which must be exactly what this writer wrote last.
func (w *writer) verify(name string, model *file) bool {
	f, id := w.open(opOpen, name, model.id, os.O_RDONLY)
	if f == nil {
		return false
	}
	ok := w.verifyOpen(f, name, model)
	return w.do(opClose, id, "", f.Close) && ok
}

func (w *writer) verifyOpen(f File, name string, model *file) bool {
	seen := &observation{}
	ok := w.j.Do(Entry{Op: opRead, File: model.id, Path: name}, func(e *Entry) error {
		seen.read(f, 0, -1)
		e.Len = seen.bytes
		return seen.err()
	}) == nil
	for _, problem := range judge([]candidate{{model.content(len(model.writes))}}, seen, false) {
		w.j.Found(name, "by its own writer: %v", problem)
	}
	return ok
}
