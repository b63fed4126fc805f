package meta

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func farFuture() time.Time { return time.Now().Add(time.Hour) }

func TestExactlyOnceUnderLostReplies(t *testing.T) {
	f := newFake(t)
	c := dial(t, f)
	var n atomic.Int64
	f.hooks(nil, func(m string, _, _ proto.Message) error {
		if m == "Mutate" && n.Add(1)%3 != 0 {
			return status.Error(codes.Unavailable, "the reply was lost")
		}
		return nil
	})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			if _, err := c.Mutate(t.Context(), root, makeNode(1, fmt.Sprint("d", i), syscall.S_IFDIR|0o755)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	f.hooks(nil, nil)
	f.with(func() {
		if f.applied != 16 {
			t.Errorf("%d mutations applied", f.applied)
		}
	})
	mustMake(t, c, 1, "last", syscall.S_IFDIR|0o755)
	f.with(func() {
		if f.unanswered != 17 {
			t.Errorf("unanswered %d", f.unanswered)
		}
	})
}

func TestFollowsTheLeader(t *testing.T) {
	a, b := newFake(t), newFake(t)
	hint := b.srv.Address()
	a.notLeader = &hint
	c := dial(t, a, b)
	mustMake(t, c, 1, "x", syscall.S_IFDIR|0o755)
	// The other takes over, with the state and the sessions.
	none := ""
	b.with(func() {
		a.with(func() {
			a.nodes, a.names, a.results, a.live, a.index, a.nextIno = b.nodes, b.names, b.results, b.live, b.index, b.nextIno
			a.notLeader = nil
		})
		b.notLeader = &none
	})
	close(b.stream(c).out)
	if got := mustMake(t, c, 1, "y", syscall.S_IFDIR|0o755); got != 3 {
		t.Fatalf("inode %d", got)
	}
	eventually(t, "a stream to the new leader", func() bool { return a.stream(c) != nil })
}

func TestHungLeaderIsGivenUp(t *testing.T) {
	a, b := newFake(t), newFake(t)
	c := dial(t, a, b)
	b.with(func() { b.live[c.Session()] = true })
	hung := make(chan struct{})
	var asked atomic.Uint64
	a.hooks(func(m string, req proto.Message) error {
		if r, ok := req.(*pb.MutateRequest); ok {
			asked.Store(r.Sequence)
		}
		<-hung
		return nil
	}, nil)
	b.hooks(func(m string, req proto.Message) error {
		if r, ok := req.(*pb.MutateRequest); ok && r.Sequence != asked.Load() {
			t.Errorf("sequence %d, first asked as %d", r.Sequence, asked.Load())
		}
		return nil
	}, nil)
	defer close(hung)
	a.with(func() { a.mutePongs = true })
	mustMake(t, c, 1, "x", syscall.S_IFDIR|0o755)
	b.hooks(nil, nil)
}

func TestCancelledMutationIsFinishedInTheBackground(t *testing.T) {
	f := newFake(t)
	c := dial(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	block := make(chan struct{})
	f.hooks(nil, func(m string, _, _ proto.Message) error {
		if m == "Mutate" {
			cancel()
			<-block
			return status.Error(codes.Unavailable, "the reply was lost")
		}
		return nil
	})
	if _, err := c.Mutate(ctx, root, makeNode(1, "a", syscall.S_IFREG|0o644)); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	f.hooks(nil, nil)
	close(block)
	s, _ := c.await(t.Context())
	eventually(t, "the sequence is answered", func() bool { return s.seqs.unanswered() == 2 })
	if mustLookup(t, c, 1, "a") == 0 {
		t.Fatal("not done")
	}
}

func TestSessionLost(t *testing.T) {
	f := newFake(t)
	c := dial(t, f)
	old, gen := c.Session(), c.SessionGen()
	mustLookup(t, c, 1, "a")
	f.with(func() { delete(f.live, old) })
	mustMake(t, c, 1, "a", syscall.S_IFREG|0o644) // refused at once: done in a new session
	if c.Session() == old || c.SessionGen() == gen {
		t.Fatal("no new session")
	}
	if mustLookup(t, c, 1, "a") == 0 {
		t.Fatal("a stale name")
	}
	_, err := c.Commit(t.Context(), &pb.Commit{Inode: 2, Size: 5})
	if err != nil {
		t.Fatal(err)
	}
	// A commit, and a mutation that may have been done, are not repeated.
	f.with(func() { delete(f.live, c.Session()) })
	if _, err := c.Commit(t.Context(), &pb.Commit{Inode: 2, Size: 9}); !isErrno(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := c.SealChunks(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	f.hooks(nil, func(m string, req, _ proto.Message) error {
		r := req.(*pb.MutateRequest)
		if r.Op.GetMakeNode() == nil {
			return nil
		}
		f.with(func() { delete(f.live, r.Session) })
		f.hooks(nil, nil)
		return status.Error(codes.Unavailable, "the reply was lost")
	})
	if _, err := c.Mutate(t.Context(), root, makeNode(1, "b", syscall.S_IFREG|0o644)); !isErrno(err, syscall.EIO) || !errors.Is(err, errUnknown) {
		t.Fatal(err)
	}
	if mustLookup(t, c, 1, "b") == 0 {
		t.Fatal("it was done, in fact")
	}
}

func TestLapsedLeaseIsNotUsed(t *testing.T) {
	f := newFake(t)
	f.leaseMs = 200
	c := dial(t, f)
	mustLookup(t, c, 1, "a")
	f.with(func() { f.mutePongs = true })
	eventually(t, "the lease runs out", func() bool { return c.Until(1).IsZero() })
	f.with(func() { // as the server may do now
		f.names[dirName{1, "a"}] = 9
		f.nodes[9] = &pb.Attr{Inode: 9, Mode: syscall.S_IFREG, Version: 9}
	})
	if mustLookup(t, c, 1, "a") != 9 {
		t.Fatal("a stale name")
	}
	f.with(func() { delete(f.names, dirName{1, "a"}); f.mutePongs = false })
	eventually(t, "a new lease", func() bool { mustLookup(t, c, 1, "z"); return !c.Until(1).IsZero() })
	if mustLookup(t, c, 1, "a") != 0 {
		t.Fatal("what was cached before the lease ran out came back")
	}
}

// While the machine sleeps the monotonic clock stands still, and the lease runs out all the same: the wall clock shows it.
func TestSleepEndsTheLease(t *testing.T) {
	f := newFake(t)
	c := dial(t, f)
	ino := mustMake(t, c, 1, "a", syscall.S_IFREG|0o644)
	if c.Until(ino).IsZero() {
		t.Fatal("not cached")
	}
	c.cache.mu.Lock()
	c.cache.wall -= int64(time.Hour)
	c.cache.mu.Unlock()
	if !c.Until(ino).IsZero() {
		t.Fatal("cached attributes are used an hour after the lease ran out")
	}
	c.cache.renew(time.Now().Add(time.Minute))
	if !c.Until(1).IsZero() || !c.Until(ino).IsZero() {
		t.Fatal("what was cached before the lease ran out came back")
	}
	mustLookup(t, c, 1, "a")
	if c.Until(ino).IsZero() {
		t.Fatal("not cached under the new lease")
	}
}

func TestOpenInodesAreTold(t *testing.T) {
	f := newFake(t)
	other, c := dial(t, f), dial(t, f)
	ino := mustMake(t, other, 1, "a", syscall.S_IFREG|0o644)
	if _, err := c.Open(t.Context(), root, ino, posix.Read); err != nil {
		t.Fatal(err)
	}
	if a := f.revoke(t, c, ino); !slices.Equal(a.Opened, []uint64{ino}) {
		t.Fatalf("opened %v", a.Opened)
	}
	f.with(func() { // the unlink that asked
		f.index++
		f.change(ino).Nlink = 0
		f.held = []uint64{ino}
	})
	old := f.stream(c)
	close(old.out) // the next stream tells what is open
	eventually(t, "a new stream", func() bool { return f.stream(c) != old })
	if o := f.stream(c).opened; !slices.Equal(o, []uint64{ino}) {
		t.Fatalf("opened %v", o)
	}
	if a, _, err := c.GetAttr(t.Context(), ino); err != nil || a.Nlink != 0 {
		t.Fatal(a, err)
	}
	c.CloseInode(ino)
	eventually(t, "the inode is released", func() (ok bool) {
		f.with(func() { ok = slices.Contains(f.released, ino) })
		return ok
	})
}

func TestOwnUnlinkOfOpenFile(t *testing.T) {
	f := newFake(t)
	c := dial(t, f)
	attr, existed, err := c.Create(t.Context(), root, &pb.MakeNode{Parent: 1, Name: []byte("a"), Mode: syscall.S_IFREG | 0o644})
	if err != nil || existed {
		t.Fatal(existed, err)
	}
	unlink := &pb.Op{Op: &pb.Op_Unlink{Unlink: &pb.Unlink{Parent: 1, Name: []byte("a")}}}
	asked := make(chan struct{})
	goOn := make(chan struct{})
	f.hooks(func(m string, req proto.Message) error {
		if r, ok := req.(*pb.MutateRequest); ok && r.Op.GetUnlink() != nil {
			close(asked)
			<-goOn
		}
		return nil
	}, nil)
	done := make(chan error, 1)
	go func() {
		_, err := c.Mutate(t.Context(), root, unlink)
		done <- err
	}()
	<-asked
	if u := unlink.GetUnlink(); u.Hint != attr.Inode || !u.Opened {
		t.Fatalf("the server was told %v", u)
	}
	reopened := make(chan error, 1)
	go func() { // waits for the unlink: the server must not be told too little
		_, err := c.Open(t.Context(), root, attr.Inode, posix.Read)
		reopened <- err
	}()
	select {
	case err := <-reopened:
		t.Fatal("opened in the midst of an unlink: ", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	if err := errors.Join(<-done, <-reopened); err != nil {
		t.Fatal(err)
	}
	c.CloseInode(attr.Inode)
	c.CloseInode(attr.Inode)
	eventually(t, "the inode is released", func() (ok bool) {
		f.with(func() { ok = slices.Contains(f.released, attr.Inode) })
		return ok
	})
}

func TestHeldInodesNotOpenAreReleased(t *testing.T) {
	f := newFake(t)
	f.nodes[7] = &pb.Attr{Inode: 7, Mode: syscall.S_IFREG, Version: 1}
	f.held = []uint64{7}
	dial(t, f)
	eventually(t, "the inode is released", func() (ok bool) {
		f.with(func() { ok = slices.Contains(f.released, 7) })
		return ok
	})
}

func TestSequencesAreBounded(t *testing.T) {
	s := newSequences()
	for i := range uint64(maxInFlight) {
		if n, err := s.take(t.Context()); err != nil || n != i+1 {
			t.Fatal(n, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.take(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	// One that stays unanswered stops the rest before the window gets too wide.
	n := uint64(maxInFlight)
	for s.next-s.low < maxWindow {
		s.done(n)
		var err error
		if n, err = s.take(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s.done(n)
	if _, err := s.take(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal("no bound: ", err)
	}
	if s.unanswered() != 1 {
		t.Fatal(s.unanswered())
	}
}

func TestCancellationAlwaysWorks(t *testing.T) {
	f := newFake(t)
	c := dial(t, f)
	block := make(chan struct{})
	defer close(block)
	f.hooks(func(string, proto.Message) error { <-block; return nil }, nil)
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error)
	for _, fn := range []func() error{
		func() error { _, err := c.Lookup(ctx, root, 1, "q"); return err },
		func() error { _, _, err := c.GetAttr(ctx, 99); return err },
		func() error { _, err := c.Mutate(ctx, root, makeNode(1, "q", syscall.S_IFREG)); return err },
		func() error { _, err := c.Open(ctx, root, 99, posix.Read); return err },
		func() error { _, err := c.Extents(ctx, 99, 0, 0, true); return err },
	} {
		go func() { errs <- fn() }()
	}
	cancel()
	for range 5 {
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}
