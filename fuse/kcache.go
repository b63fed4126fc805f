package fuse

import (
	"sync"
	"sync/atomic"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/shoalfs/shoalfs/client"
)

const (
	// nameTimeout is how long the kernel may use a name without asking, in a directory that only this client changes.
	nameTimeout = time.Second
	// nameMargin is what may pass between granting a name and the kernel's starting to count.
	nameMargin = 500 * time.Millisecond
	// watchFor is how long a directory that was changed lately is watched before the kernel gets names of it. Most that are
	// shared by several clients show it at once, and then nobody ever waits.
	watchFor = 2 * time.Second
	// sharedFor is how long after its last revocation a directory counts as changed by several clients.
	sharedFor = 30 * time.Second
	// attrMargin is taken off a lease's rest for what passes before the kernel starts to count.
	attrMargin = 200 * time.Millisecond
	// replyWindow is how long an answer may be on its way into the kernel.
	replyWindow = 50 * time.Millisecond

	dirsBound    = 64 << 10  // directories whose grants are remembered
	revokedBound = 16 << 10  // inodes whose last revocation is remembered
	pagesBound   = 128 << 10 // files whose pages' version is remembered
	recentSlots  = 1024
)

// kernelCache is what the kernel may hold of names and attributes, so that a revocation is answered only when it holds
// none.
//
// Attributes are dropped by a notification. For a file that the kernel does not know the notification does nothing, so an
// answer that introduces the file just then is caught in two ways: a handler that was overtaken by a revocation of what it
// read grants nothing, and a revocation that comes right behind a grant notifies twice.
//
// Names are not dropped by notification, because that takes the lock of their directory, which a mutation from this mount
// may hold while it waits for another mount that waits for this one. A revocation waits instead until the names that were
// granted have run out, and the kernel gets no names of the directory for some time: each lookup is then answered from the
// client's cache. The same holds for the first moments in which a directory is used that was changed just before.
type kernelCache struct {
	notify func(client.Ino) gofuse.Status // drops the kernel's attributes of an inode

	// generation counts revocations. A handler notes it before it asks the client.
	generation atomic.Uint64
	recent     [recentSlots]atomic.Int64 // when attributes of the inodes of that slot were last granted, Unix nanoseconds

	mu      sync.Mutex
	dirs    map[client.Ino]dirState // directories of which names were asked for
	purged  time.Time               // when dirs was last searched for what has run out
	revoked map[client.Ino]uint64   // generation of the last revocation
	floor   uint64                  // revocations up to this generation are forgotten
	pages   map[client.Ino]pages
	closed  chan struct{}  // closed by close
	waiting sync.WaitGroup // revocations on their way
}

// dirState says until when the kernel may use names of a directory, and from when on it gets any.
type dirState struct{ granted, from time.Time }

// pages says which pages of a file the kernel has.
type pages struct {
	version uint64 // the data version that they were read at
	ours    bool   // the lease has been held since: whatever changed the file came from this mount
}

func newKernelCache(notify func(client.Ino) gofuse.Status) *kernelCache {
	return &kernelCache{
		notify: notify, closed: make(chan struct{}),
		dirs: map[client.Ino]dirState{}, revoked: map[client.Ino]uint64{}, pages: map[client.Ino]pages{},
	}
}

// close lets every waiting revocation go: there is no kernel any more that could hold anything.
func (k *kernelCache) close() {
	k.mu.Lock()
	select {
	case <-k.closed:
	default:
		close(k.closed)
	}
	k.mu.Unlock()
	k.waiting.Wait()
}

// begin returns what names and attrs want to know about when the handler began.
func (k *kernelCache) begin() uint64 { return k.generation.Load() }

// names returns how long the kernel may use a name of dir that was read after begin returned since, under a lease that
// holds until then. For a directory not seen before it asks busy whether it was changed lately.
func (k *kernelCache) names(dir client.Ino, since uint64, until time.Time, busy func() bool) time.Duration {
	now := time.Now()
	d := min(nameTimeout, rest(until, now))
	if d <= 0 {
		return 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	st, ok := k.dirs[dir]
	if !ok {
		k.mu.Unlock()
		changing := busy()
		k.mu.Lock()
		if st, ok = k.dirs[dir]; !ok && !k.room(now) {
			return 0
		} else if !ok && changing {
			st.from = now.Add(watchFor)
			k.dirs[dir] = st
		}
	}
	if k.overtaken(dir, since) || now.Before(st.from) {
		return 0
	}
	if g := now.Add(d + nameMargin); g.After(st.granted) {
		st.granted = g
	}
	k.dirs[dir] = st
	return d
}

// attrs returns how long the kernel may use attributes that were read after begin returned since, under a lease that holds
// until then.
func (k *kernelCache) attrs(ino client.Ino, since uint64, until time.Time) time.Duration {
	now := time.Now()
	d := rest(until, now)
	if d <= 0 {
		return 0
	}
	k.recent[ino%recentSlots].Store(now.UnixNano()) // before looking for a revocation, which looks here afterwards
	if k.generation.Load() == since {
		return d
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.overtaken(ino, since) {
		return 0
	}
	return d
}

// rest is how long the kernel may use what a lease covers, which holds until then; a zero time is no lease.
func rest(until, now time.Time) time.Duration { return until.Add(-attrMargin).Sub(now) }

// overtaken tells whether the inode was revoked, or may have been, since that generation.
func (k *kernelCache) overtaken(ino client.Ino, since uint64) bool {
	return since < k.floor || k.revoked[ino] > since
}

// room makes room for one more directory, or says that there is none.
func (k *kernelCache) room(now time.Time) bool {
	if len(k.dirs) < dirsBound {
		return true
	}
	if now.Sub(k.purged) < nameTimeout {
		return false
	}
	k.purged = now
	for ino, st := range k.dirs {
		if now.After(st.granted) && now.After(st.from) {
			delete(k.dirs, ino)
		}
	}
	return len(k.dirs) < dirsBound
}

// Revoked implements client.Observer.
func (k *kernelCache) Revoked(ino client.Ino, done func()) {
	now := time.Now()
	k.mu.Lock()
	select {
	case <-k.closed:
		k.mu.Unlock()
		done()
		return
	default:
	}
	k.waiting.Add(1)
	g := k.generation.Add(1)
	if len(k.revoked) >= revokedBound {
		clear(k.revoked)
		k.floor = g - 1
	}
	k.revoked[ino] = g
	st, ok := k.dirs[ino]
	if ok {
		k.dirs[ino] = dirState{granted: st.granted, from: now.Add(sharedFor)}
	}
	if p, ok := k.pages[ino]; ok && p.ours {
		k.pages[ino] = pages{version: p.version}
	}
	k.mu.Unlock()
	go k.drop(ino, st.granted, done)
}

// drop takes an inode out of the kernel's cache and answers the revocation.
func (k *kernelCache) drop(ino client.Ino, granted time.Time, done func()) {
	defer k.waiting.Done()
	defer done()
	if st := k.notify(ino); st == gofuse.ENOENT {
		if d := replyWindow - time.Since(time.Unix(0, k.recent[ino%recentSlots].Load())); d > 0 {
			if !k.wait(d) {
				return
			}
			k.notify(ino)
		}
	}
	k.wait(time.Until(granted))
}

// wait waits, and says whether there is still a kernel to care for.
func (k *kernelCache) wait(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-k.closed:
		return false
	}
}

// keepPages tells whether the pages that the kernel has of a file are those of that data version.
func (k *kernelCache) keepPages(ino client.Ino, version uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	p, ok := k.pages[ino]
	return ok && p.version == version
}

// pagesRead notes that the kernel has dropped its pages of a file and reads those of that version, or newer ones, from now
// on. It must be called only when the kernel has surely dropped them. leased says that the version was learned under a
// lease after begin returned since.
func (k *kernelCache) pagesRead(ino client.Ino, version, since uint64, leased bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.pages[ino]; !ok && len(k.pages) >= pagesBound {
		for other := range k.pages { // any one: its pages are read again at worst
			delete(k.pages, other)
			break
		}
	}
	k.pages[ino] = pages{version, leased && !k.overtaken(ino, since)}
}

// pagesWritten notes that this mount has committed what it wrote, which made the file that version. The kernel has the
// written bytes in its pages already, so these are still good if nobody else can have changed the file meanwhile.
func (k *kernelCache) pagesWritten(ino client.Ino, version, since uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p, ok := k.pages[ino]; ok && p.ours && !k.overtaken(ino, since) {
		k.pages[ino] = pages{version, true}
	}
}
