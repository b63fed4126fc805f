package metaserver

import (
	"context"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/rpc"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// holdApply lets nothing be applied until release is called: a reader looks at the state, and whoever would change it waits.
// Further readers wait, too, as soon as there is somebody who would.
func holdApply(t *testing.T, s *running) (release func()) {
	t.Helper()
	for {
		if err := s.db.Flush(); err != nil { // or the flusher might be who waits
			t.Fatal(err)
		}
		held, end := make(chan struct{}), make(chan struct{})
		var readers sync.WaitGroup
		readers.Go(func() {
			if err := s.db.View(func(kv.Reader) error { close(held); <-end; return nil }); err != nil {
				t.Error(err)
			}
		})
		<-held
		release = sync.OnceFunc(func() { close(end); readers.Wait() })
		if s.db.Applied() == s.db.Durable() {
			t.Cleanup(release)
			return release
		}
		release() // something was applied in between, which the flusher would wait to flush
	}
}

// pending asks for a mutation that gets into the log and is not applied.
func pending(ctx context.Context, t *testing.T, s *running, req *pb.MutateRequest) <-chan error {
	t.Helper()
	before := s.node.LastIndex()
	result := make(chan error, 1)
	go func() {
		_, err := (&metaService{s: s.Server}).Mutate(ctx, req)
		result <- err
	}()
	eventually(t, "the mutation to be in the log", func() bool { return s.node.LastIndex() > before })
	return result
}

// A caller who gives a mutation up gets away although it is in the log and not applied yet. Until it is, nobody may cache what it
// changes.
func TestCallerLeavesBeforeTheOutcome(t *testing.T) {
	s := start(t, Config{}).ready()
	c := call(t, s.Address()).open()
	other := call(t, s.Address()).open()
	other.connect(time.Second)
	eventually(t, "a lease", func() bool { return other.lookup(1, "none").ParentLeased })

	release := holdApply(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	result := pending(ctx, t, s, c.next(mkdir("d")))
	cancel()
	if err := <-result; status.Code(err) != codes.Canceled {
		t.Errorf("a mutation that was given up: %v", err)
	}
	if s.lead.Load().table.Grant(other.session, 1) {
		t.Error("a lease on what the mutation changes, before it is applied")
	}
	release()
	eventually(t, "the mutation", func() bool { return other.lookup(1, "d").Attr != nil })
	eventually(t, "a lease on what it changed", func() bool { return other.lookup(1, "d").ParentLeased })
}

// The calls that local callers make in their own goroutine end with the caller's context even while the state can be neither
// read nor changed.
func TestCallersGetAwayFromTheState(t *testing.T) {
	s := start(t, Config{}).ready()
	c := call(t, s.Address()).open()
	release := holdApply(t, s)
	first := pending(t.Context(), t, s, c.next(mkdir("first")))
	eventually(t, "a reader that has to wait", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		return s.db.ViewContext(ctx, func(kv.Reader) error { return nil }) != nil
	})
	pool := new(rpc.Pool)
	defer func() { _ = pool.Close() }() // only fails when closed twice
	conn, err := pool.Get(s.Address())
	if err != nil {
		t.Fatal(err)
	}
	api := pb.NewMetaClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := api.Lookup(ctx, &pb.LookupRequest{Ctx: c.read(), Parent: 1, Name: []byte("x")}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("Lookup: %v", err)
	}
	if _, err := api.GetAttr(ctx, &pb.GetAttrRequest{Ctx: c.read(), Inode: 1}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("GetAttr: %v", err)
	}
	if _, err := api.Mutate(ctx, c.next(mkdir("second"))); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("Mutate: %v", err)
	}
	release()
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// A leadership that is over keeps nobody waiting, although what was asked of it may still be applied.
func TestEndOfALeadershipAnswersMutations(t *testing.T) {
	s := start(t, Config{}).ready()
	c := call(t, s.Address()).open()
	release := holdApply(t, s)
	result := pending(t.Context(), t, s, c.next(mkdir("d")))
	s.dismiss(s.lead.Load())
	if err := <-result; rpc.Kind(err) != rpc.NotLeader {
		t.Errorf("a mutation whose leader was dismissed: %v", err)
	}
	release()
}

// A bug that panics in the middle of a mutation costs that call, not the leases on what it was about.
func TestPanicGivesTheLeasesBack(t *testing.T) {
	s := start(t, Config{}).ready()
	c := call(t, s.Address()).open()
	other := call(t, s.Address()).open()
	other.connect(time.Second)
	eventually(t, "a lease", func() bool { return other.lookup(1, "none").ParentLeased })
	now := s.lead.Load()
	broken := &leader{s: &Server{db: s.db, cfg: s.cfg}, log: now.log, term: now.term, ctx: now.ctx, table: now.table, live: now.live}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a metaserver without a node did not panic")
			}
		}()
		_, _ = (&mutation{l: broken, req: c.next(mkdir("d")), op: mkdir("d")}).attempt(t.Context())
	}()
	if !now.table.Grant(other.session, 1) {
		t.Error("no lease on the directory any more")
	}
}
