package fuse

import (
	"context"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

func newRequest(ctx context.Context) (*request, chan struct{}) {
	interrupt := make(chan struct{})
	return &request{Context: ctx, interrupt: interrupt, grace: interruptGrace}, interrupt
}

func TestInterruptTakesEffectAfterTheGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, interrupt := newRequest(t.Context())
		defer r.end()
		start := time.Now()
		done := r.Done()
		close(interrupt)
		synctest.Wait()
		if r.Err() != nil {
			t.Fatal("a signal ended the request at once")
		}
		<-done
		if took := time.Since(start); took != interruptGrace || r.Err() != context.Canceled {
			t.Errorf("ended after %v with %v", took, r.Err())
		}
	})
}

// TestRequestEnds: go-fuse uses the interrupt channel again, so nothing may look at it after the answer.
func TestRequestEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, interrupt := newRequest(t.Context())
		child, cancel := context.WithCancel(r)
		cancel()
		<-child.Done()
		r.end()
		synctest.Wait() // the watcher has gone, or the test would not end
		close(interrupt)
		if r.Err() != nil {
			t.Error("interrupted after its end")
		}
	})
}

func TestRequestEndsWithTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		r, _ := newRequest(ctx)
		defer r.end()
		if r.Err() != nil {
			t.Fatal(r.Err())
		}
		done := r.Done()
		stop()
		<-done
		if r.Err() == nil {
			t.Error("no error")
		}
	})
}

func TestRequestOfAServerThatEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		stop()
		r, _ := newRequest(ctx)
		defer r.end()
		start := time.Now()
		done := r.Done()
		if r.Err() == nil {
			t.Error("no error")
		}
		<-done
		if took := time.Since(start); took != 0 {
			t.Errorf("ended after %v", took)
		}
	})
}

func TestParseGroups(t *testing.T) {
	for status, want := range map[string][]uint32{
		"Name:\tx\nUid:\t1 1 1 1\nGroups:\t4 24 4294967295 \nNgid:\t0\n": {4, 24, 4294967295},
		"Groups:\t\n":                  nil,
		"Name:\tGroups: 1\n":           nil,
		"Groups:\t1 x -2 5000000000 3": {1, 3},
		"":                             nil,
	} {
		if got := parseGroups([]byte(status)); !slices.Equal(got, want) {
			t.Errorf("parseGroups(%q) = %v, want %v", status, got, want)
		}
	}
}

func TestCallers(t *testing.T) {
	var c callers
	from := &gofuse.Caller{Owner: gofuse.Owner{Uid: 1000, Gid: 100}, Pid: uint32(os.Getpid())}
	want := groupsOf(from.Pid)
	for range 2 {
		if got := c.cred(from); got.UID != 1000 || got.GID != 100 || !slices.Equal(got.Groups, want) {
			t.Errorf("got %+v, want groups %v", got, want)
		}
	}
	for pid := uint32(1 << 30); pid < 1<<30+2*groupsBound; pid++ { // no such processes
		if got := c.cred(&gofuse.Caller{Owner: from.Owner, Pid: pid}); got.Groups != nil {
			t.Fatalf("process %d has groups %v", pid, got.Groups)
		}
	}
	if len(c.known) > groupsBound {
		t.Errorf("%d processes are remembered, at most %d", len(c.known), groupsBound)
	}
}

// TestContextsFollowTheRequest: a context made of a request ends with it, whether it was made before or after.
func TestContextsFollowTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, interrupt := newRequest(t.Context())
		defer r.end()
		before, cancel := context.WithTimeout(r, time.Hour)
		defer cancel()
		gone, forget := context.WithCancel(r)
		forget()
		close(interrupt)
		<-before.Done()
		after, cancel := context.WithCancel(r)
		defer cancel()
		<-after.Done()
		if before.Err() != context.Canceled || after.Err() != context.Canceled || gone.Err() != context.Canceled {
			t.Errorf("ended with %v, %v and %v", before.Err(), after.Err(), gone.Err())
		}
	})
}
