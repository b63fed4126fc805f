// Package netns makes networks for tests out of network namespaces: hosts on one switch, whose packets can be lost. Nothing
// of it has a name outside, and all of it is gone when the process that made it is, however that ends. It needs root, and
// the programs ip, tc and nft.
package netns

import (
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace. One thread of this process lives in it for nothing else than to do what has to be done
// there: the namespace exists as long as the thread, or a process that it started, does.
type Namespace struct {
	path  string // where the kernel shows it
	calls chan func()
	close sync.Once
}

// New makes a namespace with nothing in it but a loopback interface that is down.
func New() (*Namespace, error) {
	n := &Namespace{calls: make(chan func())}
	failed := make(chan error)
	go n.live(failed)
	if err := <-failed; err != nil {
		return nil, err
	}
	return n, nil
}

// live is the namespace's thread. It is never unlocked, so that it ends with its goroutine instead of serving others.
func (n *Namespace) live(failed chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The first thread does not end with a goroutine, and is what /proc/self shows. While it is held here, another goroutine
		// gets another one.
		handed := make(chan error)
		go n.live(handed)
		failed <- <-handed
		runtime.UnlockOSThread()
		return
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		failed <- fmt.Errorf("make a network namespace: %w", err)
		return
	}
	n.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", unix.Getpid(), unix.Gettid())
	failed <- nil
	for call := range n.calls {
		call()
	}
}

// Close gives the namespace up; nothing else may be called any more.
func (n *Namespace) Close() { n.close.Do(func() { close(n.calls) }) }

// Do calls f on the namespace's thread: sockets that it makes and processes that it starts belong to the namespace.
func (n *Namespace) Do(f func() error) error {
	done := make(chan error)
	n.calls <- func() { done <- f() }
	return <-done
}

// Start starts a process in the namespace. It is killed when the namespace is closed, and with this process.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // when the thread ends that started it, which is why only this one does
	return n.Do(cmd.Start)
}

// run runs a program in the namespace with a text as its standard input.
func (n *Namespace) run(input, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	var out strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &out
	if err := n.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s %s: %w: %s\n%s", name, strings.Join(args, " "), err, strings.TrimSpace(out.String()), input)
	}
	return nil
}
