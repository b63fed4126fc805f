package meta

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// read runs one read within the session until it is answered. sent is the epoch that it was sent in.
func (c *Client) read(ctx context.Context, method string, cred posix.Cred, f func(context.Context, pb.MetaClient, *pb.ReadContext) error) (sent uint64, err error) {
	for {
		s, err := c.await(ctx)
		if err != nil {
			return 0, err
		}
		rc := &pb.ReadContext{Session: s.id, Cred: credOf(cred)}
		err = c.conn.call(ctx, method, nil, func(ctx context.Context, api pb.MetaClient) error {
			sent = c.cache.sent()
			return f(ctx, api, rc)
		})
		if !errors.Is(err, errSession) {
			return sent, err
		}
		c.lost(s)
	}
}

func (c *Client) hit(ok bool) {
	if ok {
		c.metrics.hits.Inc()
	} else {
		c.metrics.misses.Inc()
	}
}

// Lookup finds what a name in a directory means. The caller must be allowed to search the directory.
func (c *Client) Lookup(ctx context.Context, cred posix.Cred, parent uint64, name string) (Found, error) {
	f, child, ok, err := c.cache.lookup(cred, parent, name)
	c.hit(ok)
	if ok {
		return f, err
	}
	if child != 0 {
		a, until, err := c.GetAttr(ctx, child)
		if err == nil || !isErrno(err, syscall.ENOENT) && !isErrno(err, syscall.ESTALE) { // else the name went meanwhile
			return Found{Attr: a, Until: until, NameUntil: f.NameUntil}, err
		}
	}
	var r *pb.LookupReply
	sent, err := c.read(ctx, "Lookup", cred, func(ctx context.Context, api pb.MetaClient, rc *pb.ReadContext) error {
		var err error
		r, err = api.Lookup(ctx, &pb.LookupRequest{Ctx: rc, Parent: parent, Name: []byte(name)})
		return err
	})
	if err != nil {
		return Found{}, err
	}
	return c.cache.lookedUp(parent, name, r, sent), nil
}

func (c *cache) lookedUp(parent uint64, n string, r *pb.LookupReply, sent uint64) Found {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := Found{Attr: r.Attr}
	if r.ParentLeased && r.Parent.GetInode() == parent {
		if e := c.learn(r.Parent, sent); e != nil {
			c.learnName(e, n, r.Attr.GetInode(), r.Index)
			if c.pendingNames[dirName{parent, n}] == 0 {
				f.NameUntil = c.until
			}
		}
	}
	if r.Leased && r.Attr != nil {
		f.Attr, f.Until = c.learned(r.Attr, sent)
	}
	return f
}

// learned caches attributes and returns the newest view of the inode, with how long it may be used. mu is held.
func (c *cache) learned(a *pb.Attr, sent uint64) (*pb.Attr, time.Time) {
	e := c.learn(a, sent)
	if e == nil {
		return a, time.Time{}
	}
	return e.attr, c.usable(a.Inode)
}

// GetAttr returns the attributes of an inode, and how long they may be used without asking.
func (c *Client) GetAttr(ctx context.Context, ino uint64) (*pb.Attr, time.Time, error) {
	a, until := c.cache.attr(ino)
	c.hit(a != nil)
	if a != nil {
		return a, until, nil
	}
	var r *pb.GetAttrReply
	sent, err := c.read(ctx, "GetAttr", posix.Cred{}, func(ctx context.Context, api pb.MetaClient, rc *pb.ReadContext) error {
		var err error
		r, err = api.GetAttr(ctx, &pb.GetAttrRequest{Ctx: rc, Inode: ino})
		return err
	})
	if err != nil {
		return nil, time.Time{}, err
	}
	if r.Attr == nil || r.Attr.Inode != ino {
		return nil, time.Time{}, fserr.New(syscall.EIO, "the metaserver's answer is not about inode %d", ino)
	}
	if !r.Leased {
		return r.Attr, time.Time{}, nil
	}
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	a, until = c.cache.learned(r.Attr, sent)
	return a, until, nil
}

const (
	openTries   = 8
	openBackoff = 2 * time.Millisecond
)

// Open checks that an inode may be opened for access (posix.Read, Write, Execute) and records that it is open:
// CloseInode takes that back. Under a lease it costs no message.
func (c *Client) Open(ctx context.Context, cred posix.Cred, ino uint64, access uint32) (*pb.Attr, error) {
	a, err := c.cache.open(ctx, cred, ino, access)
	c.hit(a != nil || err != nil)
	if a != nil || err != nil {
		return a, err
	}
	if a, err = c.askOpen(ctx, cred, ino, access); err != nil {
		c.CloseInode(ino)
		return nil, err
	}
	return a, nil
}

// askOpen asks the server whether an inode that is recorded as open already may be opened.
func (c *Client) askOpen(ctx context.Context, cred posix.Cred, ino uint64, access uint32) (*pb.Attr, error) {
	for try := range openTries {
		var r *pb.ExtentsReply
		sent, err := c.read(ctx, "Open", cred, func(ctx context.Context, api pb.MetaClient, rc *pb.ReadContext) error {
			var err error
			r, err = api.Open(ctx, &pb.OpenRequest{Ctx: rc, Inode: ino, Access: access})
			return err
		})
		if err != nil {
			return nil, err
		}
		if r.Attr == nil || r.Attr.Inode != ino {
			return nil, fserr.New(syscall.EIO, "the metaserver's answer is not about inode %d", ino)
		}
		if r.Leased {
			c.cache.mu.Lock()
			defer c.cache.mu.Unlock()
			c.cache.learnExtents(r, sent)
			return r.Attr, nil
		}
		if try == openTries-1 {
			return r.Attr, nil
		}
		// Somebody changes it just now. The server knows of this open; a lease makes sure that it asks again.
		pauseFor(ctx, openBackoff<<try)
	}
	return nil, ctx.Err()
}

// CloseInode takes back what one Open or Create recorded.
func (c *Client) CloseInode(ino uint64) { c.cache.close(ino) }

// Entry is a name in a directory with what it means.
type Entry struct {
	Name      string
	Attr      *pb.Attr
	Until     time.Time // how long the attributes may be used without asking
	NameUntil time.Time // likewise the name; set by Refresh
}

// Listing goes through a directory in the order of its names.
type Listing struct {
	ino   uint64
	after string
	eof   bool
	sent  uint64 // epoch of the first page
	index uint64 // log index of the first page
	whole bool   // it began at the start and every page was leased
}

// List starts a listing of the names that sort after the given one, "" for all.
func (c *Client) List(ino uint64, after string) *Listing {
	return &Listing{ino: ino, after: after, whole: after == ""}
}

// Next returns the next entries, at most limit, none at the end. The caller must be allowed to read the directory.
func (c *Client) Next(ctx context.Context, cred posix.Cred, l *Listing, limit int) ([]Entry, error) {
	if l.eof {
		return nil, nil
	}
	if l.after == "" {
		entries, ok, err := c.cache.list(cred, l.ino)
		c.hit(ok)
		if ok {
			l.eof = true
			return entries, err
		}
	}
	var r *pb.ReadDirReply
	sent, err := c.read(ctx, "ReadDir", cred, func(ctx context.Context, api pb.MetaClient, rc *pb.ReadContext) error {
		var err error
		r, err = api.ReadDir(ctx, &pb.ReadDirRequest{Ctx: rc, Inode: l.ino, After: []byte(l.after), Limit: uint32(limit)})
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(r.Entries) == 0 && !r.Eof {
		return nil, fserr.New(syscall.EIO, "the metaserver's listing of inode %d does not get on", l.ino)
	}
	if l.after == "" {
		l.sent, l.index = sent, r.Index
	}
	if n := len(r.Entries); n > 0 {
		l.after = string(r.Entries[n-1].Name)
	}
	l.eof = r.Eof
	return c.cache.listed(l, r, sent), nil
}

// listed caches a page of a listing.
func (c *cache) listed(l *Listing, r *pb.ReadDirReply, sent uint64) []Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	l.whole = l.whole && r.Leased && r.Attr != nil
	var dir *entry
	if r.Leased && r.Attr != nil && r.Attr.Inode == l.ino {
		dir = c.learn(r.Attr, sent)
	}
	out := make([]Entry, 0, len(r.Entries))
	for _, d := range r.Entries {
		if d.Attr == nil {
			continue
		}
		e := Entry{Name: string(d.Name), Attr: d.Attr}
		if d.Leased {
			e.Attr, e.Until = c.learned(d.Attr, sent)
		}
		if dir != nil {
			c.learnName(dir, e.Name, d.Attr.Inode, r.Index)
		}
		out = append(out, e)
	}
	if l.whole && l.eof && c.trusted(l.ino, l.sent) {
		if dir = c.entries[l.ino]; dir != nil && dir.complete == 0 {
			dir.complete = l.index
		}
	}
	return out
}

// list answers a whole listing from the cache; ok is false where it cannot.
func (c *cache) list(cred posix.Cred, ino uint64) (entries []Entry, ok bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.get(ino)
	if e == nil || e.complete == 0 || c.pending[ino].all > 0 {
		return nil, false, nil
	}
	if err := mayRead(cred, e.attr, posix.Read); err != nil {
		return nil, true, err
	}
	for n, to := range e.names {
		if to.ino == 0 {
			continue
		}
		child := c.get(to.ino)
		if child == nil || c.pending[to.ino].all > 0 {
			return nil, false, nil
		}
		entries = append(entries, Entry{Name: n, Attr: child.attr, Until: c.until})
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries, true, nil
}

// Refresh replaces what became old since the entries were read from the directory, and says how long it may be used now.
func (c *Client) Refresh(dir uint64, entries []Entry) {
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	in := c.cache.get(dir)
	for i := range entries {
		e := &entries[i]
		e.Until = c.cache.usable(e.Attr.Inode)
		e.NameUntil = time.Time{}
		if in != nil && in.names[e.Name].ino == e.Attr.Inode && c.cache.pendingNames[dirName{dir, e.Name}] == 0 {
			e.NameUntil = c.cache.until
		}
		if have := c.cache.entries[e.Attr.Inode]; have != nil {
			if have.attr.Version >= e.Attr.Version {
				e.Attr = have.attr
			} else {
				e.Until = time.Time{}
			}
		}
	}
}

// GetXattr returns an extended attribute's value. Under a lease on an inode that has none it costs no message.
func (c *Client) GetXattr(ctx context.Context, cred posix.Cred, ino uint64, name string) ([]byte, error) {
	if a, _ := c.cache.attr(ino); a != nil && !a.HasXattrs {
		c.hit(true)
		return nil, syscall.ENODATA
	}
	var r *pb.GetXattrReply
	_, err := c.read(ctx, "GetXattr", cred, func(ctx context.Context, api pb.MetaClient, rc *pb.ReadContext) error {
		var err error
		r, err = api.GetXattr(ctx, &pb.GetXattrRequest{Ctx: rc, Inode: ino, Name: name})
		return err
	})
	return r.GetValue(), err
}

// ListXattr returns the names of an inode's extended attributes.
func (c *Client) ListXattr(ctx context.Context, cred posix.Cred, ino uint64) ([]string, error) {
	if a, _ := c.cache.attr(ino); a != nil && !a.HasXattrs {
		c.hit(true)
		return nil, nil
	}
	var r *pb.ListXattrReply
	_, err := c.read(ctx, "ListXattr", cred, func(ctx context.Context, api pb.MetaClient, rc *pb.ReadContext) error {
		var err error
		r, err = api.ListXattr(ctx, &pb.ListXattrRequest{Ctx: rc, Inode: ino})
		return err
	})
	return r.GetNames(), err
}

// StatFS says how full the cluster is.
func (c *Client) StatFS(ctx context.Context) (r *pb.StatFSReply, err error) {
	err = c.conn.call(ctx, "StatFS", nil, func(ctx context.Context, api pb.MetaClient) error {
		var err error
		r, err = api.StatFS(ctx, &pb.StatFSRequest{})
		return err
	})
	return r, err
}

// Status says how the cluster is.
func (c *Client) Status(ctx context.Context) (r *pb.StatusReply, err error) {
	err = c.conn.call(ctx, "Status", nil, func(ctx context.Context, api pb.MetaClient) error {
		var err error
		r, err = api.Status(ctx, &pb.StatusRequest{})
		return err
	})
	return r, err
}

// Servers lists the chunk servers.
func (c *Client) Servers(ctx context.Context) ([]*pb.ServerInfo, error) {
	var r *pb.ServersReply
	err := c.conn.call(ctx, "Servers", nil, func(ctx context.Context, api pb.MetaClient) error {
		var err error
		r, err = api.Servers(ctx, &pb.ServersRequest{})
		return err
	})
	if err != nil {
		return nil, err
	}
	c.learnServers(r.Servers)
	return r.Servers, nil
}
