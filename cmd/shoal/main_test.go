package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/internal/cluster"
)

// shared is the cluster of all tests of this package; each works in a directory of its own there.
var shared struct {
	once sync.Once
	dir  string
	c    *cluster.Cluster
	err  error
	dirs atomic.Int32 // made so far
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.c != nil {
		if err := shared.c.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "closing the cluster:", err)
			code = 1
		}
		_ = os.RemoveAll(shared.dir) // a leftover in the temporary directory fails nothing
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// onCluster makes the test's commands go to the shared cluster, and returns a directory there that is the test's own, as
// shoal:/….
func onCluster(t *testing.T) string {
	t.Helper()
	shared.once.Do(func() {
		if shared.dir, shared.err = os.MkdirTemp("", "shoal-cli-test"); shared.err != nil {
			return
		}
		if shared.c, shared.err = cluster.New(cluster.Config{Dir: shared.dir, Listen: "127.0.0.1:0"}); shared.err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		shared.err = shared.c.Start(ctx)
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	t.Setenv("SHOAL_CLUSTER", shared.c.Address())
	dir := fmt.Sprintf("shoal:/%s-%d", t.Name(), shared.dirs.Add(1))
	must(t, "mkdir", "-p", dir)
	return dir
}

// outcome is what a run of the program did.
type outcome struct {
	status   int
	out, err string
}

func shoal(t *testing.T, args ...string) outcome { return shoalIn(t, "", args...) }

func shoalIn(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	var out, errOut bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	status := run(ctx, args, strings.NewReader(stdin), &out, &errOut)
	return outcome{status, out.String(), errOut.String()}
}

// must runs the program, which has to succeed silently on standard error, and returns what it wrote.
func must(t *testing.T, args ...string) string {
	t.Helper()
	r := shoal(t, args...)
	if r.status != exitOK || r.err != "" {
		t.Fatalf("shoal %q: status %d\n%s", args, r.status, r.err)
	}
	return r.out
}

// fails runs the program, which has to fail with that status and say something that contains each of the texts.
func fails(t *testing.T, status int, texts []string, args ...string) {
	t.Helper()
	r := shoal(t, args...)
	if r.status != status {
		t.Errorf("shoal %q: status %d, want %d\n%s", args, r.status, status, r.err)
	}
	for _, text := range texts {
		if !strings.Contains(r.err, text) {
			t.Errorf("shoal %q: no %q in %q", args, text, r.err)
		}
	}
	if !strings.HasPrefix(r.err, "shoal") {
		t.Errorf("shoal %q: the error does not begin with the program's name: %q", args, r.err)
	}
}

func fromJSON[T any](t *testing.T, s string) T {
	t.Helper()
	var v T
	d := json.NewDecoder(strings.NewReader(s))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v in %s", err, s)
	}
	return v
}

// pattern is n bytes that differ from block to block.
func pattern(seed, n int) []byte {
	b := make([]byte, n)
	x := uint64(seed)*2862933555777941757 + 3037000493
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return b
}

func write(t *testing.T, path string, data []byte, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// treeDir is a temporary directory for trees that hold directories without write permission: whoever is not root cannot
// remove what is in those.
func treeDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { // before the directory is removed
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			return os.Chmod(path, 0o700)
		})
		if err != nil {
			t.Error(err)
		}
	})
	return dir
}

// makeTree makes a directory with some of everything and returns it.
func makeTree(t *testing.T) string {
	t.Helper()
	root := filepath.Join(treeDir(t), "tree")
	for _, dir := range []string{"", "empty", "deep/er/still", "read only"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range []int{0, 1, 4095, 4096, 4097, 70_000, 1<<20 + 1, 3 << 20} {
		write(t, filepath.Join(root, fmt.Sprintf("file-%d", n)), pattern(i, n), 0o644)
	}
	for i, name := range []string{"read only/secret", "deep/er/still/leaf", "a\nnewline", "ünïcode ☃", strings.Repeat("n", 255), "-dash", ".hidden"} {
		write(t, filepath.Join(root, name), pattern(100+i, 500*i), fs.FileMode(0o400+8*i))
	}
	link := func(target, name string) {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("file-1", "link")
	link("/nowhere/at all", "dangling")
	link("deep", "link-to-dir")
	if err := syscall.Mkfifo(filepath.Join(root, "fifo"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(root, "file-4096"), filepath.Join(root, "hard")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(root, "read only"), 0o555); err != nil {
		t.Fatal(err)
	}
	setTimes(t, root)
	return root
}

// setTimes gives everything in a tree an old time of its own, to the nanosecond.
func setTimes(t *testing.T, root string) {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := len(paths) - 1; i >= 0; i-- {
		at := unix.NsecToTimespec(time.Date(2001, 2, 3, 4, 5, i, 123456789+i, time.UTC).UnixNano())
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, paths[i], []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
	}
}

// snapshot describes a local tree: for each path type, mode, time and contents.
func snapshot(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		e, err := lstatLocal(path)
		if err != nil {
			return err
		}
		var data []byte
		switch {
		case e.isRegular():
			data, err = os.ReadFile(path)
		case e.isSymlink():
			var target string
			target, err = os.Readlink(path)
			data, e.Mode = []byte(target), e.Mode&^0o7777 // the permission bits of a symlink mean nothing
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		out[rel] = fmt.Sprintf("%s %v %d bytes %x", modeString(e.Mode), e.Mtime.UTC(), len(data), checksum(data))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func sameTrees(t *testing.T, want, got string) {
	t.Helper()
	a, b := snapshot(t, want), snapshot(t, got)
	for path, v := range a {
		if b[path] != v {
			t.Errorf("%q:\n got %q\nwant %q", path, b[path], v)
		}
	}
	for path := range b {
		if _, ok := a[path]; !ok {
			t.Errorf("%q should not be there", path)
		}
	}
}

// noLeftovers checks that no temporary file remained below a local directory.
func noLeftovers(t *testing.T, root string) {
	t.Helper()
	for path := range snapshot(t, root) {
		if strings.HasPrefix(filepath.Base(path), ".shoal-") {
			t.Errorf("%s was left behind", path)
		}
	}
}
