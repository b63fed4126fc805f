package test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/testenv"
)

// TestRandomOperationsWhileServersDie is TestRandomOperations on an erasure-coded cluster of seven chunk servers, of which two at
// a time are killed and started again throughout. Each of two clients does half of the operations. SHOAL_SEED and SHOAL_OPS are as there.
func TestRandomOperationsWhileServersDie(t *testing.T) {
	seed := uint64(envInt(t, "SHOAL_SEED", int(time.Now().UnixNano()&0x7fffffff)))
	ops := envInt(t, "SHOAL_OPS", 2000)
	c := startProcesses(t, 1, 7)
	if _, err := c.shoal("policy", "set", "shoal:/", "ec=4+2"); err != nil {
		t.Fatal(err)
	}
	for _, p := range c.chunks {
		p.end(syscall.SIGKILL)
		p.apart = true
	}
	c.all(c.chunks, (*process).start)
	stop := make(chan struct{})
	var killer sync.WaitGroup
	kills := 0
	killer.Go(func() { kills = c.killTwoAtATime(rand.New(rand.NewPCG(seed, 2)), stop) })
	t.Cleanup(func() { killer.Wait() }) // before the cluster is stopped
	end := sync.OnceFunc(func() { close(stop) })
	t.Cleanup(end)

	t.Run("SDK", func(t *testing.T) {
		s := &sdkTarget{ctx: t.Context(), address: c.metaAddrs[0]}
		s.fs = dialCluster(t, s.address)
		t.Cleanup(func() { _ = s.fs.Close() }) // after a failure; else remount has closed what counts
		randomOperations(t, s, seed, ops/2)
		emptyRoot(t, s)
	})
	t.Run("mount", func(t *testing.T) {
		testenv.NeedFUSE(t)
		randomOperations(t, &mountTarget{dir: c.mountDir, cluster: c.metas[0], main: c.mount}, seed, ops/2)
	})
	end()
	killer.Wait()
	t.Logf("%d servers were killed", kills)
	if kills == 0 {
		t.Error("no server was killed")
	}
	c.mount.end(syscall.SIGTERM) // what it has open is sealed
	c.sound()
	c.mount.start()
}

// emptyRoot removes what a target has in its root.
func emptyRoot(t *testing.T, to target) {
	t.Helper()
	var empty func(dir string)
	empty = func(dir string) {
		list, err := to.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range list {
			name := strings.TrimSuffix(dir, "/") + "/" + d.Name()
			if d.IsDir() {
				empty(name)
			}
			if err := to.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	empty("/")
}

// killTwoAtATime kills two chunk servers at random, starts them again, waits until all are healthy, and so on until stop
// is closed. It returns how many it killed.
func (c *processes) killTwoAtATime(rnd *rand.Rand, stop <-chan struct{}) (kills int) {
	for {
		pair := rnd.Perm(len(c.chunks))[:2]
		for _, i := range pair {
			c.chunks[i].end(syscall.SIGKILL)
			kills++
		}
		pause := time.NewTimer(time.Duration(rnd.IntN(1500)) * time.Millisecond) // how long they are down is part of the load
		select {
		case <-pause.C:
		case <-stop:
		}
		for _, i := range pair {
			c.chunks[i].start()
		}
		eventually(c.t, "all chunk servers are there", func() error {
			s, err := c.status()
			if err != nil {
				return err
			}
			for _, server := range s.Chunkservers {
				if server.LastSeen > 2000 || server.State == "dead" {
					return fmt.Errorf("%+v", server)
				}
			}
			return nil
		})
		select {
		case <-stop:
			return kills
		default:
		}
	}
}

// clusterStatus is what the tests read of `shoal status --json`.
type clusterStatus struct {
	Chunkservers []struct {
		ID       int    `json:"id"`
		State    string `json:"state"`
		LastSeen int    `json:"last_seen_ms"`
	} `json:"chunkservers"`
	Redundancy struct {
		Known      bool   `json:"known"`
		Degraded   int    `json:"degraded"`
		Endangered int    `json:"endangered"`
		Unreadable int    `json:"unreadable"`
		Summary    string `json:"summary"`
	} `json:"redundancy"`
}

func (c *processes) status() (s clusterStatus, err error) {
	out, err := c.shoal("status", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	return s, err
}

// sound waits until every chunk has all its shards, and has everything checked.
func (c *processes) sound() {
	c.t.Helper()
	eventually(c.t, "every chunk has all its shards", func() error {
		s, err := c.status()
		if r := s.Redundancy; err == nil && (!r.Known || r.Degraded+r.Endangered+r.Unreadable > 0) {
			err = fmt.Errorf("%+v", r)
		}
		return err
	})
	eventually(c.t, "fsck finds nothing", func() error {
		out, err := c.shoal("fsck")
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, out)
		}
		return err
	})
}
