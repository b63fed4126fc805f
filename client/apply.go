package client

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"syscall"
	"time"
)

const (
	applyBatch  = 1024      // files in one call
	applyWindow = 16 * 1024 // files submitted and not done
	applyPoll   = 500 * time.Millisecond
)

// ApplyOptions say how ApplyPolicy goes about it.
type ApplyOptions struct {
	// Inherit first gives everything below the path the policy that the path itself has. Else each file keeps its own.
	Inherit bool
	// NoWait returns when all files are submitted. The cluster goes on by itself, unless another metaserver takes the lead.
	NoWait bool
	// Progress is called now and then, from one goroutine.
	Progress func(ApplyProgress)
	// Failed is called, from the same, for what could not be done; the rest goes on. The error names the path. Nil: ApplyPolicy
	// ends with the first.
	Failed func(error)
}

// ApplyProgress is how far ApplyPolicy is.
type ApplyProgress struct {
	Files, Done uint64 // found, and as they should be
	// Total is how many bytes were to be written anew, as far as that is known, and Left how many of them still are.
	Total, Left uint64
	All         bool   // all files are found, and known
	Waiting     string // why it does not get on, empty while it does
	WaitingFor  string // the path of the file that Waiting is about, empty where it is about none in particular
}

// ApplyPolicy has the data that the files at and below a path hold already stored as their policies say: SetPolicy itself
// changes only what is written afterwards. The cluster writes it anew in the background, while files are read and written, and
// ApplyPolicy waits for that. A symlink at the end of the path is followed, others are not. When ctx ends the cluster stops
// after a moment; asked again it goes on where it was: what is stored as it should be costs nothing.
//
// Only the owner of a file and root may: else the error is EPERM. It is errors.ErrUnsupported where the metaserver is too old to
// know how.
func (f *FS) ApplyPolicy(ctx context.Context, name string, o ApplyOptions) (ApplyProgress, error) {
	a := &applier{fs: f, o: o, seen: map[Ino]struct{}{}}
	p, err := f.find(ctx, name, true)
	if err == nil {
		err = a.run(ctx, name, p.attr)
	}
	var pe *fs.PathError
	if err != nil && !errors.As(err, &pe) {
		err = pathError("applypolicy", name, err)
	}
	return a.now, err
}

// applier is one ApplyPolicy.
type applier struct {
	fs     *FS
	o      ApplyOptions
	policy string           // given to all that is below; empty: each keeps its own
	seen   map[Ino]struct{} // files with several names
	queue  []*applied       // not done; the first of them
	old    int              // so many, were submitted
	asked  time.Time
	now    ApplyProgress
	told   time.Time
}

// applied is a file on its way.
type applied struct {
	ino         Ino
	path        string
	total, left uint64
	known       bool
}

func (a *applier) run(ctx context.Context, name string, at Attr) error {
	if a.o.Inherit && at.IsDir() {
		p, err := a.fs.Policy(ctx, name)
		if err != nil {
			return err
		}
		if a.policy = DefaultPolicy; p.Own {
			a.policy = p.String()
		}
	}
	if err := a.visit(ctx, name, at); err != nil {
		return err
	}
	for {
		if err := a.ask(ctx); err != nil {
			return err
		}
		a.now.All = !a.o.NoWait && a.allKnown()
		a.say(len(a.queue) == 0)
		if len(a.queue) == 0 {
			return nil
		}
		if err := pause(ctx, applyPoll); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// visit submits a file, or what is in a directory.
func (a *applier) visit(ctx context.Context, name string, at Attr) error {
	switch {
	case at.IsDir():
		return a.dir(ctx, name, at)
	case !at.IsRegular():
		return nil
	}
	if at.Nlink > 1 {
		if _, again := a.seen[at.Ino]; again {
			return nil
		}
		a.seen[at.Ino] = struct{}{}
	}
	a.now.Files++
	a.queue = append(a.queue, &applied{ino: at.Ino, path: name})
	for len(a.queue)-a.old >= applyBatch || time.Since(a.asked) > applyPoll {
		if err := a.ask(ctx); err != nil {
			return err
		}
		a.say(false)
		if len(a.queue) < applyWindow {
			break
		}
		if err := pause(ctx, applyPoll); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) dir(ctx context.Context, name string, at Attr) error {
	d, err := a.fs.low.OpenDir(ctx, a.fs.cred, at.Ino)
	if err != nil {
		return a.failed(ctx, name, err)
	}
	for offset := uint64(0); ; {
		entries, err := d.ReadAt(ctx, offset)
		if err != nil {
			return a.failed(ctx, name, err)
		}
		if len(entries) == 0 {
			return nil
		}
		for _, e := range entries {
			child := path.Join(name, e.Name)
			if a.policy != "" && (e.Attr.IsDir() || e.Attr.IsRegular()) {
				if err := a.fs.SetPolicy(ctx, child, a.policy); err != nil {
					if err := a.failed(ctx, child, err); err != nil {
						return err
					}
					continue
				}
			}
			if err := a.visit(ctx, child, e.Attr); err != nil {
				return err
			}
		}
		offset = entries[len(entries)-1].Next
	}
}

// failed tells of what could not be done. It returns the error if that ends all.
func (a *applier) failed(ctx context.Context, name string, err error) error {
	var pe *fs.PathError
	if !errors.As(err, &pe) {
		err = pathError("applypolicy", name, err)
	}
	if a.o.Failed == nil || ctx.Err() != nil || errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	a.o.Failed(err)
	return nil
}

// ask submits what is in the queue, again and again, and takes those that are done, or that nobody waits for, out of it.
func (a *applier) ask(ctx context.Context) error {
	a.asked = time.Now()
	var left []*applied
	why, whom := "", "" // what was said before stays until all have answered
	for at := 0; at < len(a.queue); at += applyBatch {
		batch := a.queue[at:min(at+applyBatch, len(a.queue))]
		inodes := make([]uint64, len(batch))
		for i, f := range batch {
			inodes[i] = uint64(f.ino)
		}
		r, err := a.fs.meta.ApplyPolicy(ctx, a.fs.cred, inodes, a.o.NoWait)
		if err != nil {
			return err
		}
		for i, f := range batch {
			s := r.Files[i]
			switch errno := syscall.Errno(s.Errno); {
			case errno == syscall.EAGAIN:
				left = append(left, f)
				continue
			case errno != 0:
				if err := a.failed(ctx, f.path, errno); err != nil {
					return err
				}
				continue
			default:
				a.note(f, s.Total, s.Left, s.Known)
			}
			if s.Done {
				a.note(f, f.total, 0, true)
				a.now.Done++
			}
			if s.Done || a.o.NoWait {
				continue
			}
			if why == "" && s.Problem != "" {
				why, whom = s.Problem, f.path
			}
			left = append(left, f)
		}
		if r.HeldBack != "" {
			why, whom = r.HeldBack, ""
		}
	}
	a.now.Waiting, a.now.WaitingFor = why, whom
	a.queue, a.old = left, len(left)
	return nil
}

// note counts what is known of a file. A new leader knows only of what is left.
func (a *applier) note(f *applied, total, left uint64, known bool) {
	if !known {
		return
	}
	total = max(f.total, total, left)
	a.now.Total += total - f.total
	a.now.Left += left - f.left
	f.total, f.left, f.known = total, left, true
}

func (a *applier) allKnown() bool {
	for _, f := range a.queue {
		if !f.known {
			return false
		}
	}
	return true
}

func (a *applier) say(now bool) {
	if a.o.Progress != nil && (now || time.Since(a.told) > applyPoll/2) {
		a.told = time.Now()
		a.o.Progress(a.now)
	}
}
