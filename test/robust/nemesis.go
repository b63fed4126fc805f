package robust

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/metaserver/lease"
	"github.com/shoalfs/shoalfs/test/fault"
	"github.com/shoalfs/shoalfs/test/fault/faultfs"
	"github.com/shoalfs/shoalfs/test/fault/netns"
)

// nemesis breaks a cluster and heals it, again and again, by the choice of a random generator.
type nemesis struct {
	cluster *fault.Cluster
	clients []*client
	rng     *rand.Rand
	counts  map[string]int // of faults, by what they are
	logf    func(format string, args ...any)
	wait    func(time.Duration) error // lets things go on for a while
	down    sync.Map                  // *fault.Process: it may have ended
}

// wound is a fault as it is done to somebody.
type wound struct {
	name, victim string
	strike       func() error
	heal         func() error // after the network was healed; nil: that is all that it takes
}

// Times of a round.
const (
	shortest, longest = time.Second, 4 * time.Second // how long faults last
	respite           = 500 * time.Millisecond       // at least between rounds
)

// round does one fault, or two at once, lets them last, heals all, and waits a moment.
func (n *nemesis) round() error {
	wounds, err := n.choose()
	if err != nil {
		return err
	}
	for _, w := range wounds {
		n.counts[w.name]++
		n.logf("%s of %s", w.name, w.victim)
		if err := w.strike(); err != nil {
			return fmt.Errorf("%s of %s: %w", w.name, w.victim, err)
		}
	}
	if err := n.wait(shortest + time.Duration(n.rng.Int64N(int64(longest-shortest)))); err != nil {
		return err
	}
	if err := n.heal(wounds); err != nil {
		return err
	}
	return n.wait(respite + time.Duration(n.rng.Int64N(int64(2*respite))))
}

// heal undoes faults at the same time: a metaserver is not ready before others are.
func (n *nemesis) heal(wounds []*wound) error {
	errs := []error{n.cluster.Net.Heal()}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, w := range wounds {
		if w.heal == nil {
			continue
		}
		wg.Go(func() {
			if err := w.heal(); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("after %s of %s: %w", w.name, w.victim, err))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// choose makes up what is done in a round: most often to the leader.
func (n *nemesis) choose() ([]*wound, error) {
	if n.rng.IntN(3) == 0 {
		w, err := n.ofCluster()
		return []*wound{w}, err
	}
	number := 1
	if n.rng.IntN(3) == 0 {
		number = 2
	}
	var wounds []*wound
	victims := map[string]bool{}
	for len(wounds) < number {
		w, err := n.wound()
		if err != nil {
			return nil, err
		}
		if !victims[w.victim] {
			victims[w.victim] = true
			wounds = append(wounds, w)
		}
	}
	return wounds, nil
}

func (n *nemesis) wound() (*wound, error) {
	switch k := n.rng.IntN(10); {
	case k < 5:
		leader, err := n.cluster.Leader()
		if err != nil {
			return nil, err
		}
		return n.ofServer(leader), nil
	case k < 7:
		return n.ofServer(pick(n.rng, n.cluster.Metas)), nil
	case k < 9:
		return n.ofServer(pick(n.rng, n.cluster.Chunks)), nil
	}
	return n.ofClient(pick(n.rng, n.clients)), nil
}

func pick[T any](rng *rand.Rand, list []T) T { return list[rng.IntN(len(list))] }

// slow is a disk that does a write in ten milliseconds and a sync in 200.
var slow = faultfs.Faults{Delay: [...]time.Duration{faultfs.Write: 10 * time.Millisecond, faultfs.Sync: 200 * time.Millisecond}}

// ofServer chooses a fault of a server.
func (n *nemesis) ofServer(s *fault.Server) *wound {
	seed, percent, rate := n.rng.Uint64N(3), 5+n.rng.IntN(40), 1<<(18+n.rng.IntN(4)) // used or not, so that the choices that follow are the same
	switch n.rng.IntN(12) {
	case 0:
		return n.ended("kill -9", s, func() error { return fault.Kill(s) })
	case 1:
		return n.ended("stop in good order", s, func() error { return s.End(syscall.SIGTERM) })
	case 2:
		return n.ended("power loss", s, func() error { return n.cluster.LosePower(seed, s) })
	case 3, 4:
		return &wound{"SIGSTOP", s.Name, func() error { return s.Signal(syscall.SIGSTOP) }, func() error { return s.Signal(syscall.SIGCONT) }}
	case 5:
		return &wound{"cut from metaservers", s.Name, func() error { return n.cluster.CutFromMetas(s) }, nil}
	case 6:
		return &wound{"cut from everybody", s.Name, func() error { return n.cluster.Net.CutOff(s.Host) }, nil}
	case 7:
		return &wound{"what it sends is lost", s.Name, func() error { return n.cluster.Net.CutOneWay(s.Host, n.hosts()...) }, nil}
	case 8:
		return &wound{"what is sent to it is lost", s.Name, func() error {
			for _, h := range n.hosts() {
				if err := n.cluster.Net.CutOneWay(h, s.Host); err != nil {
					return err
				}
			}
			return nil
		}, nil}
	case 9:
		if seed == 0 {
			return &wound{"slow link", s.Name, func() error { return n.cluster.Net.Throttle(s.Host, rate) }, nil}
		}
		return &wound{"packet loss", s.Name, func() error { return n.cluster.Net.Lose(s.Host, percent) }, nil}
	case 10:
		return &wound{"slow disk", s.Name, set(s, slow), set(s, faultfs.Faults{})}
	}
	return n.full(s)
}

func set(s *fault.Server, f faultfs.Faults) func() error {
	return func() error {
		s.Disk.SetFaults(f)
		return nil
	}
}

// ended is a fault that ends a server, which is started again afterwards.
func (n *nemesis) ended(name string, s *fault.Server, end func() error) *wound {
	strike, heal := n.restarted(end, s)
	return &wound{name, s.Name, strike, heal}
}

// restarted is how servers are struck that end, and how they are healed.
func (n *nemesis) restarted(end func() error, servers ...*fault.Server) (strike, heal func() error) {
	return func() error {
			for _, s := range servers {
				n.down.Store(s.Process, true)
			}
			return end()
		}, func() error {
			err := n.cluster.StartAll(servers...)
			for _, s := range servers {
				n.down.Delete(s.Process)
			}
			return err
		}
}

// ofCluster chooses what is done to more than one part of the cluster.
func (n *nemesis) ofCluster() (*wound, error) {
	seed, some := n.rng.Uint64N(3), n.rng.Perm(len(n.clients))[:1+n.rng.IntN(len(n.clients)-1)]
	c, metas := n.cluster, n.cluster.Metas
	together := func(name, victim string, end func() error, servers ...*fault.Server) (*wound, error) {
		strike, heal := n.restarted(end, servers...)
		return &wound{name, victim, strike, heal}, nil
	}
	switch n.rng.IntN(8) {
	case 0:
		return together("kill -9", "all metaservers", func() error { return fault.Kill(metas...) }, metas...)
	case 1:
		return together("power loss", "all metaservers", func() error { return c.LosePower(seed, metas...) }, metas...)
	case 2:
		return together("power loss", "all servers", func() error { return c.LosePower(seed, c.Servers()...) }, c.Servers()...)
	}
	leader, err := c.Leader()
	if err != nil {
		return nil, err
	}
	switch n.rng.IntN(5) {
	case 0:
		return &wound{"cut from other metaservers, with clients", leader.Name, func() error { return n.divide(leader, some) }, nil}, nil
	case 1, 2:
		return n.forgotten(leader, some), nil
	}
	return n.unheard(leader), nil
}

// divide cuts a metaserver from the others, and clients from all but it. They are refused elsewhere, and so soon come back.
func (n *nemesis) divide(s *fault.Server, clients []int) error {
	if err := n.cluster.CutFromMetas(s); err != nil {
		return err
	}
	others := slices.DeleteFunc(fault.Hosts(n.cluster.Metas), func(h *netns.Host) bool { return h == s.Host })
	for _, i := range clients {
		if err := n.cluster.Net.Refuse(n.clients[i].host(), others...); err != nil {
			return err
		}
	}
	return nil
}

// forgotten stops a leader until another leads, has let all leases run out and changed things; it then goes on, with clients that
// hear of nobody else and without hearing of the others itself: what it says now is old.
func (n *nemesis) forgotten(leader *fault.Server, clients []int) *wound {
	return &wound{"SIGSTOP until it is forgotten", leader.Name, func() error {
		if err := leader.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		if err := n.divide(leader, clients); err != nil {
			return err
		}
		err := n.wait(lease.DefaultLease + lease.DefaultMargin + 4*time.Second)
		return errors.Join(err, leader.Signal(syscall.SIGCONT))
	}, nil}
}

// unheard kills a leader whose answers have been lost for a moment: clients have to ask again for what it did, and its successor
// must not do it twice.
func (n *nemesis) unheard(leader *fault.Server) *wound {
	strike, heal := n.restarted(func() error {
		for _, c := range n.clients {
			if err := n.cluster.Net.CutOneWay(leader.Host, c.host()); err != nil {
				return err
			}
		}
		if err := n.wait(300 * time.Millisecond); err != nil {
			return err
		}
		return fault.Kill(leader)
	}, leader)
	return &wound{"answers lost, then kill -9", leader.Name, strike, heal}
}

// full fills the disk of a server. A metaserver may end because of it, and is started again.
func (n *nemesis) full(s *fault.Server) *wound {
	return &wound{"disk full", s.Name, func() error {
		n.down.Store(s.Process, true)
		s.Disk.SetCapacity(s.Disk.Used())
		return nil
	}, func() error {
		s.Disk.SetCapacity(0)
		err := s.End(syscall.SIGTERM)
		if err == nil {
			err = s.Start()
		}
		n.down.Delete(s.Process)
		return err
	}}
}

// ofClient kills a client, with the mount that it works on, and has another take its place.
func (n *nemesis) ofClient(c *client) *wound {
	name := "kill -9 of a client"
	processes := []*fault.Process{c.program.Process}
	if c.mount != nil {
		name = "kill -9 of a mount"
		processes = append(processes, c.mount.Process)
	}
	return &wound{name, c.config.Name, func() error {
		for _, p := range processes {
			n.down.Store(p, true)
		}
		return c.kill()
	}, func() error {
		err := c.again()
		for _, p := range processes {
			n.down.Delete(p)
		}
		return err
	}}
}

// hosts are those of servers and clients.
func (n *nemesis) hosts() []*netns.Host {
	hosts := fault.Hosts(n.cluster.Servers())
	for _, c := range n.clients {
		hosts = append(hosts, c.host())
	}
	return hosts
}

// processes are all that are to run.
func (n *nemesis) processes() (all []*fault.Process) {
	for _, s := range n.cluster.Servers() {
		all = append(all, s.Process)
	}
	for _, c := range n.clients {
		all = append(all, c.program.Process)
		if c.mount != nil {
			all = append(all, c.mount.Process)
		}
	}
	return all
}

// gone tells of a process that nobody ended.
func (n *nemesis) gone() error {
	for _, p := range n.processes() {
		if _, may := n.down.Load(p); may {
			continue
		}
		select {
		case <-p.Done():
			return fmt.Errorf("%s ended by itself\n%s", p.Name, p.Tail())
		default:
		}
	}
	return nil
}

// total is how many faults there were.
func (n *nemesis) total() (sum int) {
	for _, k := range n.counts {
		sum += k
	}
	return sum
}

// String lists the faults.
func (n *nemesis) String() string {
	var list []string
	for _, name := range sortedKeys(n.counts) {
		list = append(list, fmt.Sprintf("%s %d", name, n.counts[name]))
	}
	return strings.Join(list, ", ")
}
