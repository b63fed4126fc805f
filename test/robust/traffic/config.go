package traffic

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/test/fault/workload"
	"github.com/shoalfs/shoalfs/test/robust/history"
)

// Config of a client.
type Config struct {
	Name    string
	Number  uint64 // no two clients have the same; one that is started anew is another
	Seed    uint64
	Cluster string // addresses of metaservers; empty: the file system is mounted at Dir
	Dir     string
	Journal string // file that the client makes
	Workers int    // how many operations it does at once
	Pause   time.Duration
	// The first generation began at Start on the machine's monotonic clock.
	Start      time.Duration
	Generation time.Duration
	// Audit: the client reads the objects of all generations that began until then, once. 0: it puts load on them.
	Audit time.Duration
}

const env = "SHOAL_ROBUST_CLIENT"

// Env is what makes a process that calls Main a client.
func (c Config) Env() string { return workload.ProcessEnv(env, c) }

// Main is to be called first by the program that Env is given to.
func Main() { workload.ProcessMain(env, Config.work) }

// work is run, with errors that say whose they are.
func (c Config) work(ctx context.Context) error {
	if err := c.run(ctx); err != nil {
		return fmt.Errorf("%s: %w", c.Name, err)
	}
	return nil
}

func (c Config) run(ctx context.Context) (err error) {
	syscall.Umask(0)
	sys, err := c.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.Close()) }()
	journal, err := history.NewRecorder(c.Journal)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, journal.Close()) }()
	l := &load{Config: c, sys: sys, journal: journal, targets: map[string]*target{}}
	fmt.Println("ready")
	if c.Audit > 0 {
		return l.audit()
	}
	return l.work(ctx)
}

func (c Config) open() (system, error) {
	if c.Cluster == "" {
		return mounted(c.Dir), nil
	}
	return dial(c.Cluster, c.Name)
}
