package meta

import (
	"syscall"

	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// ticket is what the cache keeps of a mutation in flight.
type ticket struct {
	sent      uint64 // epoch
	inodes    []uint64
	perm      bool // the owner or mode of the first inode may change
	names     []dirName
	guarded   uint64 // the inode whose opens wait, 0 for none
	opened    bool   // what the server was told about it
	create    uint64 // number of the creation, 0 for none
	open      bool   // what it makes counts as open
	abandoned bool   // nobody waits for the result
}

// begin notes that a mutation is about to be sent, and fills in what only the client knows: whether it has the inode open
// that may lose its last name.
func (c *cache) begin(op *pb.Op, open bool) *ticket {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &ticket{sent: c.epoch}
	switch op := op.Op.(type) {
	case *pb.Op_MakeNode:
		t.touch(op.MakeNode.Parent, op.MakeNode.Name)
		t.create, t.open = c.opens.beginCreate(), open
	case *pb.Op_Link:
		t.touch(op.Link.Parent, op.Link.Name)
		t.inodes = append(t.inodes, op.Link.Inode)
	case *pb.Op_Unlink:
		t.touch(op.Unlink.Parent, op.Unlink.Name)
		op.Unlink.Hint, op.Unlink.Opened = c.victim(t, op.Unlink.Parent, op.Unlink.Name)
	case *pb.Op_Rename:
		t.touch(op.Rename.Parent, op.Rename.Name)
		t.touch(op.Rename.NewParent, op.Rename.NewName)
		if e := c.get(op.Rename.Parent); e != nil {
			t.add(e.names[string(op.Rename.Name)].ino)
		}
		op.Rename.Hint, op.Rename.Opened = c.victim(t, op.Rename.NewParent, op.Rename.NewName)
	case *pb.Op_SetAttr:
		t.add(op.SetAttr.Inode)
		t.perm = op.SetAttr.Mode != nil || op.SetAttr.Uid != nil || op.SetAttr.Gid != nil
	case *pb.Op_SetXattr:
		t.add(op.SetXattr.Inode)
		t.perm = true // an ACL is an xattr
	case *pb.Op_RemoveXattr:
		t.add(op.RemoveXattr.Inode)
		t.perm = true
	case *pb.Op_Commit:
		t.add(op.Commit.Inode)
	case *pb.Op_SetLayout:
		t.add(op.SetLayout.Inode)
	case *pb.Op_Relocate:
		t.add(op.Relocate.Inode)
	}
	for i, ino := range t.inodes {
		p := c.pending[ino]
		p.all++
		if t.perm && i == 0 {
			p.perm++
		}
		c.pending[ino] = p
	}
	for _, n := range t.names {
		c.pendingNames[n]++
	}
	return t
}

func (t *ticket) add(ino uint64) {
	if ino != 0 {
		t.inodes = append(t.inodes, ino)
	}
}

func (t *ticket) touch(dir uint64, name []byte) {
	t.add(dir)
	t.names = append(t.names, dirName{dir, string(name)})
}

// victim finds the inode that has a name which a mutation is about to take away, and whether it is open here. Until the
// answer is there, nothing opens it.
func (c *cache) victim(t *ticket, dir uint64, n []byte) (hint uint64, opened bool) {
	e := c.get(dir)
	if e == nil || c.pendingNames[dirName{dir, string(n)}] > 0 {
		return 0, false
	}
	hint = e.names[string(n)].ino
	if hint == 0 {
		return 0, false
	}
	t.add(hint)
	c.opens.protect(hint)
	t.guarded, t.opened = hint, c.opens.counts[hint] > 0
	return hint, t.opened
}

// finish takes the answer to a mutation, nil when there will be none.
func (c *cache) finish(t *ticket, op *pb.Op, r *pb.Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unpend(t)
	switch {
	case r == nil:
		for _, ino := range t.inodes {
			c.forget(ino)
		}
	case r.Errno == 0:
		c.apply(t, op, r)
	}
	if t.abandoned || r == nil {
		// Whoever asked for it does not learn what it changed.
		c.notify(t.inodes, func() {})
	}
	if t.create != 0 {
		if t.open && !t.abandoned && r != nil && r.Errno == 0 && r.Attr != nil && !r.Existed {
			c.opens.counts[r.Attr.Inode]++
		}
		c.opens.endCreate(t.create)
	}
	if t.guarded != 0 {
		c.opens.unprotect(t.guarded)
		if t.opened && (r == nil || r.Errno == 0) {
			c.suspect(t.guarded)
		}
	}
}

func (c *cache) suspect(ino uint64) {
	c.opens.suspects[ino] = 0
	if c.opens.counts[ino] == 0 {
		c.opens.wake()
	}
}

func (c *cache) unpend(t *ticket) {
	for i, ino := range t.inodes {
		p := c.pending[ino]
		p.all--
		if t.perm && i == 0 {
			p.perm--
		}
		if p.all == 0 {
			delete(c.pending, ino)
		} else {
			c.pending[ino] = p
		}
	}
	for _, n := range t.names {
		if c.pendingNames[n]--; c.pendingNames[n] == 0 {
			delete(c.pendingNames, n)
		}
	}
}

// apply makes the cache show what a mutation did.
func (c *cache) apply(t *ticket, op *pb.Op, r *pb.Result) {
	switch op := op.Op.(type) {
	case *pb.Op_MakeNode:
		dir := c.own(t, r, r.Parent, op.MakeNode.Parent)
		made := c.own(t, r, r.Attr, r.Attr.GetInode())
		c.named(dir, op.MakeNode.Parent, op.MakeNode.Name, r.Attr.GetInode(), r)
		if made != nil && !r.Existed {
			c.fresh(made, r)
		}
	case *pb.Op_Link:
		dir := c.own(t, r, r.Parent, op.Link.Parent)
		c.own(t, r, r.Attr, op.Link.Inode)
		c.named(dir, op.Link.Parent, op.Link.Name, op.Link.Inode, r)
	case *pb.Op_Unlink:
		dir := c.own(t, r, r.Parent, op.Unlink.Parent)
		c.lostName(t, r, r.Attr)
		c.named(dir, op.Unlink.Parent, op.Unlink.Name, 0, r)
	case *pb.Op_Rename:
		c.renamed(t, op.Rename, r)
	case *pb.Op_SetAttr:
		c.own(t, r, r.Attr, op.SetAttr.Inode)
	case *pb.Op_SetXattr:
		c.own(t, r, r.Attr, op.SetXattr.Inode)
	case *pb.Op_RemoveXattr:
		c.own(t, r, r.Attr, op.RemoveXattr.Inode)
	case *pb.Op_Commit:
		c.own(t, r, r.Attr, op.Commit.Inode)
	case *pb.Op_SetLayout:
		c.own(t, r, r.Attr, op.SetLayout.Inode)
	case *pb.Op_Relocate:
		c.forget(op.Relocate.Inode) // its version is the same, but not where its data is
	}
}

// own caches attributes from a result. The result need not say that they are leased: what is in the cache and was not
// revoked since the mutation was sent still is. Otherwise whatever is known of the inode is dropped.
func (c *cache) own(t *ticket, r *pb.Result, a *pb.Attr, ino uint64) *entry {
	if a == nil || a.Inode != ino || !r.Leased && c.entries[ino] == nil {
		c.forget(ino)
		return nil
	}
	e := c.learn(a, t.sent)
	if e == nil {
		c.forget(ino)
	}
	return e
}

// named caches what a name in dir means after the mutation.
func (c *cache) named(dir *entry, ino uint64, n []byte, child uint64, r *pb.Result) {
	if dir == nil || r.Parent == nil && r.Parent2 == nil {
		c.forget(ino)
		return
	}
	c.learnName(dir, string(n), child, r.Index)
}

// fresh notes that nobody else can have put anything into an inode just made.
func (c *cache) fresh(e *entry, r *pb.Result) {
	switch r.Attr.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		if e.complete == 0 && r.Attr.Size == 0 {
			e.complete = r.Index
		}
	case syscall.S_IFREG:
		if r.Attr.Size == 0 && e.attr.DataVersion == r.Attr.DataVersion && e.blocks == nil {
			c.keepBlock(e, 0, &pb.ExtentsReply{Attr: r.Attr, Leased: true, Index: r.Index, End: posix.ExtentBlock})
		}
	}
}

// lostName takes the attributes of an inode that lost a name, perhaps its last.
func (c *cache) lostName(t *ticket, r *pb.Result, a *pb.Attr) {
	if a == nil {
		return
	}
	if a.Nlink == 0 && c.opens.counts[a.Inode] == 0 {
		c.forget(a.Inode)
		return
	}
	c.own(t, r, a, a.Inode)
}

func (c *cache) renamed(t *ticket, op *pb.Rename, r *pb.Result) {
	from := c.own(t, r, r.Parent, op.Parent)
	to := from
	if op.NewParent != op.Parent {
		to = c.own(t, r, r.Parent2, op.NewParent)
	}
	if r.Parent.GetVersion() != r.Index || r.Attr == nil {
		// The two names are of one inode, and nothing happened; or who knows.
		c.forget(op.Parent)
		c.forget(op.NewParent)
		return
	}
	c.own(t, r, r.Attr, r.Attr.Inode)
	left := uint64(0)
	if op.Exchange {
		left = r.Replaced.GetInode()
	}
	c.named(from, op.Parent, op.Name, left, r)
	c.named(to, op.NewParent, op.NewName, r.Attr.Inode, r)
	c.lostName(t, r, r.Replaced)
}
