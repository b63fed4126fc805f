package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	pollEvery  = 500 * time.Millisecond // how often the cluster is asked how far it is
	stallAfter = 3 * time.Second        // without progress before it is said what holds it up
	settleFor  = pollEvery              // how long a server has to be empty: the last write may just be on its way into the metadata
)

func newDrain(c *cli) *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use:   "drain ID",
		Short: "Move everything away from a chunk server",
		Long: `drain has all that a chunk server holds moved to the others, and nothing new put there, and waits until the server holds
nothing: then it can be stopped, and removed. It goes on serving what it still holds.

An interruption ends the waiting, not the drain: 'shoal servers undrain ID' does that. When the drain does not get on, what holds
it up is written to standard error.`,
		Example: `  shoal servers drain 3 && shoal servers remove 3`,
		Args:    exactly(1, "the number of a chunk server"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withServer(cmd.Context(), args[0], func(fsys *client.FS, id uint32) error {
				shards, err := fsys.DrainServer(cmd.Context(), id)
				if err != nil {
					return err
				}
				if noWait {
					return c.announce(fmt.Sprintf("chunk server %d is being drained; it holds %s", id, plural(shards, "shard")))
				}
				return c.awaitDrain(cmd, fsys, &drain{id: id, total: shards})
			})
		},
	}
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "start it, and do not wait for its end")
	return cmd
}

// awaitDrain waits until the server holds nothing.
func (c *cli) awaitDrain(cmd *cobra.Command, fsys *client.FS, d *drain) error {
	ctx := cmd.Context()
	g := c.newGauge()
	defer g.stop()
	for {
		servers, err := fsys.Servers(ctx)
		if err != nil {
			return d.interrupted(ctx, err)
		}
		st, err := fsys.Status(ctx)
		if err != nil {
			return d.interrupted(ctx, err)
		}
		over, say, err := d.look(time.Now(), servers, st.Redundancy)
		if err != nil {
			return err
		}
		g.show(fmt.Sprintf("chunk server %d", d.id), d.total-d.left, d.total, plural(d.left, "shard")+" left")
		if over {
			g.stop()
			return c.announce(say)
		}
		if say != "" {
			c.notice(cmd, say)
		}
		if err := sleep(ctx, pollEvery); err != nil {
			return d.interrupted(ctx, err)
		}
	}
}

// drain is what is known of one that is waited for.
type drain struct {
	id          uint32
	total, left uint64    // shards
	moved       time.Time // when left last changed
	told        string    // what held it up when that was last said
}

// look takes what the cluster says at a time. It tells whether the drain is over, and what there is to say.
func (d *drain) look(now time.Time, servers []*pb.ServerInfo, r *pb.Redundancy) (over bool, say string, err error) {
	i := slices.IndexFunc(servers, func(s *pb.ServerInfo) bool { return s.Id == d.id })
	if i < 0 {
		d.left = 0
		return true, fmt.Sprintf("chunk server %d has been removed", d.id), nil
	}
	s := servers[i]
	if d.moved.IsZero() || s.Shards != d.left {
		d.moved, d.told = now, ""
	}
	d.left, d.total = s.Shards, max(d.total, s.Shards)
	unknown := r != nil && !r.Known // a new leader may not have counted yet
	switch {
	case !s.Draining:
		return false, "", fmt.Errorf("chunk server %d: the drain was taken back; it holds %s", d.id, plural(s.Shards, "shard"))
	case s.Shards == 0 && !unknown && now.Sub(d.moved) >= settleFor:
		return true, fmt.Sprintf("chunk server %d at %s holds nothing any more: it can be stopped; 'shoal servers remove %d' makes the cluster forget it", d.id, s.Address, d.id), nil
	case now.Sub(d.moved) < stallAfter:
		return false, "", nil
	}
	why := joined("; ", s.Problem, s.Progress)
	if held := r.GetHeldBack(); !strings.Contains(why, held) {
		why = joined("; ", why, held)
	}
	switch {
	case why != "":
	case unknown:
		why = "the leading metaserver is new and still looks at all chunks"
	default:
		why = "nothing moves; 'shoal status' says how the cluster is"
	}
	if why == d.told {
		return false, "", nil
	}
	d.told = why
	return false, fmt.Sprintf("chunk server %d, %s left: %s", d.id, plural(s.Shards, "shard"), why), nil
}

// interrupted tells whoever stops waiting that the drain goes on.
func (d *drain) interrupted(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return fmt.Errorf("chunk server %d is being drained, but how far that is cannot be asked: %w", d.id, err)
	}
	return fmt.Errorf("interrupted: the drain of chunk server %d goes on; 'shoal servers undrain %d' takes it back", d.id, d.id)
}

// sleep waits, unless ctx ends before.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// notice writes a line to standard error, above a progress bar if there is one.
func (c *cli) notice(cmd *cobra.Command, text string) {
	_, _ = fmt.Fprintf(&c.log, "%s: %s\n", cmd.CommandPath(), shown(text, true)) // nowhere left to complain to
}
