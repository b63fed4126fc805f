package rewrite

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
)

const (
	filesAPass  = 16 << 10
	forgetAfter = time.Minute // a file that nobody asks about any more
	waitWritten = 5 * time.Second
)

// files are those that somebody wants stored as their policies say, in the order in which they were asked for.
type files struct {
	byInode map[uint64]*file
	next    uint64
}

// file is one of them.
type file struct {
	inode uint64
	want  chunk.Layout // when it was last asked for
	turn  uint64
	asked time.Time
	keep  bool      // though nobody asks any more
	after time.Time // not before
	moved uint64    // bytes converted

	// of the last look at it
	looked  bool
	done    bool
	left    uint64 // bytes that are not as they should be
	problem string

	// of the look under way, and its jobs
	found uint64 // bytes that are not as they should be
	gone  uint64 // of these, converted meanwhile
	unfit uint64 // of these, in chunks that cannot be read, or are still being written
	begun bool   // some of it was given to a job, or left for later
}

// Conversion is how far a file is.
type Conversion struct {
	Total, Left uint64 // bytes to be converted: in all, and now
	Known       bool   // it was looked at
	Done        bool   // all of it is as its policy says
	Problem     string // why it does not get on, empty while it does
	Refused     bool   // too many files are being converted: ask again later
}

// Wish is a file that is to be stored as its policy says.
type Wish struct {
	Inode  uint64
	Policy chunk.Layout // zero: the cluster's default
}

// Convert has files stored as their policies say, and tells how far that is. It goes on as long as the same is asked again,
// at least every half minute, or, with keep, until it is done. What is stored so already costs nothing. That a file is done is
// said once: asked again it is looked at again.
func (e *Engine) Convert(wishes []Wish, keep bool) []Conversion {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]Conversion, len(wishes))
	for i, w := range wishes {
		f := e.files.byInode[w.Inode]
		switch {
		case f == nil && len(e.files.byInode) >= maxFiles:
			out[i].Refused = true
			continue
		case f == nil:
			f = &file{inode: w.Inode, want: w.Policy, turn: e.files.next}
			e.files.next++
			e.files.byInode[w.Inode] = f
		case f.want != w.Policy: // what is known is of another
			f.want, f.looked, f.done, f.moved, f.left, f.begun, f.after = w.Policy, false, false, 0, 0, true, time.Time{}
		}
		f.asked, f.keep = now, f.keep || keep
		out[i] = Conversion{Total: f.moved + f.left, Left: f.left, Known: f.looked, Done: f.done, Problem: f.problem}
		if f.done {
			delete(e.files.byInode, w.Inode)
		}
	}
	e.poke()
	return out
}

// wanted returns the files to be looked at now, and forgets those that nobody wants any more.
func (e *Engine) wanted(now time.Time) []*file {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []*file
	for inode, f := range e.files.byInode {
		asked := now.Sub(f.asked) < forgetAfter
		switch {
		case !asked && (!f.keep || f.done):
			delete(e.files.byInode, inode)
		case !f.done && !now.Before(f.after):
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b *file) int { return cmp.Compare(a.turn, b.turn) })
	return out[:min(len(out), filesAPass)]
}

// stillWanted tells whether somebody asked for a file lately.
func (e *Engine) stillWanted(f *file) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return f.keep || time.Since(f.asked) < forgetAfter/2
}

// convert converts files, as many as go in one pass.
func (e *Engine) convert(ctx context.Context, list []*file) error {
	if err := e.sweep(); err != nil {
		return err
	}
	now := time.Now()
	p := e.newPass(ctx)
	defer p.wait()
	failed := map[uint64]error{} // guarded by e.mu
	p.done = func(b *batch, err error) { e.converted(b, err, failed) }
	c := &converter{e: e, readable: newReadable(e.cluster.Servers())}
	b := newBuilder(p.emit)
	looked := list[:0:0]
	for _, f := range list {
		if b.bytes > passBytes {
			break
		}
		if !e.stillWanted(f) {
			continue
		}
		looked = append(looked, f)
		if err := c.file(p.ctx, f, b); err != nil {
			return err
		}
	}
	if err := b.flush(p.ctx); err != nil {
		return err
	}
	moved, jobs := p.wait()
	e.settle(looked, failed)
	if moved > 0 || jobs > 0 {
		e.log.Info("converted files to their policies", "files", len(looked), "bytes", moved, "failed_jobs", jobs, "took", time.Since(now).Round(time.Millisecond))
	}
	return nil
}

// converted counts what a job has done.
func (e *Engine) converted(b *batch, err error, failed map[uint64]error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for inode, bytes := range b.files {
		f := e.files.byInode[inode]
		switch {
		case err != nil:
			failed[inode] = err
		case f != nil:
			f.moved += bytes
			f.gone += bytes
			f.left -= min(bytes, f.left)
		}
	}
}

// settle decides which files of a pass are done. Every other one is looked at again.
func (e *Engine) settle(list []*file, failed map[uint64]error) {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range list {
		err := failed[f.inode]
		f.problem = ""
		switch {
		case err != nil:
			f.problem = err.Error()
			f.after = now.Add(waitWritten)
		case f.unfit > 0:
			f.problem = "some of it is in chunks that clients still write to, or that cannot be read now"
			f.after = now.Add(waitWritten)
		case f.begun: // looked at again: it may have changed meanwhile
		default:
			f.done = true
		}
	}
}

// converter finds what of files is not stored as their policies say.
type converter struct {
	e        *Engine
	readable *readable
}

// file adds what of a file is to be converted to the builder, and counts all of it.
func (c *converter) file(ctx context.Context, f *file, b *builder) error {
	c.note(func() { f.found, f.gone, f.unfit, f.begun = 0, 0, 0, false })
	from, more := namespace.FileBlock{Inode: f.inode}, true
	for more {
		if err := ctx.Err(); err != nil {
			return err
		}
		var page []found
		var err error
		var unfit, fit uint64
		if page, unfit, from, more, err = c.page(from); err != nil {
			return err
		}
		for _, p := range page {
			for _, x := range p.list {
				fit += x.Length
			}
		}
		c.note(func() { f.found, f.unfit, f.begun = f.found+fit+unfit, f.unfit+unfit, f.begun || fit > 0 })
		if b.bytes > 2*passBytes {
			continue // the rest another time
		}
		if !c.e.stillWanted(f) {
			c.note(func() { f.begun = true })
			return nil
		}
		for _, p := range page {
			if err := b.add(ctx, p.want, p.at, p.extents, p.list); err != nil {
				return err
			}
		}
	}
	c.note(func() { f.looked, f.left = true, f.found-min(f.gone, f.found) })
	return nil
}

func (c *converter) note(fn func()) {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	fn()
}

// page reads some blocks of a file, so that commands get in between. unfit is how many bytes cannot be converted now.
func (c *converter) page(from namespace.FileBlock) (out []found, unfit uint64, next namespace.FileBlock, more bool, err error) {
	blocks, extents := 0, 0
	err = c.e.cluster.View(func(r kv.Reader) error {
		want, err := namespace.LayoutOf(r, from.Inode)
		if err != nil {
			return nil // it was deleted: nothing is to be done
		}
		if want.IsZero() {
			want = c.e.cluster.Default()
		}
		namespace.Blocks(r, from, func(b namespace.BlockExtents) bool {
			if b.Inode != from.Inode {
				return false
			}
			if blocks++; blocks > blocksAView || extents > extentsAView {
				next, more = b.FileBlock, true
				return false
			}
			extents += b.Len()
			list, n := c.block(r, b, want)
			unfit += n
			if len(list) > 0 {
				out = append(out, found{b.FileBlock, want, b.Len(), list})
			}
			return true
		})
		return nil
	})
	return out, unfit, next, more, err
}

// block returns what of a block is in another layout, and how much more of it is but cannot be read, or not yet.
func (c *converter) block(r kv.Reader, b namespace.BlockExtents, want chunk.Layout) (list []namespace.Extent, unfit uint64) {
	for i := range b.Len() {
		x := b.At(i)
		if rec := c.readable.sealed(r, x.Chunk); rec != nil {
			if !same(rec.Layout, want) {
				list = append(list, x)
			}
		} else if rec, ok := namespace.Chunk(r, x.Chunk); ok && !same(rec.Layout, want) {
			unfit += x.Length
		}
	}
	return list, unfit
}

// same tells whether data in one layout is stored as the other asks for.
func same(a, b chunk.Layout) bool { return a.Data == b.Data && a.Parity == b.Parity }
