package metaserver

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// fsckReport is all that one check said.
type fsckReport struct {
	problems, repaired []string
	phases             []string
	end                *pb.FsckReply
}

func (c *caller) fsck(ctx context.Context, repair bool) (*fsckReport, error) {
	stream, err := c.meta(c.at).Fsck(ctx, &pb.FsckRequest{Repair: repair})
	if err != nil {
		return nil, err
	}
	out := &fsckReport{}
	for {
		m, err := stream.Recv()
		if err == io.EOF && out.end != nil {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if out.end != nil {
			return out, fmt.Errorf("%v after the end", m)
		}
		out.problems = append(out.problems, m.Problems...)
		out.repaired = append(out.repaired, m.Repaired...)
		out.phases = append(out.phases, m.Phase)
		if m.End {
			out.end = m
		}
	}
}

// clean wants a check to find nothing.
func (c *caller) clean(repair bool) *fsckReport {
	c.t.Helper()
	r, err := c.fsck(c.t.Context(), repair)
	if err != nil {
		c.t.Fatal(err)
	}
	if len(r.problems)+len(r.repaired) > 0 {
		c.t.Fatalf("problems %q, repaired %q", r.problems, r.repaired)
	}
	return r
}

// A check finds nothing while the state changes at full speed.
func TestFsckWhileTheClusterWorks(t *testing.T) {
	s := start(t, Config{LeaseTTL: 200 * time.Millisecond}).ready()
	chunkServers(t, s, 3)
	var stop atomic.Bool
	var group sync.WaitGroup
	var done atomic.Uint64
	for i := range 4 {
		c := call(t, s.Address()).open()
		c.connect(50 * time.Millisecond)
		group.Go(func() {
			for n := 0; !stop.Load() && !t.Failed(); n++ {
				c.churn(fmt.Sprintf("%d-%d", i, n%7))
				done.Add(1)
			}
		})
	}
	defer group.Wait()
	defer stop.Store(true)
	c := call(t, s.Address())
	for range 5 {
		before := done.Load()
		r := c.clean(false)
		if r.end.Inodes == 0 || len(r.phases) < 2 {
			t.Fatalf("%+v", r)
		}
		eventually(t, "the others get on", func() bool { return done.Load() > before })
	}
}

// churn makes a directory with a file that has data, moves it about, and removes it.
func (c *caller) churn(name string) {
	dir := c.must(c.do(mkdir(name))).Attr.Inode
	f := c.must(c.do(&pb.Op{Op: &pb.Op_MakeNode{MakeNode: &pb.MakeNode{Parent: dir, Name: []byte("f"), Mode: syscall.S_IFREG | 0o644}}})).Attr.Inode
	id := c.must(c.do(&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 1}}})).Chunks[0]
	c.must(c.do(&pb.Op{Op: &pb.Op_Commit{Commit: &pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: 1000, Chunk: id.Id}},
		Chunks: []*pb.ChunkCommit{{Chunk: id.Id, Length: 1000, Servers: id.Servers, Seal: true}}}}}))
	c.must(c.do(&pb.Op{Op: &pb.Op_SetXattr{SetXattr: &pb.SetXattr{Inode: f, Name: "user.a", Value: []byte(name)}}}))
	c.must(c.do(&pb.Op{Op: &pb.Op_Rename{Rename: &pb.Rename{Parent: dir, Name: []byte("f"), NewParent: 1, NewName: []byte("f" + name)}}}))
	c.must(c.do(unlink("f" + name)))
	c.must(c.do(&pb.Op{Op: &pb.Op_Unlink{Unlink: &pb.Unlink{Parent: 1, Name: []byte(name), Directory: true}}}))
}

func TestOneFsckAtATime(t *testing.T) {
	s := start(t, Config{}).ready()
	c := call(t, s.Address())
	l := s.lead.Load()
	l.checking.Lock()
	_, err := c.fsck(t.Context(), false)
	if errnoOf(err) != syscall.EBUSY || !strings.Contains(err.Error(), "another check") {
		t.Fatalf("a second one: %v", err)
	}
	l.checking.Unlock()
	c.clean(true)
}

// A check ends when the caller leaves, and when the leadership ends.
func TestFsckEndsEarly(t *testing.T) {
	s := start(t, Config{}).ready()
	l := s.lead.Load()
	ctx, cancel := context.WithCancel(t.Context())
	err := s.fsck(ctx, &pb.FsckRequest{}, func(*pb.FsckReply) error { cancel(); return nil })
	if err == nil {
		t.Error("it came to its end without a caller")
	}
	gone := fmt.Errorf("gone")
	if err := s.fsck(t.Context(), &pb.FsckRequest{}, func(*pb.FsckReply) error { return gone }); err != gone {
		t.Errorf("a stream that failed: %v", err)
	}
	err = s.fsck(t.Context(), &pb.FsckRequest{}, func(*pb.FsckReply) error { l.end(); return nil })
	if rpc.Kind(err) != rpc.NotLeader {
		t.Errorf("the leadership ended: %v", err)
	}
	if !l.checking.TryLock() {
		t.Error("it still runs")
	} else {
		l.checking.Unlock()
	}
}
