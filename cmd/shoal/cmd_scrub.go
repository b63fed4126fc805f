package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoalfs/shoalfs/client"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// passLost is how long the leading metaserver may know nothing of a pass before it counts as lost: a new one hears of it from
// the chunk servers.
const passLost = 30 * time.Second

func newScrub(c *cli) *cobra.Command {
	var noWait, asJSON bool
	cmd := &cobra.Command{
		Use:   "scrub [--no-wait]",
		Short: "Have all chunk servers check all that they hold, now",
		Long: `scrub has every chunk server read all that it holds and compare it with its checksums, and waits until all have. Servers do so
by themselves all the time, slowly (--scrub-rate of "shoal chunk" and "shoal up"); this is for knowing now.

What is found bad is made anew from what other servers hold, without being asked for: that is reported and is no failure. The
exit status is 1 when a server could not be checked. An interruption ends the waiting, not the pass.`,
		Args: exactly(0, "nothing"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withFS(cmd.Context(), func(fsys *client.FS) error {
				r, err := fsys.Scrub(cmd.Context(), true)
				if err != nil {
					return plain(err)
				}
				servers, err := fsys.Servers(cmd.Context())
				if err != nil {
					return err
				}
				s := newScrubWatch(time.Now(), r, servers)
				if noWait {
					return c.scrubStarted(s, asJSON)
				}
				if err := c.awaitScrub(cmd.Context(), fsys, s); err != nil {
					return err
				}
				return c.reportScrub(cmd, s, asJSON)
			})
		},
	}
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "start it, and do not wait for its end")
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON: a list of servers with what was checked and found, sizes in bytes")
	return cmd
}

// scrubWatch is what is known of a pass.
type scrubWatch struct {
	pass    uint64
	known   time.Time // when the leading metaserver last knew of it
	servers map[uint32]*pb.ScrubProgress
	gone    map[uint32]bool // servers that left before they were done
}

// newScrubWatch takes the answer to the start of a pass, which is about those of the servers that are not dead.
func newScrubWatch(now time.Time, r *pb.ScrubReply, servers []*pb.ServerInfo) *scrubWatch {
	s := &scrubWatch{pass: r.Pass, known: now, servers: map[uint32]*pb.ScrubProgress{}, gone: map[uint32]bool{}}
	for _, v := range servers {
		s.servers[v.Id] = &pb.ScrubProgress{}
	}
	_, _ = s.look(now, r) // the pass is its own: not lost
	return s
}

// look takes what the cluster says at a time. It tells whether all servers that are there are done.
func (s *scrubWatch) look(now time.Time, r *pb.ScrubReply) (over bool, err error) {
	switch {
	case r.Pass >= s.pass: // a newer one checks everything, too
		s.known = now
	case now.Sub(s.known) > passLost:
		return false, errors.New("the leading metaserver, which is another one now, knows nothing of this pass any more: start it again")
	default:
		return false, nil
	}
	here := map[uint32]bool{}
	for _, v := range r.Servers {
		here[v.Server] = true
		switch p := v.GetProgress(); {
		case p.GetPass() >= s.pass:
			s.servers[v.Server] = p
		case s.servers[v.Server] == nil:
			s.servers[v.Server] = &pb.ScrubProgress{}
		}
	}
	over = true
	for id, p := range s.servers {
		s.gone[id] = !here[id] && !p.Finished
		over = over && (p.Finished || s.gone[id])
	}
	return over, nil
}

func (s *scrubWatch) ids() []uint32 {
	var out []uint32
	for id := range s.servers {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

func (s *scrubWatch) total() *pb.ScrubProgress {
	sum := &pb.ScrubProgress{}
	for _, p := range s.servers {
		sum.Done += p.Done
		sum.Total += p.Total
		sum.Found += p.Found
	}
	return sum
}

// awaitScrub waits until every server is done, or gone.
func (c *cli) awaitScrub(ctx context.Context, fsys *client.FS, s *scrubWatch) error {
	g := c.newGauge()
	defer g.stop()
	for {
		r, err := fsys.Scrub(ctx, false)
		if err == nil {
			var over bool
			if over, err = s.look(time.Now(), r); over && err == nil {
				s.draw(g)
				return nil
			}
		}
		if err == nil {
			s.draw(g)
			err = sleep(ctx, pollEvery)
		}
		switch {
		case ctx.Err() != nil:
			return errors.New("interrupted: the pass goes on")
		case err != nil:
			return plain(err)
		}
	}
}

// maxBars is how many servers get a bar of their own.
const maxBars = 10

func (s *scrubWatch) draw(g *gauge) {
	if len(s.servers) <= maxBars {
		for _, id := range s.ids() {
			drawScrub(g, fmt.Sprintf("chunk server %d", id), s.servers[id])
		}
	}
	if len(s.servers) != 1 {
		drawScrub(g, "all", s.total())
	}
}

func drawScrub(g *gauge, name string, p *pb.ScrubProgress) {
	text := humanSize(p.Done) + " / " + humanSize(p.Total)
	if p.Found > 0 {
		text += fmt.Sprintf(", %d bad", p.Found)
	}
	g.show(name, p.Done, p.Total, text)
}

type jsonScrub struct {
	Finished bool              `json:"finished"` // on every server
	Checked  uint64            `json:"checked"`  // bytes
	Total    uint64            `json:"total"`
	Found    uint64            `json:"found"` // shards that are bad
	Servers  []jsonServerScrub `json:"servers"`
}

type jsonServerScrub struct {
	ID       uint32 `json:"id"`
	Checked  uint64 `json:"checked"`
	Total    uint64 `json:"total"`
	Found    uint64 `json:"found"`
	Finished bool   `json:"finished"`
}

func (s *scrubWatch) json() jsonScrub {
	sum := s.total()
	out := jsonScrub{Finished: true, Checked: sum.Done, Total: sum.Total, Found: sum.Found, Servers: []jsonServerScrub{}}
	for _, id := range s.ids() {
		p := s.servers[id]
		out.Finished = out.Finished && p.Finished
		out.Servers = append(out.Servers, jsonServerScrub{id, p.Done, p.Total, p.Found, p.Finished})
	}
	return out
}

// scrubStarted is for those who do not wait.
func (c *cli) scrubStarted(s *scrubWatch, asJSON bool) error {
	if asJSON {
		return writeJSON(c.out, s.json())
	}
	n := uint64(0)
	for _, gone := range s.gone {
		if !gone {
			n++
		}
	}
	return c.announce("started on " + plural(n, "chunk server"))
}

// reportScrub says what was checked and found. It fails when something that should have been checked was not.
func (c *cli) reportScrub(cmd *cobra.Command, s *scrubWatch, asJSON bool) error {
	var failed failures
	rows := [][]string{{"Server", "Checked", "Bad", "State"}}
	for _, id := range s.ids() {
		p, state := s.servers[id], "done"
		if s.gone[id] {
			state = "gone"
			failed.add(fmt.Errorf("chunk server %d is not there: it was not checked, or not to the end", id))
		}
		rows = append(rows, []string{strconv.FormatUint(uint64(id), 10), humanSize(p.Done), strconv.FormatUint(p.Found, 10), state})
	}
	if asJSON {
		return errors.Join(writeJSON(c.out, s.json()), c.report(cmd, &failed))
	}
	if err := table(c.out, rows, 0, 1, 2); err != nil {
		return err
	}
	sum, line := s.total(), "nothing bad was found"
	if sum.Found > 0 {
		line = plural(sum.Found, "shard") + " found bad, to be made anew from the others: 'shoal status' says how far that is"
	}
	return errors.Join(c.announce(humanSize(sum.Done)+" checked: "+line), c.report(cmd, &failed))
}
