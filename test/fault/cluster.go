package fault

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/shoalfs/shoalfs/internal/testenv"
	"github.com/shoalfs/shoalfs/test/fault/faultfs"
	"github.com/shoalfs/shoalfs/test/fault/netns"
)

// DefaultPolicy is what a cluster does unless it is told otherwise.
const DefaultPolicy = "replicas=3"

// Options of a Cluster.
type Options struct {
	Binary       string   // path of shoal
	Metaservers  int      // 1, 3 or 5
	Chunkservers int      // 0: 7
	Policy       string   // of everything; empty: DefaultPolicy
	SmallPackets bool     // for tests that lose some
	QuickDeath   bool     // servers that are silent are soon thought dead, if the binary can be told so
	MetaFlags    []string // more flags of metaservers
	// OnDisk tells which servers have their data on a disk with faults; nil: none. The others' directories cost nothing.
	OnDisk func(name string) bool
}

// Cluster is a network with the servers of a file system, each on a host of its own.
type Cluster struct {
	Dir    string // for everything that the test leaves on the local disk
	Net    *netns.Network
	Metas  []*Server
	Chunks []*Server
	Mounts []*Mount

	opts     Options
	console  *netns.Host // where commands are run
	clients  []*Client
	programs []*Program
	disks    []*faultfs.Disk
}

// Server is a metaserver or a chunk server.
type Server struct {
	*Process
	Host *netns.Host
	Data string        // its data directory
	Disk *faultfs.Disk // that its data directory is on; nil: a plain directory
}

// Mount is the file system at a directory, served from a host of its own.
type Mount struct {
	*Process
	Host *netns.Host
	Dir  string
}

// Program is the test's own program, on a host of its own, as a client.
type Program struct {
	*Process
	Host *netns.Host
}

// Need skips a test where no cluster can be made.
func Need(t testing.TB) {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedFUSE(t)
	testenv.NeedPrograms(t, "ip", "tc", "nft")
}

// Start starts a cluster that ends with the test.
func Start(t testing.TB, opts Options) *Cluster {
	t.Helper()
	Need(t)
	if opts.Chunkservers == 0 {
		opts.Chunkservers = 7
	}
	if opts.Policy == "" {
		opts.Policy = DefaultPolicy
	}
	network, err := netns.NewNetwork(netns.Options{SmallPackets: opts.SmallPackets})
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{Dir: directory(t), Net: network, opts: opts}
	t.Cleanup(func() { c.stop(t) })
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	return c
}

// directory is one that is removed when the test ends, unless SHOAL_KEEP names one that everything is to be left in.
func directory(t testing.TB) string {
	keep := os.Getenv("SHOAL_KEEP")
	if keep == "" {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(keep, "cluster-")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("everything is left in %s", dir)
	return dir
}

func (c *Cluster) start() (err error) {
	if c.console, err = c.Net.AddHost("console"); err != nil {
		return err
	}
	if err := c.addMetas(); err != nil {
		return err
	}
	if err := each(c.Metas, func(s *Server) error { return s.Start() }); err != nil {
		return err
	}
	for i := range c.opts.Chunkservers {
		if err := c.addChunk(fmt.Sprintf("chunk-%d", i+1)); err != nil {
			return err
		}
	}
	if err := each(c.Chunks, func(s *Server) error { return s.Start() }); err != nil {
		return err
	}
	if c.opts.Policy == DefaultPolicy {
		return nil
	}
	_, err = c.Shoal("policy", "set", "shoal:/", c.opts.Policy)
	return err
}

// storage makes a place for the data of a server.
func (c *Cluster) storage(name string) (data string, disk *faultfs.Disk, err error) {
	data = filepath.Join(c.Dir, name)
	if c.opts.OnDisk == nil || !c.opts.OnDisk(name) {
		return data, nil, nil
	}
	objects := data + ".objects"
	for _, dir := range []string{data, objects} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", nil, err
		}
	}
	if disk, err = faultfs.Mount(data, objects); err != nil {
		return "", nil, err
	}
	c.disks = append(c.disks, disk)
	return filepath.Join(data, "data"), disk, nil // so that the directory that it is in is on the disk, too
}

// The ports that servers listen on.
const (
	metaPort  = "7400"
	chunkPort = "7500"
)

func (c *Cluster) addMetas() error {
	var hosts []*netns.Host
	var peers []string
	for i := range c.opts.Metaservers {
		h, err := c.Net.AddHost(fmt.Sprintf("meta-%d", i+1))
		if err != nil {
			return err
		}
		hosts = append(hosts, h)
		peers = append(peers, fmt.Sprintf("%d=%s", i+1, net.JoinHostPort(h.IP.String(), metaPort)))
	}
	for i, h := range hosts {
		data, disk, err := c.storage(h.Name)
		if err != nil {
			return err
		}
		args := []string{"meta", "--id", fmt.Sprint(i + 1), "--listen", net.JoinHostPort(h.IP.String(), metaPort), "--data", data, "--peers", strings.Join(peers, ",")}
		if c.opts.QuickDeath {
			args = append(args, quickDeath(c.opts.Binary)...)
		}
		args = append(args, c.opts.MetaFlags...)
		c.Metas = append(c.Metas, &Server{c.process(h.Name, h, c.opts.Binary, args...), h, data, disk})
	}
	return nil
}

func (c *Cluster) addChunk(name string) error {
	h, err := c.Net.AddHost(name)
	if err != nil {
		return err
	}
	data, disk, err := c.storage(name)
	if err != nil {
		return err
	}
	p := c.process(name, h, c.opts.Binary, "chunk", "--listen", net.JoinHostPort(h.IP.String(), chunkPort), "--data", data, "--meta", c.Addresses())
	c.Chunks = append(c.Chunks, &Server{p, h, data, disk})
	return nil
}

// Addresses are those of the metaservers, as the command line wants them.
func (c *Cluster) Addresses() string {
	var out []string
	for _, m := range c.Metas {
		out = append(out, net.JoinHostPort(m.Host.IP.String(), metaPort))
	}
	return strings.Join(out, ",")
}

// Mount mounts the cluster on a host of its own, with little memory for caches: what is read is to come from the servers.
func (c *Cluster) Mount(name string) (*Mount, error) {
	h, err := c.Net.AddHost(name)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(c.Dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	m := &Mount{c.process(name, h, c.opts.Binary, "mount", "--memory", "64", "--cache", "1", c.Addresses(), dir), h, dir}
	c.Mounts = append(c.Mounts, m)
	return m, m.Start()
}

// Program runs the test's own program on a host of its own, with more in its environment, which tells it what to be. It is to
// print "ready", and to end when its standard input does.
func (c *Cluster) Program(name string, env ...string) (*Program, error) {
	h, err := c.Net.AddHost(name)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &Program{c.process(name, h, exe), h}
	p.env = env
	c.programs = append(c.programs, p)
	return p, p.Start()
}

// Again starts a program that has ended, with another environment.
func (p *Program) Again(env ...string) error {
	p.env = env
	return p.Start()
}

// stop ends the cluster however far it came, and says what its processes had to say if the test failed.
func (c *Cluster) stop(t testing.TB) {
	for _, cl := range c.clients {
		cl.kill()
	}
	for _, p := range c.programs {
		p.kill()
	}
	var all []*Process
	for _, m := range c.Mounts {
		all = append(all, m.Process)
	}
	for _, s := range c.Servers() {
		all = append(all, s.Process)
	}
	for _, p := range all {
		if p.cmd != nil {
			_ = p.cmd.Process.Kill() // gone already, at worst
		}
	}
	for _, d := range c.disks {
		d.Fail() // a process that waits for it does not end
	}
	for _, p := range all {
		p.kill()
	}
	for _, d := range c.disks {
		if err := d.Unmount(); err != nil {
			t.Error(err)
		}
	}
	for _, m := range c.Mounts {
		if err := testenv.Detach(m.Dir); err != nil && !errors.Is(err, syscall.EINVAL) { // which says that it is no mount
			t.Errorf("unmount %s: %v", m.Dir, err)
		}
	}
	c.Net.Close()
	if t.Failed() {
		for _, p := range all {
			t.Logf("--- the end of the log of %s\n%s", p.Name, p.Tail())
		}
	}
}

// Servers lists all servers.
func (c *Cluster) Servers() []*Server {
	return append(append([]*Server{}, c.Metas...), c.Chunks...)
}

// Hosts lists those of servers.
func Hosts(servers []*Server) []*netns.Host {
	var out []*netns.Host
	for _, s := range servers {
		out = append(out, s.Host)
	}
	return out
}

// each does the same to all at once.
func each[T any](all []T, do func(T) error) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, x := range all {
		wg.Go(func() { errs[i] = do(x) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
