package metaserver

import (
	"context"
	"errors"
	"math"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	// writersLeave is how long the forced removal of a server waits for the clients that write there, and writersPoll how often it
	// looks whether they have left.
	writersLeave = 10 * time.Second
	writersPoll  = 100 * time.Millisecond
)

// ManageServer implements pb.MetaServer.
func (m *metaService) ManageServer(ctx context.Context, req *pb.ManageServerRequest) (*pb.ManageServerReply, error) {
	l, err := m.s.leading()
	if err != nil {
		return nil, err
	}
	switch req.Action {
	case pb.ManageServerRequest_DRAIN, pb.ManageServerRequest_UNDRAIN:
		drain := req.Action == pb.ManageServerRequest_DRAIN
		if _, err := l.own(&pb.Op{Op: &pb.Op_SetServer{SetServer: &pb.SetServer{Server: req.Server, Draining: drain}}}); err != nil {
			return nil, rpc.ToStatus(err)
		}
		l.log.Info("an operator changed a chunk server", "server", req.Server, "draining", drain)
	case pb.ManageServerRequest_REMOVE:
		if err := l.remove(ctx, chunk.ServerID(req.Server), req.Force); err != nil {
			return nil, rpc.ToStatus(err)
		}
		l.log.Warn("an operator removed a chunk server", "server", req.Server, "force", req.Force)
		return &pb.ManageServerReply{}, nil
	default:
		return nil, status.Errorf(codes.InvalidArgument, "an unknown action %d on chunk server %d", req.Action, req.Server)
	}
	n, err := l.shards(chunk.ServerID(req.Server))
	return &pb.ManageServerReply{Shards: n}, rpc.ToStatus(err)
}

// holds lists what the state places on a server from a stored id on, at most so many.
func (l *leader) holds(id chunk.ServerID, from chunk.ID, limit int) ([]uint64, error) {
	var out []uint64
	err := l.s.db.ViewContext(l.ctx, func(r kv.Reader) error {
		namespace.CopiesFrom(r, id, from, func(stored chunk.ID) bool {
			out = append(out, uint64(stored))
			return len(out) < limit
		})
		return nil
	})
	return out, err
}

// shards is how many shards the state places on a server. It is counted some at a time so that commands get in between.
func (l *leader) shards(id chunk.ServerID) (n uint64, err error) {
	for from := chunk.ID(0); ; {
		held, err := l.holds(id, from, chunksPerView)
		if n += uint64(len(held)); err != nil || len(held) < chunksPerView {
			return n, err
		}
		from = chunk.ID(held[len(held)-1]) + 1
	}
}

// remove forgets a server: one that holds nothing, or, by force, whatever it holds. By force the server is drained first, so that
// neither repair nor clients put anything there again; it stays so if it cannot be removed.
func (l *leader) remove(ctx context.Context, id chunk.ServerID, force bool) error {
	if force {
		if _, err := l.own(&pb.Op{Op: &pb.Op_SetServer{SetServer: &pb.SetServer{Server: uint32(id), Draining: true}}}); err != nil {
			return err
		}
	}
	patience := time.NewTimer(writersLeave)
	defer patience.Stop()
	for {
		if err := ctx.Err(); err != nil {
			return err // nobody waits for it any more: what is given up stays so, and the rest stays
		}
		held, err := l.holds(id, 0, maxLose)
		if err != nil {
			return err
		}
		if len(held) == 0 {
			if err := l.forgetDeletions(id); err != nil {
				return err
			}
			_, err := l.own(&pb.Op{Op: &pb.Op_RemoveServer{RemoveServer: &pb.RemoveServer{Server: uint32(id)}}})
			if !errors.Is(err, syscall.EBUSY) {
				return err
			}
			continue // something has just arrived
		}
		if !force {
			return fserr.New(syscall.EBUSY, "chunk server %d still holds shards of chunks: drain it first, or give --force if it is gone for good", id)
		}
		if _, err := l.own(&pb.Op{Op: &pb.Op_LoseShards{LoseShards: &pb.LoseShards{Server: uint32(id), Stored: held, Gone: true}}}); err != nil {
			return err
		}
		l.repair.Changed()
		again, err := l.holds(id, 0, 1)
		if err != nil {
			return err
		}
		if len(again) == 0 || again[0] != held[0] {
			continue
		}
		select { // clients write there, and leave once they know
		case <-time.After(writersPoll):
		case <-patience.C:
			return fserr.New(syscall.EBUSY, "clients still write to chunks on chunk server %d, which is drained meanwhile: try again in a minute", id)
		case <-ctx.Done():
			return ctx.Err()
		case <-l.ctx.Done():
			return l.ctx.Err()
		}
	}
}

// forgetDeletions takes what a server has to delete out of the state, some in each command so that others get in between.
// Should the server stay after all, its next inventory shows it.
func (l *leader) forgetDeletions(id chunk.ServerID) error {
	for {
		op := &pb.FinishDeletions{Server: uint32(id)}
		if err := l.s.db.ViewContext(l.ctx, func(r kv.Reader) error {
			for _, stored := range namespace.Deletions(r, id, math.MaxInt64, maxFinished) {
				op.Chunks = append(op.Chunks, uint64(stored))
			}
			return nil
		}); err != nil {
			return err
		}
		if len(op.Chunks) == 0 {
			return nil
		}
		if _, err := l.own(&pb.Op{Op: &pb.Op_FinishDeletions{FinishDeletions: op}}); err != nil {
			return err
		}
	}
}

// Scrub implements pb.MetaServer.
func (m *metaService) Scrub(_ context.Context, req *pb.ScrubRequest) (*pb.ScrubReply, error) {
	l, err := m.s.leading()
	if err != nil {
		return nil, err
	}
	servers := l.live.Servers()
	l.mu.Lock()
	if req.Start {
		// Later leaders go on from what the servers say; the time keeps them from using a number again.
		l.scrubPass = max(l.scrubPass+1, uint64(time.Now().UnixNano()))
	}
	out := &pb.ScrubReply{Pass: l.scrubPass}
	for _, s := range servers {
		p := l.scrubs[chunk.ServerID(s.Id)]
		if p == nil || p.Pass != l.scrubPass {
			p = &pb.ScrubProgress{Pass: l.scrubPass}
		}
		if s.State != pb.ServerState_SERVER_STATE_DEAD {
			out.Servers = append(out.Servers, &pb.ServerScrub{Server: s.Id, Progress: p})
		}
	}
	l.mu.Unlock()
	if req.Start {
		for _, s := range servers {
			l.poke(chunk.ServerID(s.Id))
		}
	}
	return out, nil
}
