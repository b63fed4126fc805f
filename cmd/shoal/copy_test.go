package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/shoalfs/shoalfs/internal/testenv"
)

func checksum(b []byte) []byte {
	s := sha256.Sum256(b)
	return s[:8]
}

// brokenTree is the local file system with faults, standing in for another tree.
type brokenTree struct {
	localTree
	fail    func(op, path string) error
	onWrite func() error // called before each write to a file that Create made
}

func (b brokenTree) Same(other tree) bool {
	_, ok := other.(brokenTree)
	return ok
}

func (b brokenTree) broken(op, path string) error {
	if b.fail == nil {
		return nil
	}
	return b.fail(op, path)
}

func (b brokenTree) Create(ctx context.Context, path string, perm uint32) (io.WriteCloser, error) {
	if err := b.broken("create", path); err != nil {
		return nil, err
	}
	f, err := b.localTree.Create(ctx, path, perm)
	return brokenFile{f, b}, err
}

type brokenFile struct {
	io.WriteCloser
	tree brokenTree
}

func (f brokenFile) Write(p []byte) (int, error) {
	if f.tree.onWrite != nil {
		if err := f.tree.onWrite(); err != nil {
			return 0, err
		}
	}
	return f.WriteCloser.Write(p)
}

func (b brokenTree) Rename(ctx context.Context, from, to string) error {
	if err := b.broken("rename", to); err != nil {
		return err
	}
	return b.localTree.Rename(ctx, from, to)
}

func (b brokenTree) Mkdir(ctx context.Context, path string, perm uint32) error {
	if err := b.broken("mkdir", path); err != nil {
		return err
	}
	return b.localTree.Mkdir(ctx, path, perm)
}

func copyWith(ctx context.Context, dst tree, from, to string) *copier {
	c := &copier{src: localTree{}, dst: dst, parallel: 4, recursive: true}
	c.run(ctx, []pair{{from: from, to: to}})
	return c
}

func TestCopyTree(t *testing.T) {
	from, to := makeTree(t), filepath.Join(treeDir(t), "copy")
	if c := copyWith(t.Context(), brokenTree{}, from, to); c.failed.count != 0 {
		t.Fatal(c.failed.list)
	}
	sameTrees(t, from, to)
	// Again, over what is there. Into the directory that may not be written to only root can copy, as with cp(1).
	c := copyWith(t.Context(), brokenTree{}, from, to)
	switch {
	case testenv.IsRoot():
		if c.failed.count != 0 {
			t.Fatal(c.failed.list)
		}
	case c.failed.count != 1 || !errors.Is(c.failed.list[0], syscall.EACCES) || !strings.HasPrefix(c.failed.list[0].Error(), filepath.Join(to, "read only/secret: ")):
		t.Fatalf("want that read only/secret cannot be replaced: %v", c.failed.list)
	}
	sameTrees(t, from, to)
	noLeftovers(t, to)
}

// One failure stops nothing else, and is named.
func TestCopyGoesOnAfterFailures(t *testing.T) {
	from, to := makeTree(t), filepath.Join(treeDir(t), "copy")
	refuse := func(op, path string) error {
		if (op == "rename" && filepath.Base(path) == "file-4097") || (op == "mkdir" && filepath.Base(path) == "deep") {
			return syscall.EDQUOT
		}
		return nil
	}
	c := copyWith(t.Context(), brokenTree{fail: refuse}, from, to)
	if c.failed.count != 2 {
		t.Fatalf("%d failures, want 2: %v", c.failed.count, c.failed.list)
	}
	for _, err := range c.failed.list {
		if !errors.Is(err, syscall.EDQUOT) || (!strings.Contains(err.Error(), "file-4097") && !strings.Contains(err.Error(), "deep")) {
			t.Errorf("%v", err)
		}
	}
	want, got := snapshot(t, from), snapshot(t, to)
	for path := range want {
		_, there := got[path]
		if lost := path == "file-4097" || path == "deep" || strings.HasPrefix(path, "deep/"); lost == there {
			t.Errorf("%q: there %v", path, there)
		}
	}
	noLeftovers(t, to)
}

// A copy that fails half-way, or is interrupted, leaves what was there before, and nothing else.
func TestFailedCopyLeavesTheOldFile(t *testing.T) {
	for _, how := range []string{"error", "interrupt"} {
		t.Run(how, func(t *testing.T) {
			dir := t.TempDir()
			from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
			write(t, from, pattern(1, 5<<20), 0o644)
			write(t, to, []byte("old"), 0o600)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var writes atomic.Int32
			dst := brokenTree{onWrite: func() error {
				if writes.Add(1) < 3 {
					return nil
				}
				if how == "interrupt" {
					cancel()
					return nil
				}
				return syscall.ENOSPC
			}}
			c := copyWith(ctx, dst, from, to)
			if how == "error" && (c.failed.count != 1 || !errors.Is(c.failed.list[0], syscall.ENOSPC) || !strings.HasPrefix(c.failed.list[0].Error(), to)) {
				t.Errorf("%v", c.failed.list)
			}
			if b, err := os.ReadFile(to); err != nil || string(b) != "old" {
				t.Errorf("%q, %v", b, err)
			}
			if list, err := os.ReadDir(dir); err != nil || len(list) != 2 {
				t.Errorf("%v, %v", list, err)
			}
		})
	}
}

func TestCopyRefusesItself(t *testing.T) {
	root := makeTree(t)
	file := filepath.Join(root, "file-4096")
	inside := filepath.Join(root, "deep", "copy")
	other := filepath.Join(t.TempDir(), "other name of the tree")
	if err := os.Symlink(root, other); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ from, to, want string }{
		{file, file, "same file"},
		{file, filepath.Join(root, "hard"), "same file"},
		{root, inside, "into itself"},
		{root, filepath.Join(other, "copy"), "into itself"},
		{root, root, "into itself"},
		{filepath.Join(root, "dangling"), filepath.Join(root, "dangling"), "to nothing"},
	} {
		cp := &copier{src: localTree{}, dst: localTree{}, parallel: 2, recursive: true}
		cp.run(t.Context(), []pair{{from: c.from, to: c.to}})
		if c.want == "to nothing" {
			c.want = "same file" // a symlink itself is what is copied
		}
		if cp.failed.count != 1 || !strings.Contains(cp.failed.list[0].Error(), c.want) {
			t.Errorf("%s to %s: %v", c.from, c.to, cp.failed.list)
		}
	}
}

// The rules by which cp(1) decides what the copy is called.
func TestPlan(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), nil, 0o600)
	for _, c := range []struct {
		sources []string
		target  string
		want    []string // relative to dir; nil: refused
	}{
		{[]string{"a"}, "new", []string{"new"}},
		{[]string{"x/a"}, ".", []string{"a"}},
		{[]string{"x/a/"}, "./", []string{"a"}},
		{[]string{"x/a", "b"}, ".", []string{"a", "b"}},
		{[]string{"x/."}, ".", []string{"."}},
		{[]string{".."}, "new", []string{"new"}},
		{[]string{"shoal:/"}, ".", []string{"."}},
		{[]string{"shoal:/"}, "new", []string{"new"}},
		{[]string{"shoal:/x/a"}, ".", []string{"a"}},
		{[]string{"a"}, "file", []string{"file"}},
		{[]string{"a"}, "file/", nil},
		{[]string{"a", "b"}, "file", nil},
		{[]string{"a", "b"}, "new", nil},
	} {
		var sources []location
		for _, s := range c.sources {
			sources = append(sources, parseLocation(s))
		}
		target := parseLocation(filepath.Join(dir, c.target))
		target.slash = strings.HasSuffix(c.target, "/")
		pairs, err := plan(t.Context(), localTree{}, sources, target)
		if (err != nil) != (c.want == nil) {
			t.Errorf("%v: %v", c, err)
			continue
		}
		for i, p := range pairs {
			if rel, err := filepath.Rel(dir, p.to); err != nil || rel != c.want[i] {
				t.Errorf("%v: %s goes to %s, %v", c, p.from, p.to, err)
			}
		}
	}
}

// A symlink named as the target is written through, a symlink inside a tree is replaced, and neither is a way out of it.
func TestCopyOverSymlinks(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write(t, at("precious"), []byte("precious"), 0o600)
	for _, d := range []string{"from", "to"} {
		if err := os.Mkdir(at(d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, at("from/x"), []byte("new"), 0o600)
	for _, name := range []string{"to/x", "named"} {
		if err := os.Symlink(at("precious"), at(name)); err != nil {
			t.Fatal(err)
		}
	}
	c := &copier{src: localTree{}, dst: brokenTree{}, parallel: 1, recursive: true}
	c.run(t.Context(), []pair{{from: at("from"), to: at("to")}})
	if b, err := os.ReadFile(at("precious")); c.failed.count != 0 || err != nil || string(b) != "precious" {
		t.Fatalf("a symlink in a tree was followed: %q, %v, %v", b, err, c.failed.list)
	}
	if e, err := lstatLocal(at("to/x")); err != nil || !e.isRegular() {
		t.Fatalf("%+v, %v", e, err)
	}
	c = copyWith(t.Context(), localTree{}, at("from/x"), at("named"))
	if b, err := os.ReadFile(at("precious")); c.failed.count != 0 || err != nil || string(b) != "new" {
		t.Fatalf("a symlink named as target was not followed: %q, %v, %v", b, err, c.failed.list)
	}
}

func TestSetIDBitsNeedTheSameOwner(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	for _, c := range []struct {
		uid  int
		want uint32
	}{{0, 0o4755}, {1234, 0o755}} {
		from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
		write(t, from, nil, 0o755)
		if err := errors.Join(os.Chown(from, c.uid, 0), syscall.Chmod(from, 0o4755)); err != nil {
			t.Fatal(err)
		}
		cp := copyWith(t.Context(), brokenTree{}, from, to)
		e, err := lstatLocal(to)
		if cp.failed.count != 0 || err != nil || e.permBits() != c.want {
			t.Errorf("original of user %d: %+v, %v, %v", c.uid, e, err, cp.failed.list)
		}
	}
}
