package data

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// condition is a sync.Cond for the one goroutine that sends to a target.
type condition struct{ c *sync.Cond }

func (c *condition) init(mu *sync.Mutex) { c.c = sync.NewCond(mu) }
func (c *condition) wait()               { c.c.Wait() }
func (c *condition) signal()             { c.c.Signal() }

// start opens the stream. writer.mu is held.
func (t *target) start() {
	if t.started || !t.live {
		return
	}
	t.started = true
	ctx, cancel := context.WithCancel(t.c.w.s.ctx)
	t.cancel = cancel
	if !t.c.w.s.tasks.run(func() { defer cancel(); t.run(ctx) }) {
		cancel()
		t.live = false
	}
}

// idle tells whether nothing is asked of the target that it has not done.
func (t *target) idle() bool {
	pending := t.next-t.c.base < len(t.c.queue)
	return !pending && t.received >= t.sent && t.durable >= min(t.c.syncEnd, t.sent) && (!t.c.closing || t.finished)
}

// busy tells whether it may yet bring the chunk to its end. Nobody waits for late ones when all is given up.
func (t *target) busy() bool {
	return t.started && t.live && !t.finished && !(t.late && t.c.w.closed)
}

// kick has the sender look for work.
func (t *target) kick(now time.Time) {
	if t.received == t.sent && t.next-t.c.base >= len(t.c.queue)-1 { // it had nothing to do until now
		t.since = now
	}
	t.cond.signal()
}

// stalled tells for how long the target has not moved although it had something to do.
func (t *target) stalled(now time.Time) time.Duration {
	if !t.started || !t.live || t.finished || t.cutting || t.idle() {
		return 0
	}
	return now.Sub(t.since)
}

// syncing tells whether the target waits for its disk, which takes what it takes.
func (t *target) syncing() bool { return t.syncSent > t.durable || t.sealSent }

// run sends what is placed in the chunk until the chunk is sealed, or the target fails.
func (t *target) run(ctx context.Context) {
	w := t.c.w
	stream, err := w.dial(ctx, t)
	if err != nil {
		t.fail(fmt.Errorf("chunk %v: open a stream to server %d: %w", t.c.id, t.server, err))
		return
	}
	var receiver sync.WaitGroup
	receiver.Go(func() { t.receive(stream) })
	defer receiver.Wait()
	first := true
	for {
		head, body, ok := t.nextAppend()
		if !ok {
			return
		}
		if first {
			first = false
			head.Cluster, head.Session, head.Server = w.meta.Cluster(), w.meta.Session(), uint32(t.server)
		}
		payload, err := body.open(head)
		t.handOver()
		if err != nil {
			body.close()
			t.fail(fmt.Errorf("chunk %v: cut a frame for server %d: %w", t.c.id, t.server, err))
			return
		}
		err = stream.Send(head, payload)
		body.close()
		if err == nil && head.Seal {
			err = stream.CloseSend()
			if err == nil {
				return
			}
		}
		if err != nil {
			// Recv says why the server ended the call.
			if !errors.Is(err, io.EOF) {
				t.fail(fmt.Errorf("chunk %v: append to server %d: %w", t.c.id, t.server, err))
			}
			return
		}
	}
}

// nextAppend waits for something to send. It returns false when there will be nothing more. The checksums of a shard are
// still missing.
func (t *target) nextAppend() (*pb.AppendHeader, load, bool) {
	w, c := t.c.w, t.c
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if !t.live || t.sealSent {
			return nil, load{}, false
		}
		pending := t.next-c.base < len(c.queue)
		switch {
		case pending && t.sent-t.received < windowBytes && t.next-t.acked < windowFrames:
			fr := c.queue[t.next-c.base]
			head := t.header(fr.off)
			t.next++
			t.sent = fr.end()
			t.askSync(head)
			if fr.cut != nil {
				fr.cut.refs.Add(1)
				t.cutting = true
				return head, load{cut: fr.cut, shard: t.shard}, true
			}
			head.Checksums = fr.sums
			return head, load{whole: fr.payload()}, true
		case !pending && c.closing:
			t.sealSent, t.syncSent = true, t.sent
			head := t.header(t.sent)
			head.Durable, head.Seal = true, true
			return head, load{}, true
		case !pending && c.syncEnd > t.syncSent:
			head := t.header(t.sent)
			t.askSync(head)
			return head, load{}, true
		}
		t.cond.wait()
	}
}

// header announces an append at an offset of the chunk.
func (t *target) header(off uint64) *pb.AppendHeader {
	l := t.c.layout
	return &pb.AppendHeader{Chunk: uint64(t.c.id.Stored(l, t.shard)), Offset: l.ShardLength(off)}
}

// handOver begins the time that a server has to acknowledge what this client had to cut for it first: that a busy client is
// slow says nothing about the server.
func (t *target) handOver() {
	if !t.c.layout.Coded() {
		return
	}
	w := t.c.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if t.cutting {
		t.cutting, t.since = false, time.Now()
	}
}

// askSync asks for the disk with an append that reaches what is to be there.
func (t *target) askSync(head *pb.AppendHeader) {
	if t.c.syncEnd > t.syncSent && t.sent >= t.c.syncEnd {
		head.Durable = true
		t.syncSent = t.sent
	}
}

// receive takes acknowledgements until the stream ends.
func (t *target) receive(stream rpc.AppendClient) {
	for {
		r, err := stream.Recv()
		if err != nil {
			t.ended(err)
			return
		}
		if err := t.acknowledge(r); err != nil {
			t.fail(err)
			return
		}
	}
}

func (t *target) acknowledge(r *pb.AppendReply) error {
	w, c := t.c.w, t.c
	w.mu.Lock()
	defer w.mu.Unlock()
	if !t.live {
		return nil
	}
	if sent := c.layout.ShardLength(t.sent); r.Length > sent || r.Durable > r.Length {
		return fmt.Errorf("chunk %v: server %d acknowledges %d bytes, %d on disk, of %d sent", c.id, t.server, r.Length, r.Durable, sent)
	}
	received, durable := c.layout.ChunkLength(r.Length), c.layout.ChunkLength(r.Durable)
	if received <= t.received && durable <= t.durable {
		return nil
	}
	t.received, t.durable = max(t.received, received), max(t.durable, durable)
	t.since = time.Now()
	for t.acked < t.next && t.acked-c.base < len(c.queue) && (t.acked < c.base || c.queue[t.acked-c.base].end() <= t.received) {
		t.acked++
	}
	w.health.good(t.server)
	c.advance()
	t.cond.signal()
	return nil
}

// ended is called when the server has ended the stream.
func (t *target) ended(err error) {
	w, c := t.c.w, t.c
	w.mu.Lock()
	defer w.mu.Unlock()
	if !t.live || t.finished {
		return
	}
	if errors.Is(err, io.EOF) {
		if t.sealSent && t.received >= t.sent && t.durable >= t.sent {
			t.finished = true
			c.notify()
			c.retire()
			return
		}
		err = errors.New("the server ended the stream early")
	}
	c.drop(t, fmt.Errorf("chunk %v: append to server %d: %w", c.id, t.server, err))
}

func (t *target) fail(err error) {
	w := t.c.w
	w.mu.Lock()
	defer w.mu.Unlock()
	t.c.drop(t, err)
}
