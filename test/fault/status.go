package fault

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// Shoal runs a command of the command line against the cluster and returns what it printed.
func (c *Cluster) Shoal(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.opts.Binary, append([]string{"--cluster", c.Addresses()}, args...)...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := c.console.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("shoal %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), err
}

// status is what is used of `shoal status --json`; nothing else here knows the names of its fields.
type status struct {
	Problems    []string `json:"problems"`
	Metaservers []struct {
		Address string `json:"address"`
		Leader  bool   `json:"leader"`
		State   string `json:"state"`
	} `json:"metaservers"`
	Chunkservers []struct {
		Address string `json:"address"`
		State   string `json:"state"`
		Problem string `json:"problem"`
	} `json:"chunkservers"`
	// Redundancy is absent where the cluster repairs nothing.
	Redundancy *struct {
		Known      bool   `json:"known"`
		Degraded   uint64 `json:"degraded"`   // chunks with fewer shards than they are to have
		Endangered uint64 `json:"endangered"` // likewise, and none to spare
		Unreadable uint64 `json:"unreadable"` // of which too few are left
		Moving     uint64 `json:"moving"`     // shards being made or moved
	} `json:"redundancy"`
}

func (c *Cluster) status() (*status, error) {
	out, err := c.Shoal("status", "--json")
	if err != nil {
		return nil, err
	}
	s := new(status)
	if err := json.Unmarshal([]byte(out), s); err != nil {
		return nil, fmt.Errorf("%w in %s", err, out)
	}
	return s, nil
}

// healthy tells what keeps the cluster from being whole: all servers there, nothing lost, nothing under repair. While the
// cluster repairs nothing, copies that are missing do not count, as they will be missing for ever.
func (s *status) healthy(metas, chunks int, whole bool) error {
	leaders := 0
	for _, m := range s.Metaservers {
		if m.Leader {
			leaders++
		} else if m.State == "unreachable" {
			return fmt.Errorf("metaserver %s is %s", m.Address, m.State)
		}
	}
	switch {
	case leaders != 1 || len(s.Metaservers) != metas:
		return fmt.Errorf("%d of %d metaservers lead", leaders, len(s.Metaservers))
	case len(s.Chunkservers) != chunks:
		return fmt.Errorf("%d chunk servers of %d", len(s.Chunkservers), chunks)
	}
	for _, cs := range s.Chunkservers {
		if cs.State != "healthy" {
			return fmt.Errorf("chunk server %s is %s: %s", cs.Address, cs.State, cs.Problem)
		}
	}
	if r := s.Redundancy; whole && r != nil {
		if !r.Known || r.Degraded > 0 || r.Endangered > 0 || r.Unreadable > 0 || r.Moving > 0 || len(s.Problems) > 0 {
			return fmt.Errorf("%+v; problems: %q", *r, s.Problems)
		}
	}
	return nil
}

// Healthy waits until all servers are well and, if it is to be whole, all chunks have all their shards.
func (c *Cluster) Healthy(whole bool) error {
	return c.Eventually("the cluster is healthy", func() error {
		s, err := c.status()
		if err != nil {
			return err
		}
		return s.healthy(len(c.Metas), len(c.Chunks), whole)
	})
}

// Scrub has all chunk servers check all that they hold, and waits for that.
func (c *Cluster) Scrub() error {
	_, err := c.Shoal("scrub")
	return err
}

// Leader returns the metaserver that leads.
func (c *Cluster) Leader() (leader *Server, err error) {
	err = c.Eventually("a metaserver leads", func() error {
		s, err := c.status()
		if err != nil {
			return err
		}
		for _, m := range s.Metaservers {
			for _, server := range c.Metas {
				if m.Leader && strings.HasPrefix(m.Address, server.Host.IP.String()+":") {
					leader = server
					return nil
				}
			}
		}
		return fmt.Errorf("none of %d", len(s.Metaservers))
	})
	return leader, err
}

// StateOf returns what the cluster thinks of a chunk server.
func (c *Cluster) StateOf(server *Server) (string, error) {
	s, err := c.status()
	if err != nil {
		return "", err
	}
	for _, cs := range s.Chunkservers {
		if strings.HasPrefix(cs.Address, server.Host.IP.String()+":") {
			return cs.State, nil
		}
	}
	return "", fmt.Errorf("%s is not known", server.Name)
}

// Fsck has the cluster check itself, if this version of it can.
func (c *Cluster) Fsck() error {
	if !Has(c.opts.Binary, "fsck") {
		return nil
	}
	out, err := c.Shoal("fsck")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// Has tells whether a binary has a command. The help of one that it has not is that of the commands above it.
func Has(binary string, command ...string) bool {
	out, err := exec.Command(binary, append(command, "--help")...).Output()
	return err == nil && strings.Contains(string(out), "Usage:\n  shoal "+strings.Join(command, " "))
}

// quickDeath are flags for a metaserver that soon thinks servers dead, of those that it has.
func quickDeath(binary string) []string {
	help, err := exec.Command(binary, "meta", "--help").Output()
	if err != nil {
		return nil
	}
	var out []string
	for flag, value := range map[string]string{"--suspect-after": "1s", "--dead-after": "4s"} {
		if strings.Contains(string(help), flag) {
			out = append(out, flag, value)
		}
	}
	return out
}

// Eventually waits until check finds nothing wrong.
func (c *Cluster) Eventually(what string, check func() error) error {
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return fmt.Errorf("waited %v until %s: %w", Patience, what, err)
		}
	}
}
