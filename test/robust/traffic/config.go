package traffic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

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
func (c Config) Env() string {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // there is nothing in it that has no JSON
	}
	return env + "=" + string(b)
}

// Main is to be called first by the program that Env is given to. It returns where that was not done, otherwise the
// process ends with the client's work: when its standard input ends.
func Main() {
	text := os.Getenv(env)
	if text == "" {
		return
	}
	var c Config
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // it ends, or cannot be read, when the parent is done with us
		stop()
	}()
	if err := c.run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", c.Name, err)
		os.Exit(1)
	}
	os.Exit(0)
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
