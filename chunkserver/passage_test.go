package chunkserver

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// frames sends some through, each of which takes a while, and returns how many passed at once and when all had.
func frames(t *testing.T, p *passage, n int, each time.Duration, during func()) (atOnce int, took time.Duration) {
	began := time.Now()
	now, over := atomic.Int64{}, make(chan struct{})
	for range n {
		leave, err := p.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		atOnce = max(atOnce, int(now.Add(1)))
		go func() {
			time.Sleep(each)
			now.Add(-1)
			leave()
			over <- struct{}{}
		}()
		during()
	}
	for range n {
		<-over
	}
	return atOnce, time.Since(began)
}

func TestCopiesGiveWayToClients(t *testing.T) {
	for _, tc := range []struct {
		name   string
		each   time.Duration
		client bool
		atOnce int
		took   time.Duration // of 10 frames
	}{
		{"idle", 10 * time.Millisecond, false, 10, 10 * time.Millisecond},
		{"beside clients", 10 * time.Millisecond, true, 1, 9*(10*time.Millisecond+10*time.Millisecond/passageRest) + 10*time.Millisecond},
		{"what hangs keeps nothing back", 10 * time.Second, true, 10, 9*passageHold + 10*time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPassage()
				client := func() {
					if tc.client {
						p.client()
					}
				}
				client()
				if atOnce, took := frames(t, p, 10, tc.each, client); atOnce != tc.atOnce || took != tc.took {
					t.Errorf("%d frames at once, all after %v; want %d and %v", atOnce, took, tc.atOnce, tc.took)
				}
				time.Sleep(clientsLinger)
				synctest.Wait()
				if atOnce, _ := frames(t, p, 10, tc.each, func() {}); atOnce != 10 {
					t.Errorf("clients are gone, and only %d frames pass at once", atOnce)
				}
			})
		})
	}
}

func TestPassageIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPassage()
		p.client()
		leave, err := p.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := p.enter(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("entered an occupied passage: %v", err)
		}
		leave()
		time.Sleep(passageHold)
	})
}

// What one more loss would destroy is copied beside clients as if there were none.
func TestUrgentCopiesDoNotGiveWay(t *testing.T) {
	code := chunk.Layout{Data: 4, Parity: 2, Cell: 64 << 10}.WithMin(0)
	f := newSource(t)
	_, s := one(t)
	for _, tc := range []struct {
		layout  chunk.Layout
		missing []int
		urgent  bool
	}{
		{chunk.Copies(3), []int{0}, false},
		{chunk.Copies(3), []int{0, 2}, true},
		{chunk.Copies(1), nil, false}, // it never has more
		{code, []int{0}, false},
		{code, []int{0, 5}, true},
	} {
		p, err := s.plan(f.order(7, tc.layout, 1<<20, tc.layout, 0, tc.missing...))
		if err != nil {
			t.Fatal(err)
		}
		if p.urgent != tc.urgent {
			t.Errorf("%v without %v: urgent is %v", tc.layout, tc.missing, p.urgent)
		}
	}
}

func TestWhoIsAClient(t *testing.T) {
	_, s := one(t)
	c := dial(t, s)
	is := func(what string, client bool) {
		t.Helper()
		if s.copyPass.beside() != client {
			t.Errorf("%s: a client is %v", what, !client)
		}
		s.copyPass.clients.Store(0)
	}
	w := c.append(1)
	w.send([]byte("some bytes"), nil)
	w.acked(10, 0)
	is("an append", true)
	c.mustRead(1, 0, []byte("some bytes"))
	is("a read", true)
	_, p, err := rpc.ReadChunk(t.Context(), c.conn, &pb.ReadRequest{Chunk: 1, Length: 10, Cluster: testCluster, Server: uint32(s.store.identity().Server)})
	if err != nil {
		t.Fatal(err)
	}
	p.Free()
	is("a copy's read", false)
}

// What is about to be lost does not wait behind what gives way to clients.
func TestUrgentCopiesComeFirst(t *testing.T) {
	order := func(id uint64, servers ...uint32) *pb.CopyOrder {
		return &pb.CopyOrder{Stored: id, Layout: chunk.Copies(3).Proto(), Source: &pb.ChunkInfo{Id: id, Layout: chunk.Copies(3).Proto(), Servers: servers}}
	}
	q := newCopies(func(id chunk.ID) bool { return id == 4 })
	q.add([]*pb.CopyOrder{{Stored: 1, Ranges: []*pb.SourceRange{{}}}, order(2, 1, 2, 0), order(3, 1, 2, 0), order(4, 1, 0, 0), order(5, 0, 2, 0)})
	for _, want := range []chunk.ID{5, 2, 3, 1} {
		if j, _ := q.next(t.Context()); j == nil || j.id != want {
			t.Fatalf("%v is next, not %v", j, want)
		}
	}
	if j, _ := q.next(t.Context()); j != nil {
		t.Errorf("%v is made before it is deleted", j.id)
	}
}
