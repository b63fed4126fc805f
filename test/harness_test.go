// Package test holds the tests of whole clusters: real servers, real processes, real mounts.
package test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/fuse"
	"github.com/shoalfs/shoalfs/internal/testenv"
)

// patience bounds every wait for a condition; a test that meets it has failed.
const patience = 2 * time.Minute

var binary struct {
	sync.Once
	path string
	dir  string // made for it
	err  error
}

// shoalBinary builds the program once and returns its path. SHOAL_BINARY is the absolute path of one that is built already,
// for where there is no Go.
func shoalBinary(t testing.TB) string {
	t.Helper()
	binary.Do(func() {
		if binary.path = os.Getenv("SHOAL_BINARY"); binary.path != "" {
			return
		}
		if binary.dir, binary.err = os.MkdirTemp("", "shoal-test-bin-"); binary.err != nil {
			return
		}
		binary.path = filepath.Join(binary.dir, "shoal")
		args := []string{"build", "-o", binary.path}
		if raceEnabled {
			args = append(args, "-race")
		}
		out, err := exec.Command("go", append(args, "github.com/shoalfs/shoalfs/cmd/shoal")...).CombinedOutput()
		if err != nil {
			binary.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if binary.err != nil {
		t.Fatal(binary.err)
	}
	return binary.path
}

func TestMain(m *testing.M) {
	code := m.Run()
	if binary.dir != "" {
		_ = os.RemoveAll(binary.dir) // a temporary directory; nothing depends on it
	}
	os.Exit(code)
}

// process is one server or mount of a cluster under test.
type process struct {
	t    testing.TB
	name string
	args []string
	log  string // file that gets its standard error
	cmd  *exec.Cmd
	done chan struct{} // closed when it has been reaped

	// apart is whether it is started by a shell of its own: while this process has files open on a mount, what it starts itself
	// first closes its copies of them, which flushes them, and so waits for the very servers that are to be started.
	apart bool
	again io.Writer // a line to it starts the program once more; nil: there is no shell yet
	lines chan string
}

// start runs the process and waits until it prints "ready".
func (p *process) start() {
	p.t.Helper()
	if p.apart {
		p.startApart()
		return
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = log.Close() }() // the child has its own descriptor
	cmd := exec.Command(shoalBinary(p.t), p.args...)
	cmd.Stderr = log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.cmd, p.done = cmd, make(chan struct{})
	ready := make(chan bool, 1)
	go func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			if lines.Text() == "ready" {
				ready <- true
			}
		}
		_, _ = io.Copy(io.Discard, stdout) // a line too long for the scanner must not block the child
		_ = cmd.Wait()                     // how it ended is the tests' own doing
		close(p.done)
	}()
	select {
	case <-ready:
	case <-p.done:
		p.t.Fatalf("%s ended before it was ready: %v\n%s", p.name, cmd.ProcessState, tail(p.log))
	case <-time.After(patience):
		p.t.Fatalf("%s is not ready after %v\n%s", p.name, patience, tail(p.log))
	}
}

// startApart has the shell start the process and waits until it prints "ready".
func (p *process) startApart() {
	p.t.Helper()
	if p.again == nil {
		p.startShell()
	}
	if _, err := fmt.Fprintln(p.again); err != nil {
		p.t.Fatal(err)
	}
	timeout := time.After(patience)
	for {
		select {
		case line := <-p.lines:
			var pid int
			switch _, err := fmt.Sscanf(line, "pid %d", &pid); {
			case err == nil:
				started, err := os.FindProcess(pid)
				if err != nil {
					p.t.Fatal(err)
				}
				p.cmd, p.done = &exec.Cmd{Process: started}, make(chan struct{})
			case line == "ended":
				p.t.Fatalf("%s ended before it was ready\n%s", p.name, tail(p.log))
			case line == "ready":
				go func(done chan struct{}) {
					for line := range p.lines {
						if line == "ended" {
							break
						}
					}
					close(done)
				}(p.done)
				return
			}
		case <-timeout:
			p.t.Fatalf("%s is not ready after %v\n%s", p.name, patience, tail(p.log))
		}
	}
}

func (p *process) startShell() {
	p.t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = log.Close() }() // the child has its own descriptor
	script := `while read -r _; do "$@" & echo "pid $!"; wait "$!"; echo ended; done`
	shell := exec.Command("sh", append([]string{"-c", script, "sh", shoalBinary(p.t)}, p.args...)...)
	shell.Stderr = log
	in, err := shell.StdinPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	out, err := shell.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := shell.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.again, p.lines = in, make(chan string, 16)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.lines <- lines.Text()
		}
		close(p.lines)
		_ = shell.Wait() // how it ended is of no interest
	}()
	p.t.Cleanup(func() { _ = in.Close() }) // it ends when the program has
}

// signal sends a signal and, for one that ends the process, waits until it is gone.
func (p *process) end(sig syscall.Signal) {
	p.t.Helper()
	if p.cmd == nil {
		return
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatalf("%v to %s: %v", sig, p.name, err)
	}
	select {
	case <-p.done:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill() // the test fails anyway
		p.t.Fatalf("%s still runs %v after %v\n%s", p.name, patience, sig, tail(p.log))
	}
	p.cmd = nil
}

func tail(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// processes is a cluster in which every part is a process of its own.
type processes struct {
	t         testing.TB
	dir       string
	metas     []*process
	metaAddrs []string
	chunks    []*process
	mount     *process
	mountDir  string
}

// startProcesses starts a cluster and mounts it, with further flags for the mount.
func startProcesses(t testing.TB, metas, chunks int, mountFlags ...string) *processes {
	t.Helper()
	testenv.NeedFUSE(t)
	dir := t.TempDir()
	c := &processes{t: t, dir: dir, mountDir: filepath.Join(dir, "mnt")}
	if err := os.Mkdir(c.mountDir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.stop)
	c.metaAddrs = freeAddresses(t, metas)
	var peers []string
	for i, a := range c.metaAddrs {
		peers = append(peers, fmt.Sprintf("%d=%s", i+1, a))
	}
	for i, a := range c.metaAddrs {
		c.metas = append(c.metas, c.process(fmt.Sprintf("meta-%d", i+1), "meta", "--id", fmt.Sprint(i+1), "--listen", a,
			"--data", filepath.Join(dir, fmt.Sprintf("meta-%d", i+1)), "--peers", strings.Join(peers, ",")))
	}
	c.all(c.metas, (*process).start)
	for i := range chunks {
		c.chunks = append(c.chunks, c.process(fmt.Sprintf("chunk-%d", i+1), "chunk", "--listen", "127.0.0.1:0",
			"--data", filepath.Join(dir, fmt.Sprintf("chunk-%d", i+1)), "--meta", strings.Join(c.metaAddrs, ",")))
	}
	c.all(c.chunks, (*process).start)
	c.mount = c.process("mount", append([]string{"mount", strings.Join(c.metaAddrs, ","), c.mountDir}, mountFlags...)...)
	c.mount.start()
	return c
}

func (c *processes) process(name string, args ...string) *process {
	return &process{t: c.t, name: name, args: args, log: filepath.Join(c.dir, name+".log")}
}

// all does the same to several processes at once.
func (c *processes) all(ps []*process, do func(*process)) {
	var wg sync.WaitGroup
	for _, p := range ps {
		wg.Go(func() { do(p) })
	}
	wg.Wait()
	if c.t.Failed() {
		c.t.FailNow()
	}
}

// everything lists all processes, servers first.
func (c *processes) everything() []*process {
	return append(append(append([]*process{}, c.metas...), c.chunks...), c.mount)
}

// killAll ends every process at once, as kill -9 does, and takes the dead mount away.
func (c *processes) killAll() {
	c.t.Helper()
	c.all(c.everything(), func(p *process) { p.end(syscall.SIGKILL) })
	if err := fuse.Unmount(c.mountDir); err != nil {
		c.t.Fatal(err)
	}
}

// restartAll starts everything again.
func (c *processes) restartAll() {
	c.t.Helper()
	c.all(c.metas, (*process).start)
	c.all(c.chunks, (*process).start)
	c.mount.start()
}

// stop ends the cluster however far it came.
func (c *processes) stop() {
	for _, p := range c.everything() {
		if p != nil && p.cmd != nil {
			_ = p.cmd.Process.Kill() // gone already, at worst
			<-p.done
		}
	}
	_ = fuse.Unmount(c.mountDir) // not mounted, at worst
	if c.t.Failed() {
		for _, p := range c.everything() {
			if p != nil {
				c.t.Logf("--- the end of %s's log\n%s", p.name, tail(p.log))
			}
		}
	}
}

// leader returns the metaserver that leads.
func (c *processes) leader() *process {
	c.t.Helper()
	var leader *process
	eventually(c.t, "a metaserver leads", func() error {
		out, err := c.shoal("status", "--json")
		if err != nil {
			return err
		}
		var s struct {
			Metaservers []struct {
				Address string `json:"address"`
				Leader  bool   `json:"leader"`
			} `json:"metaservers"`
		}
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return fmt.Errorf("%w in %s", err, out)
		}
		for _, m := range s.Metaservers {
			for i, a := range c.metaAddrs {
				if m.Leader && m.Address == a {
					leader = c.metas[i]
					return nil
				}
			}
		}
		return fmt.Errorf("no leader in %s", out)
	})
	return leader
}

// shoal runs a command of the CLI against the cluster and returns what it printed.
func (c *processes) shoal(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, shoalBinary(c.t), args...)
	cmd.Env = append(os.Environ(), "SHOAL_CLUSTER="+strings.Join(c.metaAddrs, ","))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("shoal %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out), err
}

// eventually waits until check finds nothing wrong.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited %v until %s: %v", patience, what, err)
		}
	}
}

// freeAddresses finds loopback addresses with ports that nothing listens on.
func freeAddresses(t testing.TB, n int) []string {
	t.Helper()
	var out []string
	var open []net.Listener
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, l)
		out = append(out, l.Addr().String())
	}
	for _, l := range open {
		_ = l.Close() // the port is what was wanted
	}
	return out
}

func isErrno(err error, want syscall.Errno) bool { return errors.Is(err, want) }
