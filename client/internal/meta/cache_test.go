package meta

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

var root posix.Cred

func makeNode(parent uint64, name string, mode uint32) *pb.Op {
	return &pb.Op{Op: &pb.Op_MakeNode{MakeNode: &pb.MakeNode{Parent: parent, Name: []byte(name), Mode: mode, Exclusive: true}}}
}

func mustMake(t *testing.T, c *Client, parent uint64, name string, mode uint32) uint64 {
	t.Helper()
	r, err := c.Mutate(t.Context(), root, makeNode(parent, name, mode))
	if err != nil {
		t.Fatal(err)
	}
	return r.Attr.Inode
}

func mustLookup(t *testing.T, c *Client, parent uint64, name string) uint64 {
	t.Helper()
	f, err := c.Lookup(t.Context(), root, parent, name)
	if err != nil {
		t.Fatal(err)
	}
	return f.Attr.GetInode()
}

func TestRepeatedReadsCostNoMessage(t *testing.T) {
	f := newFake(t)
	other, c := dial(t, f), dial(t, f)
	ino := mustMake(t, other, 1, "a", syscall.S_IFREG|0o644)
	mustLookup(t, c, 1, "a")
	mustLookup(t, c, 1, "none")
	silent(t, c, "reads under a lease", func() {
		if mustLookup(t, c, 1, "a") != ino || mustLookup(t, c, 1, "none") != 0 {
			t.Error("wrong answer")
		}
		for _, i := range []uint64{1, ino} {
			if _, until, err := c.GetAttr(t.Context(), i); err != nil || until.IsZero() {
				t.Error(i, until, err)
			}
		}
		if _, err := c.GetXattr(t.Context(), root, ino, "security.capability"); err != syscall.ENODATA {
			t.Error(err)
		}
		if _, err := c.Lookup(t.Context(), posix.Cred{UID: 5}, ino, "x"); err != syscall.ENOTDIR {
			t.Error(err)
		}
		if _, err := c.Open(t.Context(), posix.Cred{UID: 5}, ino, posix.Write); err != syscall.EACCES {
			t.Error(err)
		}
		if _, err := c.Open(t.Context(), root, ino, posix.Write); err != nil {
			t.Error(err)
		}
	})
	c.CloseInode(ino)
	if _, err := c.Extents(t.Context(), ino, 100, 10, false); err != nil {
		t.Fatal(err)
	}
	silent(t, c, "extents", func() {
		if _, err := c.Extents(t.Context(), ino, 5000, 0, false); err != nil {
			t.Error(err)
		}
	})
}

func TestOwnDirectoryIsKnownWhole(t *testing.T) {
	f := newFake(t)
	c := dial(t, f)
	dir := mustMake(t, c, 1, "d", syscall.S_IFDIR|0o755)
	was := rpcs(c)
	for i := range 20 {
		name := fmt.Sprint("f", i)
		if mustLookup(t, c, dir, name) != 0 {
			t.Fatal("found before it was made")
		}
		ino := mustMake(t, c, dir, name, syscall.S_IFREG|0o644)
		if mustLookup(t, c, dir, name) != ino {
			t.Fatal("not found after it was made")
		}
	}
	if n := rpcs(c) - was; n != 20 {
		t.Fatalf("%v messages for 20 files", n)
	}
	silent(t, c, "a listing", func() {
		l := c.List(dir, "")
		e, err := c.Next(t.Context(), root, l, 100)
		if err != nil || len(e) != 20 || !slices.IsSortedFunc(e, func(a, b Entry) int { return compare(a.Name, b.Name) }) {
			t.Error(len(e), err)
		}
		if e, err := c.Next(t.Context(), root, l, 100); err != nil || len(e) != 0 {
			t.Error(len(e), err)
		}
	})
	// After unlink and rename the next lookups cost nothing either.
	mutate := func(op *pb.Op) {
		if _, err := c.Mutate(t.Context(), root, op); err != nil {
			t.Fatal(err)
		}
	}
	mutate(&pb.Op{Op: &pb.Op_Unlink{Unlink: &pb.Unlink{Parent: dir, Name: []byte("f0")}}})
	mutate(&pb.Op{Op: &pb.Op_Rename{Rename: &pb.Rename{Parent: dir, Name: []byte("f1"), NewParent: 1, NewName: []byte("g")}}})
	silent(t, c, "lookups after changes", func() {
		if mustLookup(t, c, dir, "f0") != 0 || mustLookup(t, c, dir, "f1") != 0 || mustLookup(t, c, 1, "g") == 0 {
			t.Error("wrong names")
		}
		if a, _, err := c.GetAttr(t.Context(), dir); err != nil || a.Size != 18 {
			t.Error(a, err)
		}
	})
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func TestListedDirectoryIsKnownWhole(t *testing.T) {
	f := newFake(t)
	other, c := dial(t, f), dial(t, f)
	for i := range 25 {
		mustMake(t, other, 1, fmt.Sprintf("n%02d", i), syscall.S_IFREG|0o644)
	}
	l, n := c.List(1, ""), 0
	for {
		e, err := c.Next(t.Context(), root, l, 10)
		if err != nil {
			t.Fatal(err)
		}
		if n += len(e); len(e) == 0 {
			break
		}
	}
	if n != 25 {
		t.Fatalf("%d entries", n)
	}
	silent(t, c, "names of a listed directory", func() {
		if mustLookup(t, c, 1, "n07") == 0 || mustLookup(t, c, 1, "other") != 0 {
			t.Error("wrong names")
		}
		if e, err := c.Next(t.Context(), root, c.List(1, ""), 10); err != nil || len(e) != 25 {
			t.Error(len(e), err)
		}
	})
	// A revocation in the midst of a listing: it must not be taken for whole.
	f.revoke(t, c, 1)
	l = c.List(1, "")
	for i := range 3 {
		if _, err := c.Next(t.Context(), root, l, 10); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			f.revoke(t, c, 1)
		}
	}
	was := rpcs(c)
	mustLookup(t, c, 1, "other")
	if rpcs(c) == was {
		t.Fatal("an interrupted listing was taken for whole")
	}
}

func TestRevocationDropsTheCache(t *testing.T) {
	f := newFake(t)
	other, c := dial(t, f), dial(t, f)
	ino := mustMake(t, other, 1, "a", syscall.S_IFREG|0o644)
	if mustLookup(t, c, 1, "a") != ino {
		t.Fatal("not found")
	}
	if a := f.revoke(t, c, 1, ino); len(a.Opened) != 0 {
		t.Fatalf("opened %v", a.Opened)
	}
	if _, err := other.Mutate(t.Context(), root, &pb.Op{Op: &pb.Op_Unlink{Unlink: &pb.Unlink{Parent: 1, Name: []byte("a")}}}); err != nil {
		t.Fatal(err)
	}
	if mustLookup(t, c, 1, "a") != 0 {
		t.Fatal("a stale name")
	}
}

// A name that another client takes away between the look at the cache and the question for its inode's attributes is one
// that is not there, not an error.
func TestNameGoneWhileItsAttributesAreAskedFor(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOENT, syscall.ESTALE} {
		f := newFake(t)
		c := dial(t, f)
		ino := mustMake(t, c, 1, "a", syscall.S_IFREG|0o644)
		f.revoke(t, c, ino) // the name stays cached
		f.hooks(func(m string, _ proto.Message) error {
			if m != "GetAttr" {
				return nil
			}
			f.hooks(nil, nil)
			f.revoke(t, c, 1, ino)
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.names, dirName{1, "a"})
			delete(f.nodes, ino)
			return rpc.ToStatus(errno)
		}, nil)
		if found, err := c.Lookup(t.Context(), root, 1, "a"); err != nil || found.Attr != nil {
			t.Errorf("%v: found %v, %v", errno, found.Attr, err)
		}
	}
}

func TestRevocationOvertakesReply(t *testing.T) {
	for _, method := range []string{"Lookup", "GetAttr", "ReadDir", "Open", "Mutate"} {
		t.Run(method, func(t *testing.T) {
			f := newFake(t)
			c := dial(t, f)
			ino := mustMake(t, c, 1, "a", syscall.S_IFREG|0o644)
			f.revoke(t, c, 1, ino)
			f.hooks(nil, func(m string, _, _ proto.Message) error {
				if m == method {
					f.hooks(nil, nil)
					f.revoke(t, c, 1, ino) // answered, so that the client has dealt with it
				}
				return nil
			})
			var err error
			switch method {
			case "Lookup":
				mustLookup(t, c, 1, "a")
			case "GetAttr":
				_, _, err = c.GetAttr(t.Context(), ino)
			case "ReadDir":
				_, err = c.Next(t.Context(), root, c.List(1, ""), 10)
			case "Open":
				_, err = c.Open(t.Context(), root, ino, posix.Read)
			case "Mutate":
				mode := uint32(0o600)
				_, err = c.Mutate(t.Context(), root, &pb.Op{Op: &pb.Op_SetAttr{SetAttr: &pb.SetAttr{Inode: ino, Mode: &mode}}})
			}
			if err != nil {
				t.Fatal(err)
			}
			was := rpcs(c)
			mustLookup(t, c, 1, "a")
			if _, _, err := c.GetAttr(t.Context(), ino); err != nil {
				t.Fatal(err)
			}
			if rpcs(c) == was {
				t.Fatal("a reply that a revocation overtook was cached")
			}
		})
	}
}

// Results that come back in another order than they were applied leave the newest in the cache.
func TestResultsOutOfOrder(t *testing.T) {
	m, _ := newMetrics(nil)
	c := newCache(1000, m, func(f func()) bool { f(); return true })
	c.renew(farFuture())
	dir := func(version uint64) *pb.Attr {
		return &pb.Attr{Inode: 1, Mode: syscall.S_IFDIR | 0o755, Version: version}
	}
	file := func(ino, version uint64) *pb.Attr {
		return &pb.Attr{Inode: ino, Mode: syscall.S_IFREG | 0o644, Nlink: 1, Version: version}
	}
	c.mu.Lock()
	c.learn(dir(1), c.epoch).complete = 1
	c.mu.Unlock()
	opA, opB := makeNode(1, "a", syscall.S_IFREG), makeNode(1, "b", syscall.S_IFREG)
	unlinkA := &pb.Op{Op: &pb.Op_Unlink{Unlink: &pb.Unlink{Parent: 1, Name: []byte("a")}}}
	tA, tB, tU := c.begin(opA, false), c.begin(opB, false), c.begin(unlinkA, false)
	if _, _, ok, _ := c.lookup(root, 1, "a"); ok {
		t.Fatal("a name that a mutation in flight changes was answered from the cache")
	}
	c.finish(tB, opB, &pb.Result{Index: 3, Attr: file(3, 3), Parent: dir(3), Leased: true})
	c.finish(tU, unlinkA, &pb.Result{Index: 4, Attr: &pb.Attr{Inode: 2, Mode: syscall.S_IFREG, Version: 4}, Parent: dir(4), Leased: true})
	c.finish(tA, opA, &pb.Result{Index: 2, Attr: file(2, 2), Parent: dir(2), Leased: true})
	if f, _, ok, _ := c.lookup(root, 1, "a"); !ok || f.Attr != nil {
		t.Fatalf("a: %v %v", f.Attr, ok)
	}
	if f, _, ok, _ := c.lookup(root, 1, "b"); !ok || f.Attr.GetInode() != 3 {
		t.Fatalf("b: %v %v", f.Attr, ok)
	}
	if a, _ := c.attr(1); a.GetVersion() != 4 {
		t.Fatalf("directory: %v", a)
	}
}

func TestBoundedCacheTellsTheServer(t *testing.T) {
	f := newFake(t)
	other := dial(t, f)
	for i := range 50 {
		mustMake(t, other, 1, fmt.Sprint("f", i), syscall.S_IFREG|0o644)
	}
	c := newClient(t, 30, f)
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(50) {
		if _, _, err := c.GetAttr(t.Context(), 2+i); err != nil {
			t.Fatal(err)
		}
	}
	c.cache.mu.Lock()
	n, weight := len(c.cache.entries), c.cache.weight
	c.cache.mu.Unlock()
	if n > 30 || weight != n {
		t.Fatalf("%d entries of weight %d", n, weight)
	}
	dropped := 0
	for dropped < 20 {
		dropped += len(<-f.stream(c).drops)
	}
	for i := range 50 { // a directory larger than the cache
		mustLookup(t, c, 1, fmt.Sprint("f", i))
	}
	if _, err := c.Next(t.Context(), root, c.List(1, ""), 100); err != nil {
		t.Fatal(err)
	}
	c.cache.mu.Lock()
	defer c.cache.mu.Unlock()
	if c.cache.weight > 30 {
		t.Fatalf("weight %d", c.cache.weight)
	}
}

func TestObserverHoldsTheAnswerBack(t *testing.T) {
	f := newFake(t)
	c := dial(t, f)
	told := make(chan func(), 1)
	c.Observe(func(ino uint64, done func()) {
		if ino == 1 {
			told <- done
		} else {
			done()
		}
	})
	mustLookup(t, c, 1, "a")
	st := f.stream(c)
	st.out <- &pb.SessionPush{Revokes: []*pb.Revoke{{Id: 77, Inodes: []uint64{1, 2}}}}
	done := <-told
	if _, until := c.cache.attr(1); !until.IsZero() {
		t.Fatal("still cached")
	}
	if f.revoke(t, c, 5).Revoke == 77 {
		t.Fatal("answered before the observer was done")
	}
	done()
	done() // once too often does no harm
	if a := ackOf(t, st); a.Revoke != 77 {
		t.Fatalf("answer %v", a)
	}
}

// TestInlineDataWeighs: what small files hold is kept with their attributes, and must not be had for nothing.
func TestInlineDataWeighs(t *testing.T) {
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := newCache(100, m, func(func()) bool { return false })
	c.renew(time.Now().Add(time.Hour))
	c.mu.Lock()
	defer c.mu.Unlock()
	for ino := uint64(1); ino <= 100; ino++ {
		a := &pb.Attr{Inode: ino, Mode: syscall.S_IFREG, Size: 4096}
		c.learnExtents(&pb.ExtentsReply{Attr: a, End: 4096, Extents: []*pb.Extent{{Length: 4096, Data: make([]byte, 4096)}}}, c.epoch)
	}
	if n := len(c.entries); n == 0 || n > 10 {
		t.Fatalf("%d files of 4 KiB are kept where there is room for 100 empty ones", n)
	}
}
