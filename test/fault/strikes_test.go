package fault

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/test/fault/faultfs"
)

// scene is a cluster under load in which something is about to break.
type scene struct {
	*Cluster
	load *Load
	long bool
	t    *testing.T
}

// victim is the chunk server that holds most.
func (s *scene) victim() *Server { return s.victims(1)[0] }

func (s *scene) victims(n int) (v []*Server) {
	s.t.Helper()
	if err := s.Eventually("chunk servers hold something", func() (err error) {
		v, err = s.Busiest(n)
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	for _, server := range v {
		s.t.Logf("the fault is one of %s", server.Name)
	}
	return v
}

// leader is the metaserver that leads.
func (s *scene) leader() *Server {
	s.t.Helper()
	l, err := s.Leader()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Logf("the fault is one of %s", l.Name)
	return l
}

// run lets the load go on for a while: so many seconds in the short matrix, ten times as long in the long one.
func (s *scene) run(seconds float64) error {
	d := time.Duration(seconds * float64(time.Second))
	if s.long {
		d *= 10
	}
	return s.load.Run(d)
}

// onDisk puts the named servers on disks with faults; a name that ends in - stands for all that begin so.
func onDisk(names ...string) func(string) bool {
	return func(name string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return n == name || strings.HasSuffix(n, "-") && strings.HasPrefix(name, n) })
	}
}

// killed ends servers as kill -9 does, for a while.
func killed(n int) func(*scene) error {
	return func(s *scene) error {
		victims := s.victims(n)
		if err := Kill(victims...); err != nil {
			return err
		}
		if err := s.run(2); err != nil {
			return err
		}
		return s.StartAll(victims...)
	}
}

// stopped stops a server with SIGSTOP.
func stopped(d time.Duration, choose func(*scene) *Server) func(*scene) error {
	return func(s *scene) error {
		victim := choose(s)
		if err := victim.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		if err := s.load.Run(d); err != nil {
			return err
		}
		return victim.Signal(syscall.SIGCONT)
	}
}

// network breaks the network for a while.
func network(seconds float64, breakIt func(*scene) error) func(*scene) error {
	return func(s *scene) error {
		if err := breakIt(s); err != nil {
			return err
		}
		if err := s.run(seconds); err != nil {
			return err
		}
		return s.Net.Heal()
	}
}

// sick gives the disk of a chunk server faults for a while.
func sick(seconds float64, faults faultfs.Faults) func(*scene) error {
	return func(s *scene) error {
		victim := s.victim()
		victim.Disk.SetFaults(faults)
		if err := s.run(seconds); err != nil {
			return err
		}
		victim.Disk.SetFaults(faultfs.Faults{})
		return victim.Restart() // a disk that failed is not used again until somebody has looked at it
	}
}

var (
	broken = faultfs.Faults{Errno: [...]syscall.Errno{faultfs.Names: syscall.EIO, faultfs.Read: syscall.EIO, faultfs.Write: syscall.EIO, faultfs.Sync: syscall.EIO}}
	unable = faultfs.Faults{Errno: [...]syscall.Errno{faultfs.Write: syscall.EIO, faultfs.Sync: syscall.EIO}}
	// A disk does a write in a tenth of a millisecond and a sync in one; this one does not.
	slow = faultfs.Faults{Delay: [...]time.Duration{faultfs.Names: 10 * time.Millisecond, faultfs.Read: 10 * time.Millisecond, faultfs.Write: 10 * time.Millisecond, faultfs.Sync: 100 * time.Millisecond}}
)

func killLeader(s *scene) error {
	leader := s.leader()
	if err := Kill(leader); err != nil {
		return err
	}
	if err := s.run(2); err != nil {
		return err
	}
	return leader.Start()
}

// sickLeader gives the disk of the leading metaserver faults for a while. It may end because of them.
func sickLeader(begin, end func(*faultfs.Disk)) func(*scene) error {
	return func(s *scene) error {
		leader := s.leader()
		begin(leader.Disk)
		if err := s.run(3); err != nil {
			return err
		}
		end(leader.Disk)
		if err := leader.End(syscall.SIGTERM); err != nil {
			return err
		}
		return leader.Start()
	}
}

func full(s *scene) error {
	disk := s.victim().Disk
	disk.SetCapacity(disk.Used() + 1<<20)
	if err := s.run(3); err != nil {
		return err
	}
	disk.SetCapacity(0)
	return nil
}

func damaged(s *scene) error {
	victim := s.victim()
	for round := range uint64(3) {
		n, err := victim.Damage(round)
		if err != nil {
			return err
		}
		s.t.Logf("damaged %d chunks of %s", n, victim.Name)
		if err := s.run(1); err != nil {
			return err
		}
	}
	return nil
}

func restarts(s *scene) error {
	for _, server := range s.Servers() {
		if err := server.Restart(); err != nil {
			return err
		}
		if err := s.Healthy(true); err != nil {
			return err
		}
	}
	return nil
}

func powerLossOfOne(s *scene) error {
	for seed := range uint64(2) { // 0: nothing survives that was not synced
		victim := s.victim()
		if err := s.LosePower(seed, victim); err != nil {
			return err
		}
		if err := s.run(1); err != nil {
			return err
		}
		if err := victim.Start(); err != nil {
			return err
		}
		if err := s.Healthy(true); err != nil {
			return err
		}
	}
	return nil
}

func powerLossOfMeta(s *scene) error {
	for seed := range uint64(3) {
		leader := s.leader()
		if err := s.LosePower(seed, leader); err != nil {
			return err
		}
		if err := s.run(1); err != nil {
			return err
		}
		if err := leader.Start(); err != nil {
			return err
		}
		if err := s.Healthy(true); err != nil {
			return err
		}
	}
	return nil
}

func powerLossOfAll(s *scene) error {
	for seed := range uint64(2) {
		if err := s.LosePower(seed, s.Servers()...); err != nil {
			return err
		}
		if err := s.StartAll(s.Servers()...); err != nil {
			return err
		}
		if err := s.run(1.5); err != nil {
			return err
		}
	}
	return nil
}

// killClients kills a client of the SDK, and a mount with those that work on it.
func killClients(s *scene) error {
	for _, name := range []string{"writer-1", "writer-3", "writer-4"} {
		if err := s.load.Kill(name); err != nil {
			return err
		}
	}
	return s.Mounts[0].End(syscall.SIGKILL)
}

func backFromTheDead(s *scene) error {
	victim := s.victim()
	if err := Kill(victim); err != nil {
		return err
	}
	if err := s.Eventually("the server is thought dead", func() error {
		state, err := s.StateOf(victim)
		if err == nil && state != "dead" {
			err = fmt.Errorf("it is %s", state)
		}
		return err
	}); err != nil {
		return err
	}
	if err := s.run(1); err != nil {
		return err
	}
	return victim.Start()
}
