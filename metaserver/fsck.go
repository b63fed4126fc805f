package metaserver

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Fsck implements pb.MetaServer.
func (m *metaService) Fsck(req *pb.FsckRequest, stream grpc.ServerStreamingServer[pb.FsckReply]) error {
	return rpc.ToStatus(m.s.fsck(stream.Context(), req, stream.Send))
}

func (s *Server) fsck(ctx context.Context, req *pb.FsckRequest, send func(*pb.FsckReply) error) error {
	l, err := s.leading()
	if err != nil {
		return err
	}
	if !l.checking.TryLock() {
		return fserr.New(syscall.EBUSY, "another check of this cluster runs already; one is enough")
	}
	defer l.checking.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	out := narrate(send, cancel)
	began := time.Now()
	l.log.Info("a check of the cluster begins", "repair", req.Repair)
	err = (&fsck{l: l, ctx: ctx, out: out}).run(req.Repair)
	if e := out.close(); e != nil {
		err = e // nobody listens any more
	} else if l.ctx.Err() != nil {
		err = s.notLeader()
	}
	l.log.Info("a check of the cluster ended", "problems", out.problems, "repaired", out.repaired, "took", time.Since(began).Round(time.Millisecond), "error", err)
	return err
}

// fsck is one check of the cluster.
type fsck struct {
	l   *leader
	ctx context.Context
	out *narrator
}

func (f *fsck) run(repair bool) error {
	found, err := f.inspect(f.out.problem)
	if err != nil {
		return err
	}
	f.out.end(&pb.FsckReply{End: true, Inodes: found.Inodes, Chunks: found.Chunks, Shards: found.Shards})
	return nil
}

// inspect checks a copy of the state, so that nobody has to wait.
func (f *fsck) inspect(problem func(string)) (found *namespace.Inspection, err error) {
	f.out.progress("copying the metadata", 0, 0)
	c, err := f.l.s.db.Copy(f.ctx)
	if err != nil {
		return nil, fmt.Errorf("the metadata cannot be checked: %w", err)
	}
	defer func() {
		if e := c.Close(); e != nil {
			f.l.log.Warn("could not close the copy of the metadata that was checked", "error", e)
		}
	}()
	err = c.View(func(r kv.Reader) error {
		found, err = namespace.Inspect(f.ctx, r, namespace.Watch{Progress: f.out.progress, Problem: problem})
		return err
	})
	return found, err
}
