package fault

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/test/fault/netns"
	"github.com/shoalfs/shoalfs/test/fault/workload"
)

// Client is a process that puts load on the cluster, or checks it.
type Client struct {
	*Process
	workload.Config
	Killed bool
}

// client describes a client on a host, which reaches the cluster by a mount or, where there is none, by the SDK.
func (c *Cluster) client(role workload.Role, name string, host *netns.Host, m *Mount) (*Client, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cl := &Client{Config: workload.Config{Role: role, Name: name, Root: "/load", Journal: filepath.Join(c.Dir, name+".journal")}}
	if m != nil {
		cl.Config.Dir = m.Dir
	} else {
		cl.Cluster = c.Addresses()
	}
	cl.Process = c.process(name, host, exe)
	return cl, nil
}

// Load is clients at work: four writers, two readers, and one that changes names. Half of them are on mounts.
type Load struct {
	c       *Cluster
	Clients []*Client
}

// LoadOptions say how much load there is.
type LoadOptions struct {
	Seed  uint64
	Rate  int64 // bytes a second of each writer and reader
	Large int64 // size of the largest files
}

// StartLoad mounts the cluster for those clients that want it and starts all of them.
func (c *Cluster) StartLoad(o LoadOptions) (*Load, error) {
	l := &Load{c: c}
	var mounts []*Mount
	for _, name := range []string{"mount-1", "mount-2"} {
		m, err := c.Mount(name)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, m)
	}
	plan := []struct {
		role  workload.Role
		name  string
		mount *Mount
	}{
		{workload.Writer, "writer-1", nil},
		{workload.Writer, "writer-2", nil},
		{workload.Writer, "writer-3", mounts[0]},
		{workload.Writer, "writer-4", mounts[0]},
		{workload.Reader, "reader-1", nil},
		{workload.Reader, "reader-2", mounts[1]},
		{workload.Names, "names-1", mounts[1]},
	}
	if o.Seed%2 == 1 {
		plan[len(plan)-1].mount = nil
	}
	var writers []string
	for i, p := range plan {
		h, err := c.Net.AddHost(p.name)
		if err != nil {
			return nil, err
		}
		cl, err := c.client(p.role, p.name, h, p.mount)
		if err != nil {
			return nil, err
		}
		cl.Seed, cl.Rate, cl.Large, cl.Writers = o.Seed+uint64(i), o.Rate, o.Large, writers
		switch p.role {
		case workload.Writer:
			writers = append(writers, cl.Journal)
		case workload.Names:
			cl.Rate = max(10, o.Rate>>14)
		}
		cl.env = []string{cl.Env()}
		l.Clients = append(l.Clients, cl)
	}
	c.clients = append(c.clients, l.Clients...)
	return l, each(l.Clients, func(cl *Client) error { return cl.Start() })
}

// Run lets the clients work for so long. It ends early when one of them has ended, which it was not to.
func (l *Load) Run(d time.Duration) error {
	done := time.NewTimer(d)
	defer done.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, cl := range l.Clients {
			select {
			case <-cl.done:
				if !cl.Killed {
					return fmt.Errorf("%s ended: %v\n%s", cl.Name(), cl.cmd.ProcessState, cl.Tail())
				}
			default:
			}
		}
		select {
		case <-tick.C:
		case <-done.C:
			return nil
		}
	}
}

// Stop has the clients finish what they are doing and end.
func (l *Load) Stop() error {
	return each(l.Clients, func(cl *Client) error {
		if cl.Killed {
			return nil
		}
		err := cl.Finish()
		if err != nil && cl.Failed() == nil { // it still runs
			if h, broken := workload.OpenHistory(cl.Journal); broken == nil {
				op, since := h.Pending()
				err = fmt.Errorf("%w\nit is in %s since %v", err, op, since)
			}
		}
		return err
	})
}

// Kill kills a client as kill -9 does.
func (l *Load) Kill(name string) error {
	for _, cl := range l.Clients {
		if cl.Name() == name {
			cl.Killed = true
			return cl.End(syscall.SIGKILL)
		}
	}
	return fmt.Errorf("no client %s", name)
}

// Name is the client's.
func (cl *Client) Name() string { return cl.Process.Name }

// Check reads everything back through a new client, after the load has ended, and compares it with the journals.
func (l *Load) Check() (*workload.Report, error) {
	h, err := l.c.Net.AddHost("checker")
	if err != nil {
		return nil, err
	}
	cl, err := l.c.client(workload.Checker, "checker", h, nil)
	if err != nil {
		return nil, err
	}
	for _, other := range l.Clients {
		switch other.Role {
		case workload.Writer:
			cl.Writers = append(cl.Writers, other.Journal)
		case workload.Names:
			cl.Trees = append(cl.Trees, other.Journal)
		}
	}
	cl.env = []string{cl.Env()}
	l.c.clients = append(l.c.clients, cl)
	if _, err := cl.launch(); err != nil {
		return nil, err
	}
	if err := cl.Wait("it began"); err != nil {
		return nil, err
	}
	if err := cl.Failed(); err != nil {
		return nil, err
	}
	return workload.ReadReport(cl.Journal)
}
