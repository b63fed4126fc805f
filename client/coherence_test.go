package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/metaserver"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What one client finished, the other sees at once, although it has the old state cached.
func TestFinishedIsSeenByOthers(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	a, b := c.dial(t), c.dial(t)
	ctx := t.Context()
	mode := func(p *peer, name string) fs.FileMode {
		t.Helper()
		fi, err := p.Lstat(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			return 0
		}
		must(t, err)
		return fi.Mode()
	}
	content := func(p *peer, name string) string {
		t.Helper()
		d, err := p.ReadFile(ctx, name)
		must(t, err)
		return string(d)
	}
	if mode(b, "/f") != 0 {
		t.Fatal("a file before it is made")
	}
	must(t, a.WriteFile(ctx, "/f", []byte("one"), 0o644))
	if mode(b, "/f") != 0o644 || content(b, "/f") != "one" {
		t.Fatal("creation is not seen")
	}
	must(t, a.WriteFile(ctx, "/f", []byte("two!"), 0o644))
	if content(b, "/f") != "two!" {
		t.Fatal("a write is not seen")
	}
	must(t, a.Chmod(ctx, "/f", 0o600))
	if mode(b, "/f") != 0o600 {
		t.Fatal("chmod is not seen")
	}
	must(t, a.Truncate(ctx, "/f", 2))
	if content(b, "/f") != "tw" {
		t.Fatal("truncation is not seen")
	}
	must(t, b.Mkdir(ctx, "/d", 0o755))
	must(t, a.Rename(ctx, "/f", "/d/g"))
	if mode(b, "/f") != 0 || mode(b, "/d/g") != 0o600 {
		t.Fatal("rename is not seen")
	}
	must(t, b.Link(ctx, "/d/g", "/h"))
	if fi, err := a.Stat(ctx, "/h"); err != nil || fi.Sys().(*Attr).Nlink != 2 {
		t.Fatal("a link is not seen")
	}
	must(t, b.SetXattr(ctx, "/h", "user.k", []byte("v"), 0))
	if v, err := a.GetXattr(ctx, "/d/g", "user.k"); err != nil || string(v) != "v" {
		t.Fatal("an xattr is not seen: ", err)
	}
	must(t, a.Remove(ctx, "/d/g"))
	if mode(b, "/d/g") != 0 || content(b, "/h") != "tw" {
		t.Fatal("an unlink is not seen")
	}
	must(t, a.Remove(ctx, "/d"))
	if e, err := b.ReadDir(ctx, "/"); err != nil || len(e) != 1 || e[0].Name() != "h" {
		t.Fatal(e, err)
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	must(t, a.WriteFile(ctx, "/h", big, 0o600))
	if content(b, "/h") != string(big) {
		t.Fatal("a large file differs")
	}
}

func TestCachedMetadataCostsNoMessage(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	a, b := c.dial(t), c.dial(t)
	ctx := t.Context()
	must(t, a.MkdirAll(ctx, "/x/y/z", 0o755))
	must(t, a.WriteFile(ctx, "/x/y/z/f", []byte("content"), 0o644))
	must(t, a.Symlink(ctx, "y", "/x/l"))
	look := func() {
		for _, p := range []string{"/x/y/z/f", "/x/l/z/f", "/x"} {
			_, err := b.Stat(ctx, p)
			must(t, err)
		}
		if _, err := b.Stat(ctx, "/x/y/none"); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		e, err := b.ReadDir(ctx, "/x/y/z")
		must(t, err)
		if len(e) != 1 {
			t.Fatal(e)
		}
		if d, err := b.ReadFile(ctx, "/x/y/z/f"); err != nil || string(d) != "content" {
			t.Fatal(string(d), err)
		}
	}
	look()
	b.silent(t, "looking again", look)
	// In a directory of its own a client makes files for one message each, and one for the data.
	must(t, a.Mkdir(ctx, "/own", 0o755))
	was := a.messages(t)
	for i := range 20 {
		name := fmt.Sprint("/own/f", i)
		if _, err := a.Stat(ctx, name); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		must(t, a.WriteFile(ctx, name, []byte("x"), 0o644))
		_, err := a.Stat(ctx, name)
		must(t, err)
	}
	if n := a.messages(t) - was; n > 40 {
		t.Errorf("%v messages for 20 files", n)
	}
}

func TestUnlinkWhileOpen(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	a, b := c.dial(t), c.dial(t)
	ctx := t.Context()
	for _, remover := range []*peer{a, b} {
		must(t, a.WriteFile(ctx, "/f", []byte("still here"), 0o644))
		f, err := a.OpenFile(ctx, "/f", os.O_RDWR, 0)
		must(t, err)
		must(t, remover.Remove(ctx, "/f"))
		if _, err := a.Stat(ctx, "/f"); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		buf := make([]byte, 20)
		if n, err := f.ReadAt(buf, 0); string(buf[:n]) != "still here" {
			t.Fatal(n, err)
		}
		_, err = f.WriteAt([]byte("STILL"), 0)
		must(t, err)
		must(t, f.Sync())
		fi, err := f.Stat()
		must(t, err)
		if n := fi.Sys().(*Attr).Nlink; n != 0 {
			t.Fatalf("%d links", n)
		}
		must(t, f.Close())
		eventually(t, "the inode is gone", func() bool {
			s, err := c.metas[0].Status(ctx)
			return err == nil && s.Inodes == 1
		})
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("never: ", what)
		}
	}
}

// Operations are done exactly once although connections break all the time.
func TestExactlyOnceOverBrokenConnections(t *testing.T) {
	c := startCluster(t, clusterOptions{proxied: true})
	a := c.dial(t)
	ctx := t.Context()
	stop := make(chan struct{})
	var cutter, workers sync.WaitGroup
	cutter.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				c.proxies[0].cut()
			}
		}
	})
	for w := range 4 {
		workers.Go(func() {
			for i := range 15 {
				dir := fmt.Sprintf("/d%d-%d", w, i)
				if err := a.Mkdir(ctx, dir, 0o755); err != nil {
					t.Error(err)
				}
				if err := a.Rename(ctx, dir, dir+"'"); err != nil {
					t.Error(err)
				}
				if i%2 == 0 {
					if err := a.Remove(ctx, dir+"'"); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	workers.Wait()
	close(stop)
	cutter.Wait()
	e, err := a.ReadDir(ctx, "/")
	must(t, err)
	if len(e) != 4*7 {
		t.Fatalf("%d directories", len(e))
	}
}

func TestSessionLoss(t *testing.T) {
	c := startCluster(t, clusterOptions{proxied: true, tune: func(m *metaserver.Config) {
		m.LeaseTTL, m.SessionTTL = 500*time.Millisecond, time.Second
	}})
	a := c.dial(t)
	ctx := t.Context()
	f, err := a.Create(ctx, "/f")
	must(t, err)
	_, err = f.WriteString("written under the first session")
	must(t, err)
	session := a.meta.Session()
	c.proxies[0].block(true)
	eventually(t, "the session expires", func() bool {
		s, err := c.metas[0].Status(ctx)
		return err == nil && s.Sessions == 0
	})
	c.proxies[0].block(false)
	eventually(t, "another session", func() bool { s := a.meta.Session(); return s != 0 && s != session })
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("the loss was not told: %v", err)
	}
	_, err = f.WriteAt([]byte("again"), 0)
	must(t, err)
	must(t, f.Close())
	if d, err := a.ReadFile(ctx, "/f"); err != nil || string(d) != "again" {
		t.Fatal(string(d), err)
	}
}

func TestLeaderLoss(t *testing.T) {
	c := startCluster(t, clusterOptions{metas: 3, tune: func(m *metaserver.Config) { m.HeartbeatTimeout = 300 * time.Millisecond }})
	a, b := c.dial(t), c.dial(t)
	ctx := t.Context()
	f, err := a.Create(ctx, "/open")
	must(t, err)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	made := 0
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			name := fmt.Sprint("/f", made)
			if err := a.WriteFile(ctx, name, []byte(name), 0o644); err != nil {
				t.Error(err)
				return
			}
			made++
		}
	})
	eventually(t, "some files", func() bool { _, err := b.Stat(ctx, "/f5"); return err == nil })
	s, err := a.Status(ctx)
	must(t, err)
	for _, m := range s.Metaservers {
		if m.Leader {
			must(t, c.metas[m.Id-1].Close())
		}
	}
	if err := b.WriteFile(ctx, "/after", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, b.Remove(ctx, "/open"))
	close(stop)
	wg.Wait()
	_, err = f.WriteString("kept over two leaders")
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
	for i := range made {
		name := fmt.Sprint("/f", i)
		if d, err := b.ReadFile(ctx, name); err != nil || string(d) != name {
			t.Fatal(name, string(d), err)
		}
	}
}

// Random operations of three clients, one after another: each sees what the others did before.
func TestClientsAgreeWithModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	c := startCluster(t, clusterOptions{})
	ctx := t.Context()
	var peers []*peer
	for i := range 3 {
		var opts []Option
		if i == 2 {
			opts = append(opts, WithAttrCache(6)) // evicts all the time
		}
		peers = append(peers, c.dial(t, opts...))
	}
	dirs := []string{"", "/a", "/b"}
	for _, d := range dirs[1:] {
		must(t, peers[0].Mkdir(ctx, d, 0o755))
	}
	model := map[string]string{}
	name := func() string { return dirs[rnd.IntN(len(dirs))] + fmt.Sprint("/n", rnd.IntN(5)) }
	for i := range 3000 {
		p, n, m := peers[rnd.IntN(len(peers))], name(), name()
		was, exists := model[n]
		var err, want error
		if !exists {
			want = fs.ErrNotExist
		}
		switch op := rnd.IntN(8); op {
		case 0, 1:
			data := fmt.Sprint("content ", i)
			err, want = p.WriteFile(ctx, n, []byte(data), 0o644), nil
			model[n] = data
		case 2:
			err = p.Remove(ctx, n)
			delete(model, n)
		case 3:
			err = p.Rename(ctx, n, m)
			if exists && n != m {
				delete(model, n)
				model[m] = was
			}
		case 4:
			var fi fs.FileInfo
			if fi, err = p.Stat(ctx, n); err == nil && fi.Size() != int64(len(was)) {
				t.Fatalf("operation %d: %s has %d bytes, want %d", i, n, fi.Size(), len(was))
			}
		case 5:
			var d []byte
			if d, err = p.ReadFile(ctx, n); err == nil && string(d) != was {
				t.Fatalf("operation %d: %s has %q, want %q", i, n, d, was)
			}
		case 6:
			size := rnd.IntN(20)
			err = p.Truncate(ctx, n, int64(size))
			if exists {
				model[n] = string(append([]byte(was), make([]byte, 20)...)[:size])
			}
		case 7:
			want = nil
			dir := dirs[1+rnd.IntN(2)]
			var e []fs.DirEntry
			e, err = p.ReadDir(ctx, dir)
			var got, expect []string
			for _, e := range e {
				got = append(got, dir+"/"+e.Name())
			}
			for n := range model {
				if len(n) > len(dir) && n[:len(dir)+1] == dir+"/" {
					expect = append(expect, n)
				}
			}
			slices.Sort(expect)
			if !slices.Equal(got, expect) {
				t.Fatalf("operation %d: %s lists %v, want %v", i, dir, got, expect)
			}
		}
		if !errors.Is(err, want) || want == nil && err != nil {
			t.Fatalf("operation %d on %s: %v, want %v", i, n, err, want)
		}
	}
}

// A client that was the last to make a file, has closed it, and then does nothing is asked when another one removes it. The
// server, which cannot know that the answer to the creation arrived, must not keep the file for it until it goes.
func TestIdleMakerKeepsNoFile(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	a, b := c.dial(t), c.dial(t)
	ctx := t.Context()
	must(t, a.WriteFile(ctx, "/old", []byte("content"), 0o644))
	for _, name := range []string{"/old", "/new"} {
		f, err := a.OpenFile(ctx, name, os.O_RDWR|os.O_CREATE, 0o644)
		must(t, err)
		must(t, f.Close())
		must(t, b.Remove(ctx, name))
	}
	eventually(t, "the inodes are gone", func() bool {
		s, err := c.metas[0].Status(ctx)
		return err == nil && s.Inodes == 1
	})
}

// TestOvertakenAttributes: attributes that were read before a commit of this client's own writes, and are looked at after it, do
// not hide what was written; nor may anybody cache what is made of them.
func TestOvertakenAttributes(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	f := c.dial(t)
	ctx := t.Context()
	_, h, err := f.low.Create(ctx, f.cred, Root, "f", os.O_RDWR, 0o644)
	must(t, err)
	before := func() *pb.Attr {
		a, _, err := f.meta.GetAttr(ctx, uint64(h.ino))
		must(t, err)
		return a
	}
	check := func(when string, a *pb.Attr, want uint64) {
		t.Helper()
		if got := f.merged(a, time.Now().Add(time.Hour)); got.Size != want || !got.LeaseUntil.IsZero() {
			t.Errorf("%s: %d bytes, cached until %v; want %d bytes, not cached", when, got.Size, got.LeaseUntil, want)
		}
	}
	write := func(data string, off int64) {
		_, err := h.WriteAt(ctx, []byte(data), off)
		must(t, err)
	}

	a := before()
	write("0123456789", 0)
	check("not committed", a, 10)
	must(t, h.Flush(ctx))
	check("committed", a, 10)

	a = before()
	must(t, h.Truncate(ctx, 4))
	check("truncated", a, 4)
	if size := h.file.Size(); size != 4 {
		t.Errorf("the file took old attributes for new: %d bytes", size)
	}

	a = before()
	write("0123456789", 0)
	must(t, h.Release(ctx))
	check("closed", a, 10)

	// What is as new as can be may be cached.
	now, until, err := f.meta.GetAttr(ctx, uint64(h.ino))
	must(t, err)
	if got := f.merged(now, until); got.Size != 10 || got.LeaseUntil.IsZero() {
		t.Errorf("in the end: %d bytes, cached until %v", got.Size, got.LeaseUntil)
	}
}

// Two clients that remove one tree do not disturb each other.
func TestConcurrentRemoveAll(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	a, b := c.dial(t), c.dial(t)
	ctx := t.Context()
	for round := range 5 {
		for i := range 20 {
			must(t, a.MkdirAll(ctx, fmt.Sprintf("/tree/%d/%d", i%5, i), 0o755))
			must(t, a.WriteFile(ctx, fmt.Sprintf("/tree/%d/%d/f", i%5, i), nil, 0o644))
		}
		var wg sync.WaitGroup
		for _, p := range []*peer{a, b} {
			wg.Go(func() {
				if err := p.RemoveAll(ctx, "/tree"); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		wg.Wait()
	}
}

// A path whose file is replaced all the time always leads to one.
func TestChangesOfReplacedName(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	a, b := c.dial(t), c.dial(t)
	ctx := t.Context()
	must(t, a.WriteFile(ctx, "/f", []byte("0"), 0o644))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := range 200 {
			if err := errors.Join(a.WriteFile(ctx, "/tmp", fmt.Append(nil, n), 0o644), a.Rename(ctx, "/tmp", "/f")); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for n := 0; ; n++ {
		_, err := b.Stat(ctx, "/f")
		if err := errors.Join(err, b.Chmod(ctx, "/f", 0o600), b.SetXattr(ctx, "/f", "user.k", []byte("v"), 0)); err != nil {
			t.Errorf("round %d: %v", n, err)
			break
		}
		select {
		case <-done:
			return
		default:
		}
	}
	<-done
}

// TestOpenOfReplacedName: a name that always exists can always be opened, whoever replaces its file meanwhile.
func TestOpenOfReplacedName(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	a, b := c.dial(t), c.dial(t)
	ctx := t.Context()
	must(t, a.WriteFile(ctx, "/f", []byte("0"), 0o644))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := range 200 {
			if err := errors.Join(a.WriteFile(ctx, "/tmp", fmt.Append(nil, n), 0o644), a.Rename(ctx, "/tmp", "/f")); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for n := 0; ; n++ {
		flag := os.O_RDONLY
		if n%2 == 1 {
			flag = os.O_RDWR | os.O_CREATE
		}
		f, err := b.OpenFile(ctx, "/f", flag, 0o644)
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Errorf("open number %d: %v", n, err)
			break
		}
		select {
		case <-done:
			return
		default:
		}
	}
	<-done
}

// TestEveryHandleHearsOfLostData: that somebody else was told of lost data, or nobody because a reader closed the file, does
// not make a later sync of the writer a success.
func TestEveryHandleHearsOfLostData(t *testing.T) {
	c := startCluster(t, clusterOptions{proxied: true, tune: func(m *metaserver.Config) {
		m.LeaseTTL, m.SessionTTL = 500*time.Millisecond, time.Second
	}})
	a := c.dial(t)
	f, err := a.Create(t.Context(), "/f")
	must(t, err)
	g, err := a.OpenFile(t.Context(), "/f", os.O_WRONLY, 0)
	must(t, err)
	reader, err := a.Open(t.Context(), "/f")
	must(t, err)
	_, err = f.WriteString("written under the first session")
	must(t, err)
	session := a.meta.Session()
	c.proxies[0].block(true)
	eventually(t, "the session expires", func() bool {
		s, err := c.metas[0].Status(t.Context())
		return err == nil && s.Sessions == 0
	})
	c.proxies[0].block(false)
	eventually(t, "another session", func() bool { s := a.meta.Session(); return s != 0 && s != session })
	_ = reader.Close() // a mount has nobody to tell
	if _, err := g.WriteString("x"); !errors.Is(err, syscall.EIO) {
		t.Errorf("write: %v", err)
	}
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("sync of lost data: %v", err)
	}
	for _, f := range []*File{f, g} { // said once to each
		_, err := f.WriteString("written under the second session")
		must(t, err)
		must(t, f.Sync())
		must(t, f.Close())
	}
}
