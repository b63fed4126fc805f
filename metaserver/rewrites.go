package metaserver

import (
	"context"
	"fmt"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/lease"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	"github.com/shoalfs/shoalfs/metaserver/rewrite"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// maxApplied bounds the files of one ApplyPolicy.
const maxApplied = 4096

// rewriteCluster is the leader as rewriting needs it.
type rewriteCluster struct{ repairCluster }

// Change implements rewrite.Cluster.
func (c rewriteCluster) Change(ctx context.Context, inodes []uint64) (func(), error) {
	ch, err := c.l.table.Begin(ctx, lease.Intent{Inodes: inodes})
	if err != nil {
		return nil, err
	}
	return ch.End, nil
}

// Default implements rewrite.Cluster.
func (c rewriteCluster) Default() chunk.Layout { return c.l.layout() }

// Place implements rewrite.Cluster. Data is never written anew with less redundancy than servers that are up allow: one that is
// only away for a moment is waited for.
func (c rewriteCluster) Place(want chunk.Layout) (chunk.Layout, []*pb.Candidate, string) {
	candidates := c.l.live.Candidates(want.Width(), nil)
	layout := c.l.possible(want, len(candidates))
	up := 0
	for _, s := range c.l.live.Servers() {
		if s.State != pb.ServerState_SERVER_STATE_DEAD && !s.Draining && s.Free > 0 {
			up++
		}
	}
	need := max(layout.Min, min(layout.Width(), up))
	if layout.Data != want.Data || len(candidates) < need {
		return layout, nil, fmt.Sprintf("%d chunk servers are fit to be written to, %v needs %d", len(candidates), want, max(need, want.Min))
	}
	return layout, candidates, ""
}

// Busy implements rewrite.Cluster.
func (c rewriteCluster) Busy() string {
	if r := c.l.s.room.Load(); r != nil && r.short != noShortage {
		return "the metaserver's disk is nearly full"
	}
	return c.l.repair.Urgent()
}

// ApplyPolicy implements pb.MetaServer.
func (m *metaService) ApplyPolicy(ctx context.Context, req *pb.ApplyPolicyRequest) (*pb.ApplyPolicyReply, error) {
	out, err := m.s.applyPolicy(ctx, req)
	return out, rpc.ToStatus(err)
}

func (s *Server) applyPolicy(ctx context.Context, req *pb.ApplyPolicyRequest) (*pb.ApplyPolicyReply, error) {
	l, err := s.leading()
	if err != nil {
		return nil, err
	}
	if n := len(req.Inodes); n > maxApplied {
		return nil, fserr.New(syscall.EINVAL, "%d files, at most %d", n, maxApplied)
	}
	if err := s.node.ReadIndex(ctx); err != nil { // a policy that was set before holds
		return nil, err
	}
	out := &pb.ApplyPolicyReply{Files: make([]*pb.AppliedPolicy, len(req.Inodes))}
	var allowed []rewrite.Wish
	if err := s.db.ViewContext(ctx, func(r kv.Reader) error {
		for i, inode := range req.Inodes {
			a, err := namespace.GetAttr(r, inode)
			out.Files[i] = &pb.AppliedPolicy{}
			switch {
			case err != nil:
				out.Files[i].Done, out.Files[i].Known = true, true // it is gone
			case req.Cred.GetUid() != 0 && req.Cred.GetUid() != a.Uid:
				out.Files[i].Errno = uint32(syscall.EPERM)
			default:
				allowed = append(allowed, rewrite.Wish{Inode: inode, Policy: chunk.LayoutOf(a.Layout)})
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	states := l.rewrite.Convert(allowed, req.Keep)
	for _, f := range out.Files {
		if f.Done || f.Errno != 0 {
			continue
		}
		c := states[0]
		states = states[1:]
		f.Total, f.Left, f.Known, f.Done, f.Problem = c.Total, c.Left, c.Known, c.Done, c.Problem
		if c.Refused {
			f.Errno = uint32(syscall.EAGAIN)
		}
	}
	out.HeldBack = l.rewrite.Stats().HeldBack
	return out, nil
}

// rewriting describes garbage and what is done about it.
func (l *leader) rewriting() *pb.Rewriting {
	s := l.rewrite.Stats()
	return &pb.Rewriting{Garbage: s.Garbage, Reclaimable: s.Reclaimable, Running: uint64(s.Running), Moved: s.Moved, Files: uint64(s.Files),
		FilesLeft: s.FilesLeft, HeldBack: s.HeldBack}
}

// rewriteConfig is what rewriting is told.
func (s *Server) rewriteConfig() rewrite.Config {
	return rewrite.Config{Logger: s.log, LivePercent: s.cfg.CompactBelow, MinGain: uint64(max(s.cfg.CompactGain, 0)), Rest: s.cfg.CompactRest}
}
