package fault

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/test/fault/netns"
)

// Patience bounds every wait for a condition; a test that meets it has failed.
const Patience = 2 * time.Minute

// Process is a program in a host of the network.
type Process struct {
	Name string
	host *netns.Host
	path string
	args []string
	env  []string // beside that of this process
	log  string   // file that gets its standard error

	cmd   *exec.Cmd
	stdin io.WriteCloser
	done  chan struct{} // closed when it has been reaped
}

// Start runs the process and waits until it prints "ready".
func (p *Process) Start() error {
	ready, err := p.launch()
	if err != nil {
		return err
	}
	timeout := time.NewTimer(Patience)
	defer timeout.Stop()
	select {
	case <-ready:
		return nil
	case <-p.done:
		return fmt.Errorf("%s ended before it was ready: %v\n%s", p.Name, p.cmd.ProcessState, p.Tail())
	case <-timeout.C:
		return fmt.Errorf("%s is not ready after %v\n%s", p.Name, Patience, p.Tail())
	}
}

// launch runs the process. The channel is closed when it prints "ready".
func (p *Process) launch() (ready chan struct{}, err error) {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the child has its own descriptor
	cmd := exec.Command(p.path, p.args...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stderr = log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.host.Start(cmd); err != nil {
		return nil, err
	}
	p.cmd, p.done, ready = cmd, make(chan struct{}), make(chan struct{})
	go func() {
		told := false
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			if lines.Text() == "ready" && !told {
				told = true
				close(ready)
			}
		}
		_, _ = io.Copy(io.Discard, stdout) // a line too long for the scanner must not block the child
		_ = cmd.Wait()                     // how it ended is for whoever ended it to judge
		close(p.done)
	}()
	return ready, nil
}

// Signal sends a signal.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%v to %s: %w", sig, p.Name, err)
	}
	return nil
}

// End sends a signal that ends the process, and waits until it is gone. It may be gone already.
func (p *Process) End(sig syscall.Signal) error {
	if p.cmd == nil {
		return nil
	}
	if err := p.Signal(sig); err != nil {
		return err
	}
	return p.Wait(fmt.Sprint(sig))
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Finish has a process end that does so when its standard input ends.
func (p *Process) Finish() error {
	_ = p.stdin.Close() // the process may have ended by itself
	if err := p.Wait("it was to stop"); err != nil {
		return err
	}
	return p.Failed()
}

// Wait waits for the end of the process, which something has caused.
func (p *Process) Wait(cause string) error {
	timeout := time.NewTimer(Patience)
	defer timeout.Stop()
	select {
	case <-p.done:
	case <-timeout.C:
		return fmt.Errorf("%s still runs %v after %s\n%s", p.Name, Patience, cause, p.Tail())
	}
	_ = p.stdin.Close() // nobody reads it any more
	return nil
}

// kill ends the process whatever state it is in.
func (p *Process) kill() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill() // gone already, at worst
		<-p.done
		_ = p.stdin.Close() // likewise
	}
}

// Failed tells why the process ended otherwise than with status 0; nil while it runs.
func (p *Process) Failed() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	if !p.cmd.ProcessState.Success() {
		return fmt.Errorf("%s ended with %v\n%s", p.Name, p.cmd.ProcessState, p.Tail())
	}
	return nil
}

// Tail is the end of what the process wrote to standard error.
func (p *Process) Tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-4000):]))
}

// process describes one that is not started yet.
func (c *Cluster) process(name string, host *netns.Host, path string, args ...string) *Process {
	return &Process{Name: name, host: host, path: path, args: args, log: filepath.Join(c.Dir, name+".log")}
}
