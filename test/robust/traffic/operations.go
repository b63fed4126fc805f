package traffic

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/shoalfs/shoalfs/test/fault/workload"
	"github.com/shoalfs/shoalfs/test/robust/history"
	"github.com/shoalfs/shoalfs/test/robust/model"
)

// operate does a random operation.
func (w *worker) operate(t *target) {
	switch t.kind {
	case model.Directory:
		w.names(t)
	case model.Attrs:
		w.attrs(t)
	case model.Register:
		if w.rng.IntN(2) == 0 {
			w.put(t, history.Write, os.O_WRONLY)
		} else {
			w.read(t)
		}
	case model.Log:
		if w.rng.IntN(2) == 0 {
			w.put(t, history.Append, os.O_WRONLY|os.O_APPEND)
		} else {
			w.read(t)
		}
	}
}

// audit reads all that an object has.
func (w *worker) audit(t *target) {
	switch t.kind {
	case model.Directory:
		w.list(t)
		for _, name := range model.Names {
			w.lookup(t, name, w.links)
		}
	case model.Attrs:
		w.stat(t)
	default:
		w.read(t)
	}
}

// do does an operation and notes it. Whatever is wrong with it is in the journal. Some end early, where the system lets them.
func (w *worker) do(t *target, in history.Input, do func(context.Context) (history.Output, error)) {
	ctx, cancel := w.context()
	defer cancel()
	_, _ = w.journal.Do(w.number, t.name(), in, func() (history.Output, error) {
		out, err := do(ctx)
		return outcome(ctx, in.Op, out, err)
	})
}

// patience is how long operations that are given up may take at most. Only readers give up in the end what gets no answer:
// of a change that may or may not be done the model has to try both.
const (
	patience = 20 * time.Millisecond
	readers  = 400 * time.Millisecond
)

func (w *worker) context() (context.Context, context.CancelFunc) {
	switch {
	case w.rng == nil || !w.sys.Cancels():
	case w.rng.IntN(60) == 0:
		return context.WithTimeout(context.Background(), time.Duration(w.rng.Int64N(int64(patience))))
	case w.reads():
		return context.WithTimeout(context.Background(), readers)
	}
	return context.Background(), func() {}
}

// reads tells whether the worker changes nothing. One of each client does not, so that it goes on asking while those that change
// something wait for the cluster: it is who may hear something old. The content of files, which others of the client may be at,
// is not for it.
func (w *worker) reads() bool { return w.number == 0 && w.sys.Cancels() }

// did is the answer of an operation that says no more than how it ended.
func did(err error) (history.Output, error) { return history.Output{}, err }

func (w *worker) name() string { return model.Names[w.rng.IntN(len(model.Names))] }

// names does an operation of a directory: half of them change something.
func (w *worker) names(t *target) {
	if w.reads() || w.rng.IntN(2) == 0 {
		w.look(t)
		return
	}
	ops := t.dir.Ops()
	w.change(t, ops[w.rng.IntN(len(ops))])
}

// look does an operation of a directory that changes nothing.
func (w *worker) look(t *target) {
	switch n := w.rng.IntN(10); {
	case n < 3:
		w.list(t)
	case n < 7:
		w.lookup(t, w.name(), func(*target, found) {})
	default:
		w.lookup(t, w.name(), w.links)
	}
}

func (w *worker) change(t *target, op history.Op) {
	in := history.Input{Op: op, Name: w.name()}
	switch op {
	case history.Link:
		w.lookup(t, in.Name, w.link)
		return
	case history.Rename, history.NoReplace, history.Exchange:
		for in.To = w.name(); in.To == in.Name; {
			in.To = w.name()
		}
	}
	w.do(t, in, func(ctx context.Context) (out history.Output, err error) {
		switch op {
		case history.Create:
			out.Inode, err = t.dir.Create(ctx, in.Name)
		case history.Mkdir:
			out.Inode, err = t.dir.Mkdir(ctx, in.Name)
			out.Dir = true
		case history.Unlink:
			err = t.dir.Unlink(ctx, in.Name)
		case history.Rmdir:
			err = t.dir.Rmdir(ctx, in.Name)
		default:
			err = t.dir.Rename(ctx, op, in.Name, in.To)
		}
		return out, err
	})
}

func (w *worker) list(t *target) {
	w.do(t, history.Input{Op: history.List}, func(ctx context.Context) (out history.Output, err error) {
		out.Names, err = t.dir.List(ctx)
		return out, err
	})
}

// lookup looks a name up and then does something with the file that has it.
func (w *worker) lookup(t *target, name string, then func(*target, found)) {
	var f found
	w.do(t, history.Input{Op: history.Lookup, Name: name}, func(ctx context.Context) (out history.Output, err error) {
		if f, err = t.dir.Lookup(ctx, name); err != nil {
			return out, err
		}
		return history.Output{Inode: f.Inode(), Dir: f.Dir()}, nil
	})
	if f == nil {
		return
	}
	defer f.Close()
	if !f.Dir() {
		then(t, f)
	}
}

func (w *worker) links(t *target, f found) {
	w.do(t, history.Input{Op: history.Links, Inode: f.Inode()}, func(ctx context.Context) (out history.Output, err error) {
		out.Links, err = f.Links(ctx)
		return out, err
	})
}

func (w *worker) link(t *target, f found) {
	in := history.Input{Op: history.Link, Inode: f.Inode(), To: w.name()}
	w.do(t, in, func(ctx context.Context) (history.Output, error) { return did(t.dir.Link(ctx, in.Inode, in.To)) })
}

func (w *worker) attrs(t *target) {
	switch n := w.rng.IntN(4); {
	case w.reads() || n > 1:
		w.stat(t)
	case n == 0:
		in := history.Input{Op: history.Chmod, Mode: 0o600 | w.rng.Uint32N(0o100)}
		w.do(t, in, func(ctx context.Context) (history.Output, error) { return did(w.sys.Chmod(ctx, t.path(), in.Mode)) })
	default:
		in := history.Input{Op: history.Truncate, Size: w.rng.Int64N(1 << 20)}
		w.do(t, in, func(ctx context.Context) (history.Output, error) { return did(w.sys.Truncate(ctx, t.path(), in.Size)) })
	}
}

func (w *worker) stat(t *target) {
	w.do(t, history.Input{Op: history.Stat}, func(ctx context.Context) (history.Output, error) { return w.sys.Stat(ctx, t.path()) })
}

// content does an operation of a file's content, from open to close. It is not given up half-way: what it wrote until then would be
// seen by this client and not by others, as long as it likes.
func (w *worker) content(t *target, in history.Input, flag int, do func(workload.File) (history.Output, error)) {
	t.content.Lock()
	defer t.content.Unlock()
	_, _ = w.journal.Do(w.number, t.name(), in, func() (history.Output, error) { // what is wrong is in the journal
		f, err := w.sys.Open(t.path(), flag)
		if err != nil {
			return did(err)
		}
		out, err := do(f)
		return out, errors.Join(err, f.Close())
	})
}

func (w *worker) put(t *target, op history.Op, flag int) {
	in := history.Input{Op: op, Value: w.next()}
	w.content(t, in, flag, func(f workload.File) (history.Output, error) {
		b := record(in.Value, t.record())
		n, err := 0, error(nil)
		if op == history.Append {
			n, err = f.Write(b)
		} else {
			n, err = f.WriteAt(b, 0)
		}
		if err == nil && n < len(b) {
			err = io.ErrShortWrite
		}
		if err == nil {
			err = f.Sync()
		}
		return did(err)
	})
}

func (w *worker) read(t *target) {
	w.content(t, history.Input{Op: history.Read}, os.O_RDONLY, func(f workload.File) (out history.Output, err error) {
		b, err := readAll(f, t.record())
		out.List, out.Torn = values(b, t.record())
		return out, err
	})
}
