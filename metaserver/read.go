package metaserver

import (
	"context"
	"slices"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// maxDirReply bounds the names and attributes of one ReadDirReply, in bytes, well below the size of a message.
const maxDirReply = 4 << 20

// reading is a read under way: its leases are asked for first, then the leadership is confirmed, then the state is read.
type reading struct {
	ctx     context.Context
	l       *leader
	session uint64 // 0: no lease is wanted
	cred    posix.Cred
	index   uint64 // the state read holds at least the commands up to this
}

// read runs a method: prepare asks for leases, fn reads. Either may be nil.
func (s *Server) read(ctx context.Context, method string, rc *pb.ReadContext, prepare func(*reading) error, fn func(*reading, kv.Reader) error) (err error) {
	start := time.Now()
	defer func() {
		s.metrics.read(method, err, time.Since(start))
		err = rpc.ToStatus(err)
	}()
	l, err := s.leading()
	if err != nil {
		return err
	}
	if n := len(rc.GetCred().GetGroups()); n > posix.MaxGroups {
		return fserr.New(syscall.EINVAL, "a caller in %d groups, at most %d", n, posix.MaxGroups)
	}
	s.reads.Add(1)
	c := rc.GetCred()
	rd := &reading{ctx: ctx, l: l, session: rc.GetSession(), cred: posix.Cred{UID: c.GetUid(), GID: c.GetGid(), Groups: c.GetGroups()}}
	if prepare != nil && rd.session != 0 {
		if err := prepare(rd); err != nil {
			return err
		}
	}
	if err := s.node.ReadIndex(ctx); err != nil {
		return err
	}
	return rd.view(fn)
}

func (rd *reading) view(fn func(*reading, kv.Reader) error) error {
	rd.index = rd.l.s.db.Applied() // before the View: what it shows is at least as new
	return rd.l.s.db.ViewContext(rd.ctx, func(r kv.Reader) error { return fn(rd, r) })
}

func (rd *reading) grant(inode uint64) bool {
	return rd.session != 0 && rd.l.table.Grant(rd.session, inode)
}

// Lookup implements pb.MetaServer.
func (m *metaService) Lookup(ctx context.Context, req *pb.LookupRequest) (*pb.LookupReply, error) {
	out := &pb.LookupReply{}
	var leased uint64 // what had the name when the lease on it was granted
	err := m.s.read(ctx, "Lookup", req.Ctx, func(rd *reading) error {
		out.ParentLeased = rd.grant(req.Parent)
		return rd.view(func(rd *reading, r kv.Reader) error {
			attr, _, err := namespace.Lookup(r, rd.cred, req.Parent, req.Name)
			if err == nil && attr != nil && rd.grant(attr.Inode) {
				leased = attr.Inode
			}
			return nil // the reply comes from the read that follows
		})
	}, func(rd *reading, r kv.Reader) (err error) {
		out.Attr, out.Parent, err = namespace.Lookup(r, rd.cred, req.Parent, req.Name)
		out.Index = rd.index
		return err
	})
	if err != nil {
		return nil, err
	}
	out.Leased = leased != 0 && out.Attr.GetInode() == leased
	return out, nil
}

// GetAttr implements pb.MetaServer.
func (m *metaService) GetAttr(ctx context.Context, req *pb.GetAttrRequest) (*pb.GetAttrReply, error) {
	out := &pb.GetAttrReply{}
	err := m.s.read(ctx, "GetAttr", req.Ctx, func(rd *reading) error {
		out.Leased = rd.grant(req.Inode)
		return nil
	}, func(rd *reading, r kv.Reader) (err error) {
		out.Attr, err = namespace.GetAttr(r, req.Inode)
		out.Index = rd.index
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Open implements pb.MetaServer.
func (m *metaService) Open(ctx context.Context, req *pb.OpenRequest) (*pb.ExtentsReply, error) {
	var out *pb.ExtentsReply
	var leased bool
	done := func(bool) {}
	err := m.s.read(ctx, "Open", req.Ctx, func(rd *reading) error {
		o, err := rd.l.table.Open(ctx, rd.session, 0, req.Inode)
		if err != nil {
			return rd.l.fromTable(err)
		}
		leased, done = o.Leased, o.Done
		return nil
	}, func(rd *reading, r kv.Reader) (err error) {
		if out, err = namespace.Open(r, rd.cred, req.Inode, req.Access); err != nil {
			return err
		}
		if out.Attr.Nlink == 0 && !namespace.Holds(r, rd.session, req.Inode) {
			return fserr.New(syscall.ESTALE, "inode %d has no name any more and is not kept for session %d", req.Inode, rd.session)
		}
		out.Index = rd.index
		return nil
	})
	done(err == nil)
	if err != nil {
		return nil, err
	}
	out.Leased = leased
	return out, nil
}

// Extents implements pb.MetaServer.
func (m *metaService) Extents(ctx context.Context, req *pb.ExtentsRequest) (*pb.ExtentsReply, error) {
	var out *pb.ExtentsReply
	var leased bool
	err := m.s.read(ctx, "Extents", req.Ctx, func(rd *reading) error {
		leased = rd.grant(req.Inode)
		return nil
	}, func(rd *reading, r kv.Reader) (err error) {
		if out, err = namespace.Extents(r, req.Inode, req.Offset, req.Length); err == nil {
			out.Index = rd.index
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	out.Leased = leased
	return out, nil
}

// ReadDir implements pb.MetaServer.
func (m *metaService) ReadDir(ctx context.Context, req *pb.ReadDirRequest) (*pb.ReadDirReply, error) {
	out := &pb.ReadDirReply{}
	var leased []uint64 // inodes, sorted, that a lease was granted on
	limit := int(min(req.Limit, 1<<16))
	err := m.s.read(ctx, "ReadDir", req.Ctx, func(rd *reading) error {
		if out.Leased = rd.grant(req.Inode); !out.Leased {
			return nil // the directory is changing: do not make it wait for leases on all that is in it
		}
		return rd.view(func(rd *reading, r kv.Reader) error {
			entries, _, _, err := namespace.ReadDir(r, rd.cred, req.Inode, req.After, limit)
			if err != nil {
				return nil // the read that follows says so
			}
			for _, e := range entries {
				if rd.grant(e.Attr.GetInode()) {
					leased = append(leased, e.Attr.Inode)
				}
			}
			slices.Sort(leased)
			return nil
		})
	}, func(rd *reading, r kv.Reader) (err error) {
		out.Entries, out.Eof, out.Attr, err = namespace.ReadDir(r, rd.cred, req.Inode, req.After, limit)
		out.Index = rd.index
		return err
	})
	if err != nil {
		return nil, err
	}
	size := 0
	for i, e := range out.Entries {
		if size += len(e.Name) + len(e.Attr.GetSymlink()) + 160; size > maxDirReply {
			out.Entries, out.Eof = out.Entries[:i], false
			break
		}
		_, e.Leased = slices.BinarySearch(leased, e.Attr.GetInode())
	}
	return out, nil
}

// GetXattr implements pb.MetaServer.
func (m *metaService) GetXattr(ctx context.Context, req *pb.GetXattrRequest) (*pb.GetXattrReply, error) {
	out := &pb.GetXattrReply{}
	err := m.s.read(ctx, "GetXattr", req.Ctx, nil, func(rd *reading, r kv.Reader) error {
		v, err := namespace.GetXattr(r, rd.cred, req.Inode, req.Name)
		out.Value = slices.Clone(v) // it belongs to the View
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// ListXattr implements pb.MetaServer.
func (m *metaService) ListXattr(ctx context.Context, req *pb.ListXattrRequest) (*pb.ListXattrReply, error) {
	out := &pb.ListXattrReply{}
	err := m.s.read(ctx, "ListXattr", req.Ctx, nil, func(rd *reading, r kv.Reader) (err error) {
		out.Names, err = namespace.ListXattr(r, rd.cred, req.Inode)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
