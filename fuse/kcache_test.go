package fuse

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/shoalfs/shoalfs/client"
)

// fakeKernel counts notifications; it knows the inodes in known.
type fakeKernel struct {
	known    map[client.Ino]bool
	notified atomic.Int64
}

func (k *fakeKernel) notify(ino client.Ino) gofuse.Status {
	k.notified.Add(1)
	if !k.known[ino] {
		return gofuse.ENOENT
	}
	return gofuse.OK
}

// revoke revokes and returns what the answer takes.
func revoke(k *kernelCache, ino client.Ino) time.Duration {
	start := time.Now()
	done := make(chan struct{})
	k.Revoked(ino, func() { close(done) })
	<-done
	return time.Since(start)
}

// names asks for a name of a directory that was changed lately.
func names(k *kernelCache, dir client.Ino, since uint64, until time.Time) time.Duration {
	return k.names(dir, since, until, func() bool { return true })
}

// quiet has the cache watch a directory for long enough to grant names of it.
func quiet(t *testing.T, k *kernelCache, dir client.Ino) {
	t.Helper()
	if d := names(k, dir, k.begin(), lease()); d != 0 {
		t.Errorf("a name of a directory never seen is granted for %v", d)
	}
	time.Sleep(watchFor)
}

func lease() time.Time { return time.Now().Add(5 * time.Second) }

func TestRevocationWaitsForNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeKernel{known: map[client.Ino]bool{7: true}}
		k := newKernelCache(fake.notify)
		defer k.close()
		quiet(t, k, 7)
		d := names(k, 7, k.begin(), lease())
		if d != nameTimeout {
			t.Fatalf("a name in a directory of its own is granted for %v, want %v", d, nameTimeout)
		}
		time.Sleep(300 * time.Millisecond)
		if took, want := revoke(k, 7), nameTimeout+nameMargin-300*time.Millisecond; took != want {
			t.Errorf("the revocation was answered after %v, want %v: names are still in the kernel", took, want)
		}
		if d := names(k, 7, k.begin(), lease()); d != 0 {
			t.Errorf("a name in a shared directory is granted for %v", d)
		}
		if took := revoke(k, 7); took != 0 {
			t.Errorf("the second revocation took %v, want none: the kernel has no names", took)
		}
		time.Sleep(sharedFor + time.Millisecond)
		if d := names(k, 7, k.begin(), lease()); d != nameTimeout {
			t.Errorf("a name is granted for %v long after the last revocation, want %v", d, nameTimeout)
		}
	})
}

// TestQuietDirectory: one that nobody has changed for long is cached at once.
func TestQuietDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernelCache((&fakeKernel{known: map[client.Ino]bool{7: true}}).notify)
		defer k.close()
		if d := k.names(7, k.begin(), lease(), func() bool { return false }); d != nameTimeout {
			t.Errorf("a name is granted for %v, want %v", d, nameTimeout)
		}
		if took, want := revoke(k, 7), nameTimeout+nameMargin; took != want {
			t.Errorf("the revocation was answered after %v, want %v", took, want)
		}
	})
}

func TestGrantOvertakenByRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeKernel{known: map[client.Ino]bool{7: true, 8: true}}
		k := newKernelCache(fake.notify)
		defer k.close()
		quiet(t, k, 7)
		since := k.begin() // a handler asks the client here
		revoke(k, 7)
		if d := k.attrs(7, since, lease()); d != 0 {
			t.Errorf("attributes read before a revocation are granted for %v after it", d)
		}
		if d := names(k, 7, since, lease()); d != 0 {
			t.Errorf("names read before a revocation are granted for %v after it", d)
		}
		if d := k.attrs(8, since, lease()); d == 0 {
			t.Error("the revocation of another inode took the grant away")
		}
		if d := k.attrs(7, k.begin(), lease()); d == 0 {
			t.Error("attributes read after the revocation are not granted")
		}
	})
}

// TestRevocationBehindGrant: the answer that makes an inode known to the kernel may arrive there after the notification.
func TestRevocationBehindGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeKernel{}
		k := newKernelCache(fake.notify)
		defer k.close()
		if took := revoke(k, 9); took != 0 || fake.notified.Load() != 1 {
			t.Errorf("an inode that the kernel never saw: %v, %d notifications", took, fake.notified.Load())
		}
		k.attrs(9, k.begin(), lease())
		if took := revoke(k, 9); took != replyWindow || fake.notified.Load() != 3 {
			t.Errorf("right behind a grant: answered after %v with %d notifications, want %v and 3", took, fake.notified.Load(), replyWindow)
		}
	})
}

func TestNoGrantBeyondLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernelCache((&fakeKernel{}).notify)
		defer k.close()
		quiet(t, k, 1)
		for _, rest := range []time.Duration{-time.Second, 0, attrMargin, attrMargin + 100*time.Millisecond, 5 * time.Second} {
			until := time.Now().Add(rest)
			if d := k.attrs(1, k.begin(), until); d > max(0, rest-attrMargin) {
				t.Errorf("attributes are granted for %v of a lease's last %v", d, rest)
			}
			if d := names(k, 1, k.begin(), until); d > max(0, rest-attrMargin) {
				t.Errorf("names are granted for %v of a lease's last %v", d, rest)
			}
		}
		if k.attrs(1, k.begin(), time.Time{}) != 0 || names(k, 1, k.begin(), time.Time{}) != 0 {
			t.Error("granted without a lease")
		}
	})
}

func TestKernelCacheIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernelCache((&fakeKernel{}).notify)
		defer k.close()
		before := k.begin()
		for ino := client.Ino(1); ino < dirsBound+2*revokedBound; ino++ {
			names(k, ino, k.begin(), lease())
			k.pagesRead(ino, 1, k.begin(), true)
		}
		if len(k.dirs) > dirsBound || len(k.pages) > pagesBound {
			t.Errorf("%d directories and %d files are remembered", len(k.dirs), len(k.pages))
		}
		time.Sleep(5 * time.Second)
		for ino := client.Ino(1); ino < dirsBound+2*revokedBound; ino++ {
			revoke(k, ino)
		}
		if len(k.dirs) > dirsBound || len(k.revoked) > revokedBound {
			t.Errorf("%d directories and %d revocations are remembered", len(k.dirs), len(k.revoked))
		}
		// What was forgotten is taken for revoked, and for shared.
		if k.attrs(1, before, lease()) != 0 {
			t.Error("attributes are granted although their revocation was forgotten")
		}
		time.Sleep(2 * sharedFor)
		quiet(t, k, 0)
		if names(k, 0, k.begin(), lease()) == 0 {
			t.Error("no names are granted long after the last revocation")
		}
	})
}

func TestCloseAnswersRevocations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernelCache((&fakeKernel{known: map[client.Ino]bool{7: true}}).notify)
		quiet(t, k, 7)
		names(k, 7, k.begin(), lease())
		start := time.Now()
		answered := false
		k.Revoked(7, func() { answered = true })
		k.close()
		if !answered || time.Since(start) != 0 {
			t.Errorf("answered %v after %v", answered, time.Since(start))
		}
		if took := revoke(k, 7); took != 0 {
			t.Errorf("a revocation after close took %v", took)
		}
	})
}

func TestPagesAreKeptForTheirVersionOnly(t *testing.T) {
	k := newKernelCache((&fakeKernel{known: map[client.Ino]bool{3: true}}).notify)
	defer k.close()
	keep := func(version uint64, want bool) {
		t.Helper()
		if got := k.keepPages(3, version); got != want {
			t.Errorf("pages are kept at version %d: %v, want %v", version, got, want)
		}
	}
	keep(10, false) // never opened
	k.pagesRead(3, 10, k.begin(), true)
	keep(10, true)
	keep(11, false)
	k.pagesWritten(3, 12, k.begin())
	keep(10, false)
	keep(12, true)
	revoke(k, 3) // by another client, which may have changed mode or data
	keep(12, true)
	k.pagesWritten(3, 14, k.begin())
	keep(14, false) // the other client's change may lie between
	since := k.begin()
	revoke(k, 3)
	k.pagesRead(3, 20, since, true)
	keep(20, true)
	k.pagesWritten(3, 21, k.begin())
	keep(21, false) // the lease was lost while the file was opened
	k.pagesRead(3, 30, k.begin(), false)
	k.pagesWritten(3, 31, k.begin())
	keep(31, false) // there was no lease
}
