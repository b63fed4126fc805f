package workload

import (
	"context"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// limited ends the work of a client after so many of its operations.
type limited struct {
	FS
	left int
	stop context.CancelFunc
}

func (l *limited) count() {
	if l.left--; l.left == 0 {
		l.stop()
	}
}

func (l *limited) Open(name string, flag int) (File, error) {
	l.count()
	f, err := l.FS.Open(name, flag)
	return unsynced{f}, err
}

// unsynced does not wait for a disk that nobody takes the power from.
type unsynced struct{ File }

func (unsynced) Sync() error { return nil }

func (l *limited) Stat(name string) (fs.FileInfo, error) {
	l.count()
	return l.FS.Stat(name)
}

// work has a client work in a local directory, which is a file system that is known to be right.
func work(t *testing.T, c Config, operations int) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	j, err := NewJournal(c.Journal)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = j.Close() }() // it is read below
	p := part{Config: c, fs: &limited{Mounted(c.Dir), operations, stop}, j: j, rng: rand.New(rand.NewPCG(c.Seed, 1))}
	for _, dir := range []string{c.Root, p.dir()} {
		if err := os.MkdirAll(filepath.Join(c.Dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	do := map[Role]func(part, context.Context) error{Writer: part.write, Reader: part.read, Names: part.names}[c.Role]
	if err := do(p, ctx); err != nil {
		t.Fatal(err)
	}
	h, err := OpenHistory(c.Journal)
	if err != nil {
		t.Fatal(err)
	}
	if s := h.Stats; s.Operations == 0 || len(s.Errors) > 0 || len(s.Found) > 0 {
		t.Fatalf("%s on a local directory: %d operations, errors %q, found %q", c.Name, s.Operations, s.Errors, s.Found)
	}
}

// laidOut is a directory in which a writer and a client that changes names have worked, and what checks it.
func laidOut(t *testing.T) Config {
	t.Helper()
	base := t.TempDir()
	c := Config{Dir: filepath.Join(base, "fs"), Root: "/load", Large: 1 << 20, Seed: 3}
	w, n := c, c
	w.Role, w.Name, w.Journal = Writer, "writer", filepath.Join(base, "writer.journal")
	n.Role, n.Name, n.Journal = Names, "names", filepath.Join(base, "names.journal")
	work(t, w, 200)
	work(t, n, 500)
	r := c
	r.Role, r.Name, r.Journal, r.Writers = Reader, "reader", filepath.Join(base, "reader.journal"), []string{w.Journal}
	work(t, r, 50)
	c.Role, c.Journal, c.Writers, c.Trees = Checker, filepath.Join(base, "report"), []string{w.Journal}, []string{n.Journal}
	return c
}

func checked(t *testing.T, c Config) []string {
	t.Helper()
	if err := c.check(Mounted(c.Dir)); err != nil {
		t.Fatal(err)
	}
	r, err := ReadReport(c.Journal)
	if err != nil {
		t.Fatal(err)
	}
	if r.Files < 10 || r.Names < 10 || r.Bytes < 100_000 {
		t.Fatalf("only %d files, %d names and %d bytes were checked", r.Files, r.Names, r.Bytes)
	}
	var out []string
	for _, p := range r.Problems {
		out = append(out, p.String())
	}
	return out
}

// TestCheckerFindsWhatIsBroken breaks one thing after another of what was acknowledged.
func TestCheckerFindsWhatIsBroken(t *testing.T) {
	c := laidOut(t)
	if wrong := checked(t, c); wrong != nil {
		t.Fatalf("nothing is broken, and the checker found\n%s", strings.Join(wrong, "\n"))
	}
	largest, size := "", int64(0)
	files, err := filepath.Glob(filepath.Join(c.Dir, "load/writer/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err == nil && info.Size() > size {
			largest, size = f, info.Size()
		}
	}
	whole, err := os.ReadFile(largest)
	if err != nil {
		t.Fatal(err)
	}
	names := filepath.Join(c.Dir, "load/names")
	entries, err := os.ReadDir(names)
	if err != nil || len(entries) == 0 {
		t.Fatalf("%d names, %v", len(entries), err)
	}
	some := filepath.Join(names, entries[0].Name())
	change := func(do func(b []byte) []byte) func() error {
		return func() error { return os.WriteFile(largest, do(append([]byte{}, whole...)), 0o644) }
	}
	for _, broken := range []struct {
		name, want string
		do, undo   func() error
	}{
		{"a flipped bit", "[12345,12346): ", change(func(b []byte) []byte { b[12345] ^= 8; return b }), nil},
		{"zeros", "[20000,20512): zeros, want write #", change(func(b []byte) []byte { clear(b[20000:20512]); return b }), nil},
		{"a lost end", "is lost", change(func(b []byte) []byte { return b[:len(b)-1] }), nil},
		{"bytes too many", "the end of the file", change(func(b []byte) []byte { return append(b, 0) }), nil},
		{"a lost file", "the file is missing", func() error { return os.Rename(largest, largest+"!") }, func() error { return os.Rename(largest+"!", largest) }},
		{"a file too many", "nothing that was made", func() error { return os.WriteFile(largest+"!", nil, 0o644) }, func() error { return os.Remove(largest + "!") }},
		{"a lost name", "is missing", func() error { return os.Rename(some, largest+".away") }, func() error { return os.Rename(largest+".away", some) }},
		{"a name too many", "removed or never made", func() error { return os.Mkdir(some+"!", 0o755) }, func() error { return os.Remove(some + "!") }},
	} {
		if err := broken.do(); err != nil {
			t.Fatal(err)
		}
		if wrong := strings.Join(checked(t, c), "\n"); !strings.Contains(wrong, broken.want) {
			t.Errorf("%s: the checker says %q, want %q", broken.name, wrong, broken.want)
		}
		if broken.undo == nil {
			broken.undo = change(func(b []byte) []byte { return b })
		}
		if err := broken.undo(); err != nil {
			t.Fatal(err)
		}
	}
	if wrong := checked(t, c); wrong != nil {
		t.Errorf("all was mended, and the checker found\n%s", strings.Join(wrong, "\n"))
	}
}
