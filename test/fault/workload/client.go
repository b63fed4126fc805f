package workload

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"time"
)

// Role is what a client does.
type Role string

// The roles.
const (
	Writer  Role = "writer"  // writes files of its own
	Reader  Role = "reader"  // reads what the writers write, and checks it
	Names   Role = "names"   // makes, renames and removes files and directories
	Checker Role = "checker" // compares everything with the journals, once
)

// Config of a client.
type Config struct {
	Role    Role
	Name    string
	Seed    uint64
	Cluster string // addresses of metaservers; empty: the file system is mounted at Dir
	Dir     string
	Root    string   // directory of the file system that the load is put on: clients use Root/Name
	Journal string   // file that the client makes; that of a checker gets its Report
	Writers []string // journals, for readers and checkers
	Trees   []string // journals of Names, for checkers
	Rate    int64    // bytes a second, or operations of Names; 0: as fast as it goes
	Large   int64    // size of the largest files
}

const env = "SHOAL_FAULT_CLIENT"

// Env is what makes a process that calls Main a client.
func (c Config) Env() string { return ProcessEnv(env, c) }

// Main is to be called first by the program that Env is given to.
func Main() { ProcessMain(env, Config.work) }

// work is run, with errors that say whose they are.
func (c Config) work(ctx context.Context) error {
	if err := c.run(ctx); err != nil {
		return fmt.Errorf("%s: %w", c.Name, err)
	}
	return nil
}

func (c Config) run(ctx context.Context) (err error) {
	fsys, err := c.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fsys.Close()) }()
	if c.Role == Checker {
		return c.check(fsys)
	}
	j, err := NewJournal(c.Journal)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	p := part{c, fsys, j, rand.New(rand.NewPCG(c.Seed, 1)), pace{rate: c.Rate}}
	work := map[Role]func(part, context.Context) error{Writer: part.write, Reader: part.read, Names: part.names}[c.Role]
	if work == nil {
		return fmt.Errorf("no role %q", c.Role)
	}
	for _, dir := range []string{c.Root, p.dir()} {
		if err := fsys.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	fmt.Println("ready")
	return work(p, ctx)
}

func (c Config) open() (FS, error) {
	if c.Cluster == "" {
		return Mounted(c.Dir), nil
	}
	return dial(context.Background(), c.Cluster, c.Name, os.Stderr)
}

// part is a client at work.
type part struct {
	Config
	fs   FS
	j    *Journal
	rng  *rand.Rand
	pace pace
}

// dir is the client's own directory.
func (p *part) dir() string { return path.Join(p.Root, p.Name) }

// pace bounds the load: servers, clients and the test share few processors.
type pace struct {
	rate int64
	next time.Time
}

// spend waits until n more bytes are due.
func (p *pace) spend(ctx context.Context, n int64) {
	now := time.Now()
	if p.rate == 0 || n == 0 {
		return
	}
	if wait := p.next.Sub(now); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		now = time.Now()
	}
	if now.After(p.next) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(n) * time.Second / time.Duration(p.rate))
}
