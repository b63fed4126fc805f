package rewrite

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// job is a new chunk on its way.
type job struct {
	*batch
	id      chunk.ID
	layout  chunk.Layout // with cells
	length  uint64       // of the chunk
	shards  []shard
	began   time.Time
	enough  time.Time     // since when it has as many shards as count
	changed chan struct{} // 1: a shard was made, or failed
	err     error         // why it cannot be made
}

// shard is one that a server is to make.
type shard struct {
	server  chunk.ServerID // 0: there were not enough
	stored  chunk.ID
	ordered time.Time // when that was last done
	after   time.Time // not before
	made    bool
	failed  int
}

func (s *shard) waiting() bool { return s.server != 0 && !s.made && s.failed < shardTries }

// errWait says that a chunk cannot be made now, through no fault of its own.
var errWait = errors.New("it has to wait")

// do makes the new chunk of a batch and has files refer to it. It returns how many bytes of them do.
func (e *Engine) do(ctx context.Context, b *batch) (moved uint64, err error) {
	j, err := e.begin(b)
	if err != nil {
		return 0, err
	}
	sealed := false
	defer func() { e.end(j, sealed) }()
	if err := e.await(ctx, j); err != nil {
		return 0, err
	}
	moved, err = e.finish(ctx, j)
	sealed = err == nil
	return moved, err
}

// begin takes the chunk and has its shards ordered.
func (e *Engine) begin(b *batch) (*job, error) {
	layout, candidates, wait := e.cluster.Place(b.want)
	if wait != "" {
		return nil, fmt.Errorf("%s: %w", wait, errWait)
	}
	layout = b.layout(layout)
	res, err := e.cluster.Propose(&pb.Op{Op: &pb.Op_StartRewrite{StartRewrite: &pb.StartRewrite{Layout: layout.Proto(), Candidates: candidates}}})
	switch {
	case fserr.Errno(err) == syscall.EAGAIN:
		return nil, fmt.Errorf("%w: %w", err, errWait)
	case err != nil:
		return nil, fmt.Errorf("take a chunk: %w", err)
	case len(res.Chunks) != 1:
		return nil, fmt.Errorf("take a chunk: got %d", len(res.Chunks))
	}
	j := &job{batch: b, id: chunk.ID(res.Chunks[0].Id), layout: layout, length: uint64(layout.Padded(int(b.bytes))), began: time.Now(), changed: make(chan struct{}, 1)}
	for i, s := range res.Chunks[0].Servers {
		j.shards = append(j.shards, shard{server: chunk.ServerID(s), stored: j.id.Stored(layout, i)})
	}
	e.mu.Lock()
	e.jobs[j.id] = j
	e.mu.Unlock()
	for _, s := range j.shards {
		e.cluster.Poke(s.server)
	}
	return j, nil
}

// end forgets a job, and gives its chunk up unless it is sealed. Where that fails the next sweep does it.
func (e *Engine) end(j *job, sealed bool) {
	e.mu.Lock()
	delete(e.jobs, j.id)
	e.mu.Unlock()
	for _, s := range j.shards {
		e.cluster.Poke(s.server) // it has room for another
	}
	if sealed {
		return
	}
	if _, err := e.cluster.Propose(drop(j.id)); err != nil {
		e.log.Debug("a chunk that was being rewritten could not be given up yet", "chunk", j.id, "error", err)
	}
}

func drop(ids ...chunk.ID) *pb.Op {
	op := &pb.DropRewrites{}
	for _, id := range ids {
		op.Chunks = append(op.Chunks, uint64(id))
	}
	return &pb.Op{Op: &pb.Op_DropRewrites{DropRewrites: op}}
}

// sweep gives up the chunks of jobs that are no more: of an earlier leader, or whose end could not be recorded.
func (e *Engine) sweep() error {
	var left []chunk.ID
	if err := e.cluster.View(func(r kv.Reader) error { left = namespace.Rewrites(r); return nil }); err != nil {
		return err
	}
	e.mu.Lock()
	gone := left[:0]
	for _, id := range left {
		if e.jobs[id] == nil {
			gone = append(gone, id)
		}
	}
	e.mu.Unlock()
	if len(gone) == 0 {
		return nil
	}
	if _, err := e.cluster.Propose(drop(gone...)); err != nil {
		return fmt.Errorf("give up %d unfinished chunks: %w", len(gone), err)
	}
	e.log.Info("gave up chunks that were being rewritten and will not be finished", "chunks", len(gone))
	return nil
}

// await returns when enough shards are made, all if that does not take too long.
func (e *Engine) await(ctx context.Context, j *job) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		done, err := e.made(j, time.Now())
		if done || err != nil {
			return err
		}
		select {
		case <-j.changed:
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// made tells whether a job can be finished, or why it never will.
func (e *Engine) made(j *job, now time.Time) (bool, error) {
	dead, gone := map[chunk.ServerID]bool{}, map[chunk.ServerID]bool{}
	for _, s := range e.cluster.Servers() {
		id := chunk.ServerID(s.Id)
		dead[id] = s.State == pb.ServerState_SERVER_STATE_DEAD
		gone[id] = dead[id] || s.Draining
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if j.err != nil {
		return false, j.err
	}
	made, waiting := 0, 0
	for i := range j.shards {
		switch s := &j.shards[i]; {
		case s.made && !dead[s.server]:
			made++
		case s.waiting() && !gone[s.server]:
			waiting++
		}
	}
	if made >= j.layout.Min && j.enough.IsZero() {
		j.enough = now
	}
	switch {
	case made+waiting < j.layout.Min:
		return false, fmt.Errorf("chunk %v: only %d of %d shards could be made", j.id, made, j.layout.Width())
	case waiting == 0, !j.enough.IsZero() && now.Sub(j.enough) > lastShards:
		return true, nil
	case now.Sub(j.began) > jobTimeout:
		return false, fmt.Errorf("chunk %v: %d of %d shards were made within %v", j.id, made, j.layout.Width(), jobTimeout)
	}
	return false, nil
}

// finish has files refer to the new chunk.
func (e *Engine) finish(ctx context.Context, j *job) (moved uint64, err error) {
	end, err := e.cluster.Change(ctx, j.inodes())
	if err != nil {
		return 0, fmt.Errorf("take leases on %d files: %w", len(j.files), err)
	}
	defer end()
	op := j.batch.finish(j.id, j.length)
	op.Servers = make([]uint32, len(j.shards))
	e.mu.Lock()
	for i, s := range j.shards {
		if s.made {
			op.Servers[i] = uint32(s.server)
		}
	}
	e.mu.Unlock()
	for at := 0; at < len(j.blocks); {
		op.Blocks = nil
		for extents := 0; at < len(j.blocks) && (extents == 0 || extents+j.extents[at] <= extentsAStep); at++ {
			extents += j.extents[at]
			op.Blocks = append(op.Blocks, &pb.FileBlock{Inode: j.blocks[at].Inode, Block: j.blocks[at].Number})
		}
		op.Seal = at == len(j.blocks)
		res, err := e.cluster.Propose(&pb.Op{Op: &pb.Op_FinishRewrite{FinishRewrite: op}})
		if err != nil {
			return moved, fmt.Errorf("publish chunk %v: %w", j.id, err)
		}
		moved += res.Bytes
		op.Servers = nil // what of them was found damaged since must not count again
	}
	return moved, nil
}
