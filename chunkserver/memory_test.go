package chunkserver

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// clog is a way to a server on which, once it is stopped, nothing comes back, as from a machine that hangs.
type clog struct {
	net.Listener
	mu      sync.Mutex
	stopped bool
	conns   []net.Conn
	copies  sync.WaitGroup
}

func newClog(t *testing.T, to string) *clog {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &clog{Listener: l}
	c.copies.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			c.mu.Lock()
			c.conns = append(c.conns, near, far)
			c.mu.Unlock()
			c.copies.Go(func() { _, _ = io.Copy(far, near) })
			c.copies.Go(func() { c.back(near, far) })
		}
	})
	return c
}

func (c *clog) back(near, far net.Conn) {
	b := make([]byte, 4096)
	for {
		c.mu.Lock()
		stopped := c.stopped
		c.mu.Unlock()
		if stopped {
			return
		}
		n, err := far.Read(b)
		if err == nil {
			_, err = near.Write(b[:n])
		}
		if err != nil {
			return
		}
	}
}

func (c *clog) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
}

// cut ends all connections without a word.
func (c *clog) cut() {
	_ = c.Close()
	c.mu.Lock()
	for _, conn := range c.conns {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
	c.mu.Unlock()
	c.copies.Wait()
}

// TestMemoryOfClientsThatVanish: replies on their way to a client that is gone do not take memory from the others for ever,
// although gRPC drops some of them without a word.
func TestMemoryOfClientsThatVanish(t *testing.T) {
	m := newMeta(t)
	s := start(t, Config{Dirs: []string{t.TempDir()}, Meta: []string{m.srv.Address()}, ReadMemory: 32 << 20})
	s.awaitReady(t)
	c := dial(t, s)
	w := c.append(1)
	want := random(chunk.MaxFrame)
	for range 4 {
		w.send(want, nil)
	}
	w.acked(4*chunk.MaxFrame, 0)
	for round := range 10 {
		way := newClog(t, s.Address())
		conn, err := rpc.Dial(way.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var reads sync.WaitGroup
		req := &pb.ReadRequest{Chunk: 1, Length: 1, Cluster: testCluster, Server: uint32(s.store.identity().Server)}
		if _, p, err := rpc.ReadChunk(ctx, conn, req); err != nil {
			t.Fatal(err)
		} else {
			p.Free()
		}
		way.stop()
		before := s.metrics.bytesRead.Load()
		const n = 5
		for range n {
			reads.Go(func() {
				r := &pb.ReadRequest{Chunk: 1, Length: chunk.MaxRead, Cluster: req.Cluster, Server: req.Server}
				if _, p, err := rpc.ReadChunk(ctx, conn, r); err == nil {
					p.Free()
				}
			})
		}
		awaitTrue(t, fmt.Sprint("the replies are on their way, round ", round), func() bool { return s.metrics.bytesRead.Load() >= before+n*chunk.MaxRead })
		way.cut()
		cancel()
		reads.Wait()
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	awaitTrue(t, "the memory is given back", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, p, err := rpc.ReadChunk(ctx, c.conn, &pb.ReadRequest{Chunk: 1, Length: chunk.MaxRead, Cluster: testCluster, Server: uint32(s.store.identity().Server)})
		p.Free()
		return err == nil
	})
}

func awaitTrue(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("never: %s", what)
		}
	}
}
