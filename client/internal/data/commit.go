package data

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	// maxExtents bounds the extents of one commit; longer lists are published in several, in order, the size with the last.
	maxExtents = 16384
	// maxRefusals is how often a commit whose chunks the metaserver refused is tried with others.
	maxRefusals = 5
)

// Commit publishes all that was written before it was called and returns when everyone can see it; durable: when it also
// survives a loss of power of all servers. The commit itself is not undone by the end of ctx, only no longer waited for.
// An error may be that of an earlier write, whose data is lost then.
func (f *File) Commit(ctx context.Context, durable bool) error {
	f.mu.Lock()
	if err := f.takeError(); err != nil {
		f.mu.Unlock()
		return err
	}
	g, losses := f.freeze(durable), f.losses
	if durable {
		for _, g := range f.gens {
			if g.frozen {
				g.durable.Store(true)
			}
		}
	}
	f.startCommitter()
	f.mu.Unlock()
	f.ship()
	if g != nil {
		select {
		case <-g.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		f.mu.Lock()
		err := f.takeError()
		if err == nil && f.losses != losses {
			err = f.loss // another operation has said it, which does not make this one's data safe
		}
		f.mu.Unlock()
		if err != nil {
			return err
		}
	}
	if durable {
		return f.s.writer.syncInode(ctx, f.inode)
	}
	return nil
}

// commitOld publishes what was written a while ago and nobody has asked for since, so that a client that is killed loses little, however
// long its programs keep their files open. Whether that fails, the next operation on the file says.
func (s *Store) commitOld() {
	t := time.NewTicker(s.cfg.CommitAfter / 5)
	defer t.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case now := <-t.C:
			for _, f := range s.list() {
				f.commitOlder(now.Add(-s.cfg.CommitAfter))
			}
		}
	}
}

// commitOlder publishes what is written if the first of it was before a time. It does not wait, and adds nothing to a long queue.
func (f *File) commitOlder(than time.Time) {
	f.mu.Lock()
	k := len(f.gens)
	if k == 0 || f.appending || k > maxGenerations/2 || f.gens[k-1].frozen || f.gens[k-1].empty() || !f.gens[k-1].began.Before(than) {
		f.mu.Unlock()
		return
	}
	f.freeze(false)
	f.startCommitter()
	f.mu.Unlock()
	f.ship()
}

// freeze ends the last generation, if anything is in it, and returns the last one to be committed, nil if there is none.
func (f *File) freeze(durable bool) *generation {
	k := len(f.gens)
	if k == 0 {
		return nil
	}
	g := f.gens[k-1]
	switch {
	case g.frozen:
		return g
	case g.empty() && k > 1:
		return f.gens[k-2]
	case g.empty():
		return nil
	}
	g.frozen = true
	if durable {
		g.durable.Store(true)
	}
	size := f.sizeBefore(g)
	if g.append {
		size += g.end
	} else {
		size = max(size, g.end)
	}
	if g.inline = len(g.frames) == 0 && size <= posix.MaxInline; !g.inline {
		f.cut(g)
	}
	return g
}

// startCommitter has what is frozen committed in the background.
func (f *File) startCommitter() {
	if f.committing || len(f.gens) == 0 || !f.gens[0].frozen {
		return
	}
	f.committing = true
	if !f.s.tasks.run(f.commitAll) {
		f.committing = false
		f.fail(fserr.New(syscall.EIO, "commit inode %d: the file system is closed", f.inode))
	}
}

// commitAll commits the frozen generations in order.
func (f *File) commitAll() {
	f.mu.Lock()
	for len(f.gens) > 0 && f.gens[0].frozen {
		g := f.gens[0]
		f.current = g
		f.mu.Unlock()
		attr, err := f.publish(f.s.ctx, g)
		f.mu.Lock()
		f.current = nil
		f.conclude(g, attr, err)
	}
	f.committing = false
	f.mu.Unlock()
	f.s.drop(f)
}

// conclude makes what a generation published part of what is known to be committed.
func (f *File) conclude(g *generation, attr *pb.Attr, err error) {
	g.publishes = false
	if !g.dead {
		f.gens = f.gens[1:]
		if err != nil {
			if g.session != f.s.meta.SessionGen() {
				err = errSessionLost
			}
			f.s.log.Error("written data could not be published", "inode", f.inode, "error", err)
			f.lose(err)
		}
	}
	if later := f.later; later != nil {
		f.later = nil
		f.observe(later)
	}
	if attr != nil {
		f.observe(attr)
	}
	f.bury(g)
}

// publish makes the commit of a generation, and returns the attributes of the file afterwards.
func (f *File) publish(ctx context.Context, g *generation) (*pb.Attr, error) {
	if g.inline {
		attr, err := f.publishInline(ctx, g)
		if refusal(err) != syscall.E2BIG {
			return attr, err
		}
		f.mu.Lock()
		g.inline = false
		f.cut(g)
		f.mu.Unlock()
		f.ship()
	}
	for refused := 0; ; {
		if err := f.s.writer.settle(ctx, g); err != nil {
			return nil, err
		}
		p := f.s.writer.plan(g)
		attr, base, err := f.publishParts(ctx, g, p)
		f.s.writer.conclude(g, p, base, err)
		switch {
		case err == nil:
			return attr, nil
		case err == errChunkLost:
			continue
		case refusal(err) == syscall.EINVAL && refused < maxRefusals && g.session == f.s.meta.SessionGen():
			// Repair has sealed a chunk under this writer: what was not published of it goes to another.
			refused++
			continue
		}
		return nil, err
	}
}

func (f *File) publishInline(ctx context.Context, g *generation) (*pb.Attr, error) {
	c := f.newCommit(g)
	f.mu.Lock()
	b := g.builder
	for _, s := range b.segs {
		data := append([]byte(nil), (*b.buf)[s.pos:s.pos+s.n]...)
		if k := len(c.Extents); k > 0 && c.Extents[k-1].Offset+c.Extents[k-1].Length == s.off {
			last := c.Extents[k-1]
			last.Data = append(last.Data, data...)
			last.Length += uint64(s.n)
			continue
		}
		c.Extents = append(c.Extents, &pb.Extent{Offset: s.off, Length: uint64(s.n), Data: data})
	}
	f.mu.Unlock()
	f.setSize(c, g)
	r, err := f.send(ctx, g, c)
	if err == nil {
		f.s.metrics.inline.Inc()
	}
	return r.GetAttr(), err
}

func (f *File) newCommit(g *generation) *pb.Commit {
	return &pb.Commit{Inode: f.inode, Append: g.append, Mtime: g.mtime, KillPrivileges: g.unset}
}

// setSize says how long the file is at least. An append says so by what it appends.
func (f *File) setSize(c *pb.Commit, g *generation) {
	if !g.append {
		c.Size = g.end
	}
}

// publishParts returns the attributes afterwards, and where in the file an append went.
func (f *File) publishParts(ctx context.Context, g *generation, parts []*part) (attr *pb.Attr, base uint64, err error) {
	for i, p := range parts {
		c := f.newCommit(g)
		c.Extents = p.extents
		var ok bool
		if c.Chunks, ok = f.s.writer.chunkCommits(p); !ok {
			return nil, 0, errChunkLost
		}
		if i == len(parts)-1 {
			f.setSize(c, g)
		}
		r, err := f.send(ctx, g, c)
		if err != nil {
			return nil, 0, err
		}
		attr, base = r.Attr, r.Offset
	}
	return attr, base, nil
}

func (f *File) send(ctx context.Context, g *generation, c *pb.Commit) (*pb.Result, error) {
	f.mu.Lock()
	if g.session != f.s.meta.SessionGen() || g.dead {
		f.mu.Unlock()
		return nil, errSessionLost
	}
	g.publishes = true
	f.mu.Unlock()
	r, err := f.s.meta.Commit(ctx, c)
	if err == nil && r.GetErrno() != 0 {
		err = fserr.New(syscall.Errno(r.Errno), "commit inode %d: %s", f.inode, r.Message)
	}
	if err != nil {
		f.mu.Lock()
		g.publishes = false
		f.mu.Unlock()
		return nil, fmt.Errorf("commit inode %d: %w", f.inode, err)
	}
	f.s.metrics.commits.Inc()
	return r, nil
}
