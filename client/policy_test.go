package client

import (
	"errors"
	"io/fs"
	"strings"
	"syscall"
	"testing"
)

func TestPolicy(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	a, b := c.dial(t), c.dial(t)
	ctx := t.Context()
	expect := func(p *peer, path, want string, own bool) {
		t.Helper()
		got, err := p.Policy(ctx, path)
		if err != nil || got.String() != want || got.Own != own {
			t.Errorf("%s: %v %+v, want %s, own: %v; %v", path, got, got, want, own, err)
		}
	}
	must(t, a.MkdirAll(ctx, "/dir/old", 0o755))
	must(t, a.Symlink(ctx, "dir", "/link"))
	expect(a, "/", "replicas=3", false)
	expect(b, "/dir", "replicas=3", false) // and has a lease on it

	must(t, a.SetPolicy(ctx, "/link", "replicas=2,min-copies=1")) // of what it points to
	must(t, a.MkdirAll(ctx, "/dir/new/deep", 0o755))
	must(t, a.WriteFile(ctx, "/dir/new/file", []byte("x"), 0o644))
	for _, p := range []*peer{a, b} {
		expect(p, "/dir", "replicas=2,min-copies=1", true)
		expect(p, "/dir/new/deep", "replicas=2,min-copies=1", true)
		expect(p, "/dir/new/file", "replicas=2,min-copies=1", true)
		expect(p, "/dir/old", "replicas=3", false)
	}
	must(t, b.SetPolicy(ctx, "/dir", DefaultPolicy))
	expect(a, "/dir", "replicas=3", false)
	expect(a, "/dir/new", "replicas=2,min-copies=1", true)

	must(t, a.SetPolicy(ctx, "/", "ec=2+1"))
	expect(b, "/", "ec=2+1", true)
	expect(b, "/dir", "replicas=3", false)
	must(t, a.Mkdir(ctx, "/young", 0o755))
	expect(b, "/young", "ec=2+1", true)
	p, err := ParsePolicy("ec=2+1")
	if got, _ := a.Policy(ctx, "/young"); err != nil || got != p || p.MinCopies != 3 {
		t.Errorf("%+v, %+v, %v", got, p, err)
	}
}

func TestPolicyErrors(t *testing.T) {
	c := startCluster(t, clusterOptions{})
	a, other := c.dial(t), c.dial(t, WithCred(Cred{UID: 7, GID: 7}))
	ctx := t.Context()
	must(t, a.Mkdir(ctx, "/dir", 0o755))
	root, err := a.Stat(ctx, "/")
	must(t, err)
	_, err = a.Low().Mknod(ctx, Cred{}, root.Sys().(*Attr).Ino, "fifo", syscall.S_IFIFO|0o644, 0)
	must(t, err)
	for _, c := range []struct {
		by           *peer
		path, policy string
		errno        syscall.Errno
		says         string
	}{
		{a, "/nothing", "replicas=2", syscall.ENOENT, ""},
		{a, "/dir", "replicas=much", syscall.EINVAL, "replicas=N"},
		{a, "/dir", "", syscall.EINVAL, "replicas=N"},
		{a, "/dir", "ec=4+2", syscall.EINVAL, "needs 6 chunk servers"},
		{a, "/fifo", "replicas=2", syscall.EINVAL, "only files and directories"},
		{other, "/dir", "replicas=2", syscall.EPERM, ""},
	} {
		err := c.by.SetPolicy(ctx, c.path, c.policy)
		var pe *fs.PathError
		if !errors.Is(err, c.errno) || !errors.As(err, &pe) || pe.Op != "setpolicy" || pe.Path != c.path || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s %s: %v, want %v", c.path, c.policy, err, c.errno)
		}
	}
	var pe *fs.PathError
	if _, err := a.Policy(ctx, "/nothing"); !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &pe) || pe.Op != "getpolicy" {
		t.Error(err)
	}
	if p, err := other.Policy(ctx, "/dir"); err != nil || p.String() != "replicas=3" {
		t.Error(p, err)
	}
}
