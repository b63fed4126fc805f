package robust

import (
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/test/fault"
	"github.com/shoalfs/shoalfs/test/fault/netns"
	"github.com/shoalfs/shoalfs/test/fault/workload"
	"github.com/shoalfs/shoalfs/test/robust/history"
	"github.com/shoalfs/shoalfs/test/robust/traffic"
)

// client is a process that puts traffic on the cluster. One that is killed is followed by another on the same host.
type client struct {
	program  *fault.Program
	mount    *fault.Mount // that it works on; nil: it uses the SDK
	config   traffic.Config
	journals []string // of it and those before
	dir      string
	number   func() uint64 // for the next
}

// Load of the test: few objects, on which operations take their time, with few processors for everything.
const (
	sdkClients   = 3
	mountClients = 2
	workers      = 3
	pause        = 25 * time.Millisecond
	generation   = 30 * time.Second
)

// startClients starts those that put load on the cluster.
func startClients(c *fault.Cluster, seed uint64) (clients []*client, err error) {
	last := uint64(0)
	number := func() uint64 { last++; return last }
	start := workload.Now()
	for i := range sdkClients + mountClients {
		cl := &client{dir: c.Dir, number: number, config: traffic.Config{
			Seed: seed, Workers: workers, Pause: pause, Start: start, Generation: generation,
		}}
		if i < sdkClients {
			cl.config.Name, cl.config.Cluster = fmt.Sprintf("sdk-%d", i+1), c.Addresses()
		} else {
			name := fmt.Sprintf("mount-%d", i+1-sdkClients)
			if cl.mount, err = c.Mount(name); err != nil {
				return nil, err
			}
			cl.config.Name, cl.config.Dir = "on-"+name, cl.mount.Dir
		}
		cl.next()
		if cl.program, err = c.Program(cl.config.Name, cl.config.Env()); err != nil {
			return nil, err
		}
		clients = append(clients, cl)
	}
	return clients, nil
}

// host is where what reaches the cluster comes from.
func (c *client) host() *netns.Host {
	if c.mount != nil {
		return c.mount.Host
	}
	return c.program.Host
}

// next makes the configuration that of another client.
func (c *client) next() {
	c.config.Number = c.number()
	c.config.Journal = filepath.Join(c.dir, fmt.Sprintf("%s.%d.journal", c.config.Name, c.config.Number))
	c.journals = append(c.journals, c.config.Journal)
}

// kill ends the client and its mount in the middle of whatever they do.
func (c *client) kill() error {
	if c.mount != nil {
		if err := c.mount.Signal(syscall.SIGKILL); err != nil {
			return err
		}
	}
	if err := c.program.End(syscall.SIGKILL); err != nil {
		return err
	}
	if c.mount != nil {
		return c.mount.Wait("SIGKILL")
	}
	return nil
}

// again starts another one.
func (c *client) again() error {
	if c.mount != nil {
		if err := c.mount.Start(); err != nil {
			return err
		}
	}
	c.next()
	return c.program.Again(c.config.Env())
}

// audit has a new client read everything.
func audit(c *fault.Cluster, model *client) (*client, error) {
	a := &client{dir: c.Dir, number: model.number, config: model.config}
	a.config.Name, a.config.Cluster, a.config.Dir, a.config.Audit = "auditor", c.Addresses(), "", workload.Now()
	a.next()
	var err error
	if a.program, err = c.Program(a.config.Name, a.config.Env()); err != nil {
		return nil, err
	}
	if err := a.program.Wait("it began to read everything"); err != nil {
		return nil, err
	}
	return a, a.program.Failed()
}

// load reads what clients noted.
func load(clients []*client) (all []history.Operation, err error) {
	for _, c := range clients {
		for _, path := range c.journals {
			ops, err := history.Load(filepath.Base(path[:len(path)-len(".journal")]), path)
			if err != nil {
				return nil, err
			}
			all = append(all, ops...)
		}
	}
	return all, nil
}
