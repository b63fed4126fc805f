package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"
)

func TestIOFS(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	a := c.dial(t)
	ctx := t.Context()
	must(t, a.MkdirAll(ctx, "dir/sub/empty", 0o755))
	var names []string
	for i := range 30 {
		name := fmt.Sprintf("dir/f%02d", i)
		must(t, a.WriteFile(ctx, name, bytes.Repeat([]byte{byte(i)}, i*50), 0o644))
		names = append(names, name)
	}
	must(t, a.WriteFile(ctx, "dir/sub/x.txt", []byte("hello"), 0o600))
	must(t, a.Symlink(ctx, "x.txt", "dir/sub/link"))
	if err := fstest.TestFS(a.IOFS(ctx), append(names, "dir/sub/x.txt", "dir/sub/link", "dir/sub/empty")...); err != nil {
		t.Fatal(err)
	}
}

func TestPaths(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	a := c.dial(t)
	ctx := t.Context()
	must(t, a.MkdirAll(ctx, "/a/b/c", 0o755))
	must(t, a.MkdirAll(ctx, "/other", 0o755))
	must(t, a.WriteFile(ctx, "/a/f", []byte("in a"), 0o644))
	must(t, a.WriteFile(ctx, "/other/f", []byte("in other"), 0o644))
	must(t, a.Symlink(ctx, "../a/b/c", "/other/link"))
	must(t, a.Symlink(ctx, "/a", "/abs"))
	must(t, a.Symlink(ctx, "loop2", "/loop1"))
	must(t, a.Symlink(ctx, "/loop1", "/loop2"))
	must(t, a.Symlink(ctx, "made/by/link", "/dangling"))
	must(t, a.Symlink(ctx, "fresh", "/fresh-link"))
	for _, c := range []struct{ path, want string }{
		{"/a/f", "in a"}, {"a//f", "in a"}, {"./a/./f", "in a"}, {"/../a/f", "in a"}, {"/a/b/../f", "in a"},
		{"/other/link/../../f", "in a"}, // by the directories, not by the text
		{"/abs/f", "in a"}, {"/abs/../other/f", "in other"},
	} {
		if d, err := a.ReadFile(ctx, c.path); err != nil || string(d) != c.want {
			t.Errorf("%s: %q %v", c.path, d, err)
		}
	}
	long := strings.Repeat("n", 256)
	for _, c := range []struct {
		path string
		want syscall.Errno
	}{
		{"", syscall.ENOENT}, {"/none/x", syscall.ENOENT}, {"/a/f/x", syscall.ENOTDIR}, {"/a/f/", syscall.ENOTDIR}, {"/a/f/..", syscall.ENOTDIR},
		{"/loop1", syscall.ELOOP}, {"/dangling", syscall.ENOENT}, {"/a\x00b", syscall.EINVAL}, {"/" + long, syscall.ENAMETOOLONG},
		{"/" + long + "/x", syscall.ENAMETOOLONG}, {strings.Repeat("/abcdefg", 600), syscall.ENAMETOOLONG},
	} {
		var pe *fs.PathError
		if _, err := a.Stat(ctx, c.path); !errors.Is(err, c.want) || !errors.As(err, &pe) || pe.Path != c.path {
			t.Errorf("stat %.20q: %v, want %v", c.path, err, c.want)
		}
	}
	if fi, err := a.Lstat(ctx, "/loop1"); err != nil || fi.Mode().Type() != fs.ModeSymlink {
		t.Error(fi, err)
	}
	if fi, err := a.Lstat(ctx, "/abs/"); err != nil || !fi.IsDir() {
		t.Error(fi, err)
	}
	must(t, a.WriteFile(ctx, "/fresh-link", []byte("through"), 0o644))
	if d, err := a.ReadFile(ctx, "/fresh"); err != nil || string(d) != "through" {
		t.Error(string(d), err)
	}
	for name, c := range map[string]struct{ err, want error }{ // evaluated in the order of the text
		"mkdir twice":             {a.Mkdir(ctx, "/a", 0o755), fs.ErrExist},
		"mkdir with a slash":      {a.Mkdir(ctx, "/slash/", 0o755), nil},
		"mkdir over a link":       {a.Mkdir(ctx, "/dangling", 0o755), fs.ErrExist},
		"mkdir root":              {a.Mkdir(ctx, "/", 0o755), fs.ErrExist},
		"mkdirall over a file":    {a.MkdirAll(ctx, "/a/f", 0o755), syscall.ENOTDIR},
		"mkdirall below a file":   {a.MkdirAll(ctx, "/a/f/x", 0o755), syscall.ENOTDIR},
		"remove what is not":      {a.Remove(ctx, "/none"), fs.ErrNotExist},
		"remove a full directory": {a.Remove(ctx, "/a"), syscall.ENOTEMPTY},
		"remove root":             {a.Remove(ctx, "/"), syscall.EBUSY},
		"remove a file as dir":    {a.Remove(ctx, "/a/f/"), syscall.ENOTDIR},
		"rename below itself":     {a.Rename(ctx, "/a", "/a/b/x"), syscall.EINVAL},
		"rename onto full":        {a.Rename(ctx, "/other", "/a"), syscall.ENOTEMPTY},
		"rename file onto dir":    {a.Rename(ctx, "/a/f", "/other"), syscall.EISDIR},
		"link a directory":        {a.Link(ctx, "/a", "/x"), fs.ErrPermission},
		"symlink over a file":     {a.Symlink(ctx, "x", "/a/f"), fs.ErrExist},
		"a very long symlink":     {a.Symlink(ctx, strings.Repeat("x", 5000), "/s"), syscall.ENAMETOOLONG},
		"readlink of a file":      {func() error { _, err := a.Readlink(ctx, "/a/f"); return err }(), syscall.EINVAL},
		"removeall of nothing":    {a.RemoveAll(ctx, "/none/at/all"), nil},
		"removeall of a tree":     {a.RemoveAll(ctx, "/a"), nil},
		"removeall of a link":     {a.RemoveAll(ctx, "/abs"), nil},
		"truncate below zero":     {a.Truncate(ctx, "/other/f", -1), syscall.EINVAL},
	} {
		if !errors.Is(c.err, c.want) || c.want == nil && c.err != nil {
			t.Errorf("%s: %v, want %v", name, c.err, c.want)
		}
	}
	if _, err := a.Stat(ctx, "/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestOpenFlags(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	a := c.dial(t)
	ctx := t.Context()
	open := func(name string, flag int) (*File, error) { return a.OpenFile(ctx, name, flag, 0o644) }
	f, err := open("/f", os.O_CREATE|os.O_EXCL|os.O_WRONLY)
	must(t, err)
	_, err = f.WriteString("hello")
	must(t, err)
	if fi, err := a.Stat(ctx, "/f"); err != nil || fi.Size() != 5 || time.Since(fi.ModTime()) > time.Minute {
		t.Error("uncommitted writes are not shown: ", fi, err)
	}
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, syscall.EBADF) {
		t.Error(err)
	}
	must(t, f.Close())
	for name, err := range map[string]error{
		"close": f.Close(), "sync": f.Sync(), "truncate": f.Truncate(0),
		"read": func() error { _, err := f.Read(nil); return err }(), "write": func() error { _, err := f.Write(nil); return err }(),
		"stat": func() error { _, err := f.Stat(); return err }(), "seek": func() error { _, err := f.Seek(0, 0); return err }(),
	} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s after close: %v", name, err)
		}
	}
	for _, c := range []struct {
		name string
		flag int
		want error
	}{
		{"/f", os.O_CREATE | os.O_EXCL, fs.ErrExist}, {"/none", os.O_RDWR, fs.ErrNotExist}, {"/", os.O_RDWR, syscall.EISDIR}, {"/", os.O_CREATE, syscall.EISDIR},
		{"/f", syscall.O_DIRECTORY, syscall.ENOTDIR}, {"/new/", os.O_CREATE | os.O_WRONLY, syscall.EISDIR}, {"/none/f", os.O_CREATE, fs.ErrNotExist},
	} {
		if _, err := open(c.name, c.flag); !errors.Is(err, c.want) {
			t.Errorf("open %s with %#x: %v, want %v", c.name, c.flag, err, c.want)
		}
	}
	f, err = open("/f", os.O_RDWR|os.O_TRUNC)
	must(t, err)
	if n, err := f.ReadFrom(strings.NewReader(strings.Repeat("0123456789", 300_000))); n != 3_000_000 || err != nil {
		t.Fatal(n, err)
	}
	if at, err := f.Seek(-5, io.SeekEnd); at != 2_999_995 || err != nil {
		t.Fatal(at, err)
	}
	var tail bytes.Buffer
	if n, err := f.WriteTo(&tail); n != 5 || err != nil || tail.String() != "56789" {
		t.Fatal(n, err, tail.String())
	}
	if n, err := f.Read(make([]byte, 5)); n != 0 || err != io.EOF {
		t.Fatal(n, err)
	}
	must(t, f.Truncate(7))
	buf := make([]byte, 10)
	if n, err := f.ReadAt(buf, 3); n != 4 || err != io.EOF || string(buf[:n]) != "3456" {
		t.Fatal(n, err)
	}
	if _, err := f.ReadAt(buf, -1); !errors.Is(err, syscall.EINVAL) {
		t.Fatal(err)
	}
	must(t, f.Close())
	log, err := open("/f", os.O_APPEND|os.O_WRONLY)
	must(t, err)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				if _, err := log.WriteString("line\n"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if _, err := log.WriteAt([]byte("x"), 0); err == nil {
		t.Error("WriteAt with O_APPEND")
	}
	must(t, log.Close())
	if d, err := a.ReadFile(ctx, "/f"); err != nil || string(d) != "0123456"+strings.Repeat("line\n", 200) {
		t.Error(len(d), err)
	}
}

func TestPermissions(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	su, user := c.dial(t), c.dial(t, WithCred(Cred{UID: 1000, GID: 1000, Groups: []uint32{50}}))
	ctx := t.Context()
	must(t, su.Chmod(ctx, "/", 0o755))
	must(t, su.Mkdir(ctx, "/private", 0o700))
	must(t, su.WriteFile(ctx, "/private/f", []byte("secret"), 0o644))
	must(t, su.WriteFile(ctx, "/group", []byte("group"), 0o640))
	must(t, su.Chown(ctx, "/group", -1, 50))
	must(t, su.WriteFile(ctx, "/readonly", []byte("r"), 0o444))
	for range 2 { // first asked of the server, then answered from the cache
		if _, err := user.Stat(ctx, "/private/f"); !errors.Is(err, fs.ErrPermission) {
			t.Error(err)
		}
		if d, err := user.ReadFile(ctx, "/group"); err != nil || string(d) != "group" {
			t.Error(err)
		}
		if _, err := user.OpenFile(ctx, "/readonly", os.O_WRONLY, 0); !errors.Is(err, fs.ErrPermission) {
			t.Error(err)
		}
		if err := user.WriteFile(ctx, "/mine", nil, 0o644); !errors.Is(err, fs.ErrPermission) {
			t.Error(err)
		}
	}
	// Permission is checked at open: what was opened stays so.
	f, err := user.Open(ctx, "/group")
	must(t, err)
	must(t, su.Chmod(ctx, "/group", 0))
	if d, err := io.ReadAll(f); err != nil || string(d) != "group" {
		t.Error(string(d), err)
	}
	must(t, f.Close())
	if _, err := user.Open(ctx, "/group"); !errors.Is(err, fs.ErrPermission) {
		t.Error(err)
	}
	// A writer who is not root takes set-id bits away.
	must(t, su.WriteFile(ctx, "/suid", []byte("#!"), 0o777))
	must(t, su.Chmod(ctx, "/suid", 0o777|fs.ModeSetuid))
	must(t, user.WriteFile(ctx, "/suid", []byte("evil"), 0))
	if fi, err := su.Stat(ctx, "/suid"); err != nil || fi.Mode()&fs.ModeSetuid != 0 {
		t.Error(fi.Mode(), err)
	}
}

func TestDirOffsets(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	a, b := c.dial(t), c.dial(t)
	ctx := t.Context()
	const n = 1500
	must(t, b.Mkdir(ctx, "/d", 0o755))
	for i := range n {
		_, err := b.Low().Mknod(ctx, Cred{}, mustStat(t, b, "/d").Ino, fmt.Sprintf("f%04d", i), syscall.S_IFREG|0o644, 0)
		must(t, err)
	}
	d, err := a.Low().OpenDir(ctx, Cred{}, mustStat(t, a, "/d").Ino)
	must(t, err)
	seen := map[string]uint64{}
	var middle DirEntry
	for off := uint64(0); ; {
		e, err := d.ReadAt(ctx, off)
		must(t, err)
		if len(e) == 0 {
			break
		}
		for _, e := range e {
			if _, twice := seen[e.Name]; twice {
				t.Fatalf("%s comes twice", e.Name)
			}
			seen[e.Name] = e.Next
			off = e.Next
		}
		if len(seen) > 1200 && middle.Name == "" {
			middle = e[0]
			// What goes away behind and before makes nothing come twice or be left out.
			must(t, b.Remove(ctx, "/d/f0000"))
			must(t, b.Remove(ctx, "/d/f1499"))
			must(t, b.WriteFile(ctx, "/d/f0000a", nil, 0o644))
		}
	}
	if len(seen) < n-1 {
		t.Fatalf("%d entries", len(seen))
	}
	e, err := d.ReadAt(ctx, middle.Next)
	must(t, err)
	if len(e) == 0 || seen[e[0].Name] != e[0].Next || e[0].Name <= middle.Name {
		t.Fatal("seeking back leads elsewhere")
	}
	if e, err := d.ReadAt(ctx, 0); err != nil || e[0].Name != "f0000a" {
		t.Fatal("a listing from the start is not fresh: ", err)
	}
	if _, err := d.ReadAt(ctx, 1<<60); !errors.Is(err, syscall.EINVAL) {
		t.Fatal(err)
	}
}

func mustStat(t *testing.T, p *peer, name string) *Attr {
	t.Helper()
	fi, err := p.Stat(t.Context(), name)
	must(t, err)
	return fi.Sys().(*Attr)
}

func TestDialFails(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Dial(ctx, "127.0.0.1:1"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := Dial(t.Context(), " , "); err == nil {
		t.Error("no address, no error")
	}
}

// TestNoCache: a cache of no bytes keeps nothing.
func TestNoCache(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	for _, size := range []int64{0, -1, 8 << 20} {
		p := c.dial(t, WithCache(size))
		want := bytes.Repeat([]byte("shoal"), 100_000)
		must(t, p.WriteFile(t.Context(), "/file", want, 0o644))
		got, err := p.ReadFile(t.Context(), "/file")
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
		}
		families, err := p.registry.Gather()
		must(t, err)
		for _, f := range families {
			if f.GetName() != "shoal_client_cache_bytes" {
				continue
			}
			if kept := f.GetMetric()[0].GetGauge().GetValue(); (kept > 0) != (size > 0) {
				t.Errorf("WithCache(%d) keeps %v bytes", size, kept)
			}
		}
	}
}
