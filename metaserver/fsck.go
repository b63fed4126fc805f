package metaserver

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// fsckServers is how many chunk servers are asked at once for all that they hold.
const fsckServers = 8

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
	if err == nil && repair {
		found, err = f.repair(found)
	}
	if err == nil {
		err = f.servers()
	}
	if err == nil {
		err = f.redundancy()
	}
	if err != nil {
		return err
	}
	f.out.end(&pb.FsckReply{End: true, Inodes: found.Inodes, Chunks: found.Chunks, Shards: found.Shards})
	return nil
}

// inspection is what a check of the state found, and the log index of that state.
type inspection struct {
	*namespace.Inspection
	index uint64
}

// inspect checks a copy of the state, so that nobody has to wait. problem, unless nil, is told of each.
func (f *fsck) inspect(problem func(string)) (found inspection, err error) {
	f.out.progress("copying the metadata", 0, 0)
	c, err := f.l.s.db.Copy(f.ctx)
	if err != nil {
		return found, fmt.Errorf("the metadata cannot be checked: %w", err)
	}
	defer func() {
		if e := c.Close(); e != nil {
			f.l.log.Warn("could not close the copy of the metadata that was checked", "error", e)
		}
	}()
	found.index = c.Index()
	err = c.View(func(r kv.Reader) (err error) {
		found.Inspection, err = namespace.Inspect(f.ctx, r, namespace.Watch{Progress: f.out.progress, Problem: problem})
		return err
	})
	return found, err
}

// servers compares what every chunk server holds with the state.
func (f *fsck) servers() error {
	const phase = "what chunk servers hold"
	servers := f.l.live.Servers()
	var done atomic.Uint64
	f.out.progress(phase, 0, uint64(len(servers)))
	g, ctx := errgroup.WithContext(f.ctx)
	g.SetLimit(fsckServers)
	for _, s := range servers {
		g.Go(func() error {
			err := f.server(ctx, s)
			f.out.progress(phase, done.Add(1), uint64(len(servers)))
			return err
		})
	}
	return g.Wait()
}

func (f *fsck) server(ctx context.Context, s *pb.ServerInfo) error {
	problem := func(format string, args ...any) {
		f.out.problem(fmt.Sprintf("chunk server %d at %s ", s.Id, s.Address) + fmt.Sprintf(format, args...))
	}
	if s.State == pb.ServerState_SERVER_STATE_DEAD {
		problem("is dead (%s): what it holds was not checked", s.Problem)
		return nil
	}
	patience := f.l.s.cfg.DeadAfter
	a, err := f.l.audit(ctx, chunk.ServerID(s.Id), patience)
	switch {
	case err != nil:
		return err
	case a == nil:
		problem("did not say within %v what it holds", patience)
		return nil
	}
	if n := len(a.missing); n > 0 {
		problem("has %s, such as %v: missing or too short; made anew now", plural(n, "shard"), a.missing[0])
	}
	if n := len(a.bad); n > 0 {
		problem("has %s, such as %v: damaged; made anew now", plural(n, "shard"), a.bad[0])
	}
	if n := len(a.kept); n > 0 {
		problem("keeps %s, such as %v, that it was told to delete", plural(n, "shard"), a.kept[0])
	}
	if a.foreign > 0 {
		problem("has %s, such as %v, of no id that this cluster gave out; left alone", plural(int(a.foreign), "shard"), a.first)
	}
	return nil
}

// redundancy reports chunks that lack shards, as repair counts them.
func (f *fsck) redundancy() error {
	f.out.progress("redundancy", 0, 0)
	deadline := time.Now().Add(f.l.s.cfg.SuspectAfter + settling) // by then a new leader knows who lives
	r := f.l.repair.Report()
	for ; !r.Known && time.Now().Before(deadline); r = f.l.repair.Report() {
		select {
		case <-time.After(pollInterval):
		case <-f.ctx.Done():
			return f.ctx.Err()
		}
	}
	n := r.Degraded + r.Endangered + r.Unreadable
	switch {
	case !r.Known:
		f.out.problem("how many chunks lack shards is " + r.Summary)
	case n > 0:
		f.out.problem(fmt.Sprintf("%s (%s)", lack(n), r.Summary))
	}
	return nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// are is the beginning of a sentence about so many things.
func are(n int, what string) string {
	if n == 1 {
		return "1 " + what + " is"
	}
	return plural(n, what) + " are"
}

func lack(n uint64) string {
	if n == 1 {
		return "1 chunk lacks shards"
	}
	return fmt.Sprintf("%d chunks lack shards", n)
}
