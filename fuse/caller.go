package fuse

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/shoalfs/shoalfs/client"
)

// interruptGrace is how long an interrupted request may still take before it fails with EINTR. The kernel interrupts a
// request for every signal of its caller, also for those that the program handles and that no local file system would let
// it notice (a Go program gets one whenever a goroutine is preempted). Only a request that really waits is given up.
const interruptGrace = time.Second

// watchAfter is when a request begins to look whether it was interrupted: nearly all are answered before.
const watchAfter = 100 * time.Millisecond

// request is the context of one FUSE request. It ends the grace after the request was interrupted, and with the
// server's own context.
type request struct {
	context.Context // the server's
	interrupt       <-chan struct{}
	grace           time.Duration

	watched atomic.Pointer[watch] // made when somebody asks for Done
}

type watch struct {
	done, ended chan struct{}
	start       *time.Timer

	mu    sync.Mutex
	fired bool
	after []*func() // to be called when done is closed
}

// fire ends the request for those who serve it.
func (w *watch) fire() {
	close(w.done)
	w.mu.Lock()
	w.fired = true
	after := w.after
	w.after = nil
	w.mu.Unlock()
	for _, f := range after {
		go (*f)()
	}
}

// AfterFunc makes package context follow the request without a goroutine for each context that is derived from it.
func (r *request) AfterFunc(f func()) (stop func() bool) {
	r.Done()
	w := r.watched.Load()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fired {
		go f()
		return func() bool { return false }
	}
	w.after = append(w.after, &f)
	return func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		i := slices.Index(w.after, &f)
		if i < 0 {
			return false
		}
		w.after = slices.Delete(w.after, i, i+1)
		return true
	}
}

func (r *request) Done() <-chan struct{} {
	if w := r.watched.Load(); w != nil {
		return w.done
	}
	w := &watch{done: make(chan struct{}), ended: make(chan struct{})}
	after := watchAfter
	if r.Context.Err() != nil {
		after = 0
	}
	w.start = time.AfterFunc(after, func() { r.watch(w) })
	if !r.watched.CompareAndSwap(nil, w) {
		w.start.Stop()
		close(w.ended)
		return r.watched.Load().done
	}
	return w.done
}

func (r *request) watch(w *watch) {
	grace := r.grace
	select {
	case <-w.ended:
		return
	case <-r.interrupt:
		grace -= watchAfter // it was interrupted in that time
	default:
		select {
		case <-w.ended:
			return
		case <-r.Context.Done():
			w.fire()
			return
		case <-r.interrupt:
		}
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-w.ended:
	case <-r.Context.Done():
		w.fire()
	case <-timer.C:
		w.fire()
	}
}

func (r *request) Err() error {
	if w := r.watched.Load(); w != nil {
		select {
		case <-w.done:
			return context.Canceled
		default:
		}
	}
	return r.Context.Err()
}

// end must be called when the request is answered: go-fuse uses the interrupt channel again for a later one.
func (r *request) end() {
	if w := r.watched.Load(); w != nil {
		w.start.Stop()
		close(w.ended)
	}
}

const (
	groupsFor   = time.Second // how long the groups of a process are remembered
	groupsBound = 4096        // processes whose groups are remembered
)

// callers finds the supplementary groups of the processes that make requests: FUSE does not pass them.
type callers struct {
	mu    sync.Mutex
	known map[callerKey]callerGroups
}

type callerKey struct{ pid, uid, gid uint32 }

type callerGroups struct {
	groups []uint32
	until  time.Time
}

// cred returns on whose behalf a request is made.
func (c *callers) cred(from *gofuse.Caller) client.Cred {
	cred := client.Cred{UID: from.Uid, GID: from.Gid}
	if from.Uid == 0 || from.Pid == 0 { // root needs none; a caller outside of this PID namespace cannot be looked up
		return cred
	}
	key := callerKey{from.Pid, from.Uid, from.Gid}
	now := time.Now()
	c.mu.Lock()
	g, ok := c.known[key]
	c.mu.Unlock()
	if ok && now.Before(g.until) {
		cred.Groups = g.groups
		return cred
	}
	cred.Groups = groupsOf(from.Pid)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known) >= groupsBound {
		clear(c.known)
	}
	if c.known == nil {
		c.known = map[callerKey]callerGroups{}
	}
	c.known[key] = callerGroups{cred.Groups, now.Add(groupsFor)}
	return cred
}

// groupsOf returns the supplementary groups of a process or thread; none when it has gone already.
func groupsOf(pid uint32) []uint32 {
	status, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/status")
	if err != nil {
		return nil
	}
	return parseGroups(status)
}

// parseGroups reads the line "Groups:" of /proc/PID/status.
func parseGroups(status []byte) []uint32 {
	var groups []uint32
	for line := range bytes.Lines(status) {
		list, ok := bytes.CutPrefix(line, []byte("Groups:"))
		if !ok {
			continue
		}
		for f := range bytes.FieldsSeq(list) {
			if g, err := strconv.ParseUint(string(f), 10, 32); err == nil {
				groups = append(groups, uint32(g))
			}
		}
		break
	}
	return groups
}
