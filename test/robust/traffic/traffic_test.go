package traffic

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoalfs/shoalfs/internal/testenv"
	"github.com/shoalfs/shoalfs/test/fault/workload"
	"github.com/shoalfs/shoalfs/test/robust/history"
	"github.com/shoalfs/shoalfs/test/robust/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// operations are enough for each kind to be done and to succeed.
const operations = 700

// traffic puts load on a system until every client has begun so many operations, has an auditor read all, and returns the history.
func traffic(t *testing.T, sys system) (all []history.Operation) {
	t.Helper()
	start := workload.Now()
	var wg sync.WaitGroup
	config := Config{Start: start, Generation: time.Hour, Workers: 4, Pause: time.Microsecond, Seed: 1}
	var journals []string
	begin := func(name string) *load {
		c := config
		c.Name, c.Number, c.Journal = name, uint64(len(journals)+1), filepath.Join(t.TempDir(), "journal")
		journals = append(journals, c.Journal)
		journal, err := history.NewRecorder(c.Journal)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = journal.Close() }) // it was read by then
		return &load{Config: c, sys: sys, journal: journal, targets: map[string]*target{}}
	}
	for i := range 3 {
		l := begin(fmt.Sprintf("client-%d", i))
		wg.Go(func() {
			ctx := &counted{Context: context.Background(), left: operations}
			if err := l.work(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	auditor := begin("auditor")
	auditor.Audit = workload.Now()
	if err := auditor.audit(); err != nil {
		t.Fatal(err)
	}
	for i, path := range journals {
		ops, err := history.Load(fmt.Sprint("client-", i), path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ops...)
	}
	return all
}

// counted is a context that ends when it was asked so often.
type counted struct {
	context.Context
	mu   sync.Mutex
	left int
}

func (c *counted) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// local is a directory of the machine's own file system, which has to pass what clusters have to.
func local(t *testing.T) system {
	t.Helper()
	dir := t.TempDir()
	probe := mountedDirectory(dir)
	if err := probe.Rename(t.Context(), history.NoReplace, "a", "b"); !errors.Is(err, fs.ErrNotExist) {
		testenv.Unavailable(t, "renameat2 does not work here: %v", err)
	}
	return mounted(dir)
}

func TestLocalFiles(t *testing.T) {
	ops := traffic(t, local(t))
	done := map[history.Op]int{}
	for i := range ops {
		o := &ops[i]
		if o.Output == nil {
			t.Errorf("%v: %s", o, o.Err)
			continue
		}
		if o.Output.Errno == 0 {
			done[o.Input.Op]++
		}
	}
	for _, op := range slices.Concat(mountedDirectory("").Ops(), []history.Op{history.Lookup, history.Links, history.List,
		history.Chmod, history.Truncate, history.Stat, history.Write, history.Append, history.Read}) {
		if done[op] == 0 {
			t.Errorf("no %s succeeded: %v", op, done)
		}
	}
	problems, err := model.Check(ops, time.Minute)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

// TestFindsWhatIsBroken puts traffic on file systems with something wrong, each of which a model has to notice.
func TestFindsWhatIsBroken(t *testing.T) {
	for kind, broken := range map[model.Kind]func(system) system{
		model.Directory: func(s system) system { return &twice{system: s} },
		model.Attrs:     func(s system) system { return &stale{system: s, seen: map[string]history.Output{}} },
		model.Register:  func(s system) system { return &lossy{system: s, size: 16 << 10} },
		model.Log:       func(s system) system { return &lossy{system: s, size: 512} },
	} {
		t.Run(string(kind), func(t *testing.T) {
			problems, err := model.Check(traffic(t, broken(local(t))), time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			found := map[model.Kind]bool{}
			for _, p := range problems {
				found[model.KindOf(p.Object)] = true
			}
			if !maps.Equal(found, map[model.Kind]bool{kind: true}) {
				t.Errorf("problems of %v, want of %s", found, kind)
			}
		})
	}
}

// twice makes each tenth file once more after it was made, and returns what came of that.
type twice struct {
	system
	mu sync.Mutex
	n  int
}

func (s *twice) Directory(path string) (directory, error) {
	d, err := s.system.Directory(path)
	return &twiceDirectory{d, s}, err
}

func (s *twice) due() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	return s.n%10 == 0
}

type twiceDirectory struct {
	directory
	s *twice
}

func (d *twiceDirectory) Create(ctx context.Context, name string) (uint64, error) {
	ino, err := d.directory.Create(ctx, name)
	if err == nil && d.s.due() {
		return d.directory.Create(ctx, name)
	}
	return ino, err
}

// stale answers each tenth stat with what it saw the time before.
type stale struct {
	system
	mu   sync.Mutex
	n    int
	seen map[string]history.Output
}

func (s *stale) Stat(ctx context.Context, path string) (history.Output, error) {
	out, err := s.system.Stat(ctx, path)
	s.mu.Lock()
	defer s.mu.Unlock()
	old, known := s.seen[path]
	s.seen[path] = out
	if s.n++; known && s.n%10 == 0 {
		return old, err
	}
	return out, err
}

// lossy loses each twentieth write of a size.
type lossy struct {
	system
	size int
	mu   sync.Mutex
	n    int
}

func (s *lossy) Open(path string, flag int) (workload.File, error) {
	f, err := s.system.Open(path, flag)
	if err != nil {
		return nil, err
	}
	return &lossyFile{f, s}, nil
}

type lossyFile struct {
	workload.File
	s *lossy
}

func (f *lossyFile) loses(b []byte) bool {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if len(b) != f.s.size {
		return false
	}
	f.s.n++
	return f.s.n%20 == 0
}

func (f *lossyFile) Write(b []byte) (int, error) {
	if f.loses(b) {
		return len(b), nil
	}
	return f.File.Write(b)
}

func (f *lossyFile) WriteAt(b []byte, off int64) (int, error) {
	if f.loses(b) {
		return len(b), nil
	}
	return f.File.WriteAt(b, off)
}

func TestValues(t *testing.T) {
	whole := append(record(7, 64), record(8, 64)...)
	if list, torn := values(whole, 64); torn != "" || !slices.Equal(list, []uint64{7, 8}) {
		t.Errorf("%v, %q", list, torn)
	}
	if _, torn := values(whole[:100], 64); torn == "" {
		t.Error("half of a record is one")
	}
	copy(whole[96:], whole[:32])
	if _, torn := values(whole, 64); torn == "" {
		t.Error("half of one and half of another is one")
	}
}
