package meta

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// What the data path needs of the metadata.

// Commit publishes written data. It fails with EIO when the session ended before the answer came.
func (c *Client) Commit(ctx context.Context, op *pb.Commit) (*pb.Result, error) {
	return c.Mutate(ctx, credNone, &pb.Op{Op: &pb.Op_Commit{Commit: op}})
}

// Relocate has extents of a file refer to where their bytes were written again. It fails with EIO when the session ended before the
// answer came.
func (c *Client) Relocate(ctx context.Context, op *pb.Relocate) error {
	_, err := c.Mutate(ctx, credNone, &pb.Op{Op: &pb.Op_Relocate{Relocate: op}})
	return err
}

// AllocChunks takes new chunks of a layout, of the cluster's default one if it is zero. Those that come may be of another
// layout, when too few servers are up for the one wanted. EAGAIN: too few chunk servers are healthy now.
func (c *Client) AllocChunks(ctx context.Context, layout chunk.Layout, count int, avoid []chunk.ServerID) ([]*pb.AllocatedChunk, error) {
	op := &pb.AllocChunks{Count: uint32(count), Want: layout.Proto()}
	for _, s := range avoid {
		op.Avoid = append(op.Avoid, uint32(s))
	}
	for {
		r, err := c.Mutate(ctx, credNone, &pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: op}})
		switch {
		case err == nil:
			return r.Chunks, nil
		case !errors.Is(err, errUnknown):
			return nil, err
		}
		// What the old session got is gone with it.
	}
}

// SealChunks gives chunks up. After the session's end there is nothing to do: that sealed them.
func (c *Client) SealChunks(ctx context.Context, chunks []*pb.ChunkCommit) error {
	_, err := c.Mutate(ctx, credNone, &pb.Op{Op: &pb.Op_SealChunks{SealChunks: &pb.SealChunks{Chunks: chunks}}})
	if errors.Is(err, errUnknown) {
		return nil
	}
	return err
}

// Extents returns where a file's data is: at least the block of posix.ExtentBlock bytes that holds off, or less of it if
// length says so and it is not cached. fresh asks the server whatever is cached.
func (c *Client) Extents(ctx context.Context, inode, off, length uint64, fresh bool) (*pb.ExtentsReply, error) {
	if !fresh {
		r := c.cache.extents(inode, off)
		c.hit(r != nil)
		if r != nil {
			return r, nil
		}
	}
	start := off - off%posix.ExtentBlock
	if off-start+length <= posix.ExtentBlock {
		off, length = start, 0 // the whole block, to be cached
	}
	var r *pb.ExtentsReply
	sent, err := c.read(ctx, "Extents", credNone, func(ctx context.Context, api pb.MetaClient, rc *pb.ReadContext) error {
		var err error
		r, err = api.Extents(ctx, &pb.ExtentsRequest{Ctx: rc, Inode: inode, Offset: off, Length: length})
		return err
	})
	if err != nil {
		return nil, err
	}
	if r.Attr == nil || r.Attr.Inode != inode {
		return nil, fserr.New(syscall.EIO, "the metaserver's answer is not about inode %d", inode)
	}
	if r.Leased {
		c.cache.mu.Lock()
		defer c.cache.mu.Unlock()
		c.cache.learnExtents(r, sent)
	}
	return r, nil
}

// Server returns where a chunk server is, as the leader last said.
func (c *Client) Server(ctx context.Context, id chunk.ServerID) (string, pb.ServerState, error) {
	if s := c.server(id); s != nil {
		return s.Address, s.State, nil
	}
	if _, err := c.Servers(ctx); err != nil {
		return "", 0, err
	}
	if s := c.server(id); s != nil {
		return s.Address, s.State, nil
	}
	return "", 0, fmt.Errorf("chunk server %d is not known in the cluster", id)
}

func (c *Client) server(id chunk.ServerID) *pb.ServerInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.servers[uint32(id)]
}

// When more than maxDead servers, and more than one of deadShare, are dead at once, it is likelier the metaserver that has lost them.
const (
	maxDead   = 2
	deadShare = 3
)

// Leaving returns the chunk servers that are being drained and those that are dead, as the leader last said. Of the dead there are none
// where they are so many that it may well be wrong.
func (c *Client) Leaving() (drained, dead []chunk.ServerID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, s := range c.servers {
		switch {
		case s.Draining:
			drained = append(drained, chunk.ServerID(id))
		case s.State == pb.ServerState_SERVER_STATE_DEAD:
			dead = append(dead, chunk.ServerID(id))
		}
	}
	if len(dead) > maxDead && len(dead)*deadShare > len(c.servers) {
		dead = nil
	}
	return drained, dead
}

// ReportServer tells the leader that a chunk server, or its copy of a chunk, failed. It does not wait and may get lost.
func (c *Client) ReportServer(server chunk.ServerID, id chunk.ID, cause error) {
	req := &pb.ReportServerRequest{Session: c.Session(), Server: uint32(server), Chunk: uint64(id)}
	if cause != nil {
		req.Error = cause.Error()
	}
	select {
	case c.reports <- req:
	default: // it failed often just now: the leader knows
	}
}

func (c *Client) report(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case req := <-c.reports:
			call, cancel := context.WithTimeout(ctx, hungAfter)
			err := c.conn.call(call, "ReportServer", nil, func(ctx context.Context, api pb.MetaClient) error {
				_, err := api.ReportServer(ctx, req)
				return err
			})
			cancel()
			if err != nil {
				c.log.Debug("cannot report a chunk server", "server", req.Server, "err", err)
			}
		}
	}
}
