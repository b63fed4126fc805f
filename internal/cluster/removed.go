package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// leaveRemoved gives up chunk servers that an operator removed from the cluster (shoal servers remove): no metaserver would
// let them in. Their directories stay; with an empty one a chunk server joins anew.
func (c *Cluster) leaveRemoved(ctx context.Context) error {
	st, err := c.Status(ctx)
	for err == nil && st.Space == nil { // no leader just now
		select {
		case <-time.After(10 * time.Millisecond):
			st, err = c.Status(ctx)
		case <-c.failed:
			return c.failure
		case <-ctx.Done():
			return fmt.Errorf("no metaserver leads: %w", context.Cause(ctx))
		}
	}
	if err != nil {
		return err
	}
	for i, s := range c.chunks {
		id := uint32(s.Status().ID)
		if id == 0 || slices.ContainsFunc(st.Servers, func(v *pb.ServerInfo) bool { return v.Id == id }) {
			continue
		}
		part := partName("chunk", i)
		c.cfg.Logger.Warn("this chunk server was removed from the cluster and is not started; with an empty directory it joins anew", "part", part, "server", id)
		if err := s.Close(); err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
		c.chunks[i] = nil
	}
	return nil
}
