package disk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	testIdentity = Identity{Cluster: ClusterID{1, 2, 3}, Server: 7, UUID: [16]byte{9, 9}}
	testMemory   = NewMemory(64 << 20)
)

// tb is what the helpers need of *testing.T and *rapid.T.
type tb interface {
	Helper()
	Fatalf(string, ...any)
}

func open(t tb, dir string, opts Options) *Disk {
	t.Helper()
	if opts.Reserve == 0 {
		opts.Reserve = 1
	}
	d, err := Open(dir, opts)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	if err := d.SetIdentity(testIdentity); err != nil {
		t.Fatalf("set identity: %v", err)
	}
	return d
}

func openT(t *testing.T, dir string, opts Options) *Disk {
	t.Helper()
	d := open(t, dir, opts)
	t.Cleanup(func() {
		if err := d.Close(); err != nil && !errors.Is(err, ErrFailed) {
			t.Errorf("close: %v", err)
		}
	})
	return d
}

// crash gives the directory up as the end of the process would: nothing is finished.
func crash(d *Disk) {
	d.mu.Lock()
	d.closed = true
	for _, w := range d.writers {
		_ = w.file.unref()
	}
	d.mu.Unlock()
	close(d.quit)
	d.tasks.Wait()
	d.cache.clear()
	_ = d.lock.Close()
}

func payload(b []byte) mem.BufferSlice {
	var s mem.BufferSlice
	for len(b) > 0 {
		n := min(len(b), 16<<10)
		s = append(s, mem.SliceBuffer(b[:n]))
		b = b[n:]
	}
	return s
}

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

func create(t tb, d *Disk, id chunk.ID) *Writer {
	t.Helper()
	w, err := d.Create(id)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	return w
}

func appendTo(t tb, w *Writer, b []byte) {
	t.Helper()
	if err := w.Append(w.Length(), chunk.Checksums(nil, b), payload(b)); err != nil {
		t.Fatalf("append: %v", err)
	}
}

func syncNow(t tb, w *Writer) {
	t.Helper()
	if err := w.Sync(); err != nil {
		t.Fatalf("sync: %v", err)
	}
}

func finish(t tb, w *Writer) {
	t.Helper()
	if err := w.Finish(); err != nil {
		t.Fatalf("finish: %v", err)
	}
}

// read reads a range and checks the checksums that come with it.
func read(d *Disk, id chunk.ID, off uint64, n int) ([]byte, error) {
	sums, p, err := d.Read(context.Background(), testMemory, id, off, n)
	if err != nil {
		return nil, err
	}
	defer p.Free()
	b := p.Materialize()
	want := chunk.Checksums(nil, b)
	if len(b) != n || len(sums) != len(want) {
		return nil, fmt.Errorf("asked for %d bytes, got %d and %d checksums", n, len(b), len(sums))
	}
	for i := range want {
		if sums[i] != want[i] {
			return nil, fmt.Errorf("checksum %d is not that of the bytes", i)
		}
	}
	return b, nil
}

func mustRead(t tb, d *Disk, id chunk.ID, off uint64, want []byte) {
	t.Helper()
	got, err := read(d, id, off, len(want))
	if err != nil {
		t.Fatalf("read %d bytes at %d: %v", len(want), off, err)
	}
	if string(got) != string(want) {
		t.Fatalf("read %d bytes at %d: wrong bytes", len(want), off)
	}
}

func report(t tb, d *Disk, id chunk.ID) Report {
	t.Helper()
	for _, r := range d.List() {
		if r.ID == id {
			return r
		}
	}
	t.Fatalf("chunk %v is not listed", id)
	return Report{}
}

func contents(t tb, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return b
}

func put(t tb, path string, b []byte) {
	t.Helper()
	_ = os.Remove(path) // a file that is cut to nothing and written again is flushed at once by some file systems
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatalf("%v", err)
	}
}

// faulty is an FS whose operations fail when told to.
type faulty struct {
	FS
	mu    sync.Mutex
	fault func(op, path string) error // op: create, open, remove, syncdir, space, read, write, sync, truncate
	hang  func(op, path string)       // called before everything else, without a lock
	torn  int                         // bytes that a failing write leaves behind
	lazy  bool                        // syncs do nothing, for tests to which they mean nothing
	count map[string]int
}

func newFaulty() *faulty { return &faulty{FS: OS, count: map[string]int{}} }

func (f *faulty) set(fault func(op, path string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

func failing(op string, err error) func(string, string) error {
	return func(o, _ string) error {
		if o == op {
			return err
		}
		return nil
	}
}

func (f *faulty) setHang(hang func(op, path string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hang = hang
}

func (f *faulty) check(op, path string) error {
	f.mu.Lock()
	hang := f.hang
	f.mu.Unlock()
	if hang != nil {
		hang(op, path)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count[op]++
	if f.fault == nil {
		return nil
	}
	if err := f.fault(op, path); err != nil {
		return &os.PathError{Op: op, Path: path, Err: err}
	}
	return nil
}

func (f *faulty) counted(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[op]
}

func (f *faulty) Create(path string) (File, error) {
	if err := f.check("create", path); err != nil {
		return nil, err
	}
	return f.wrap(path)(f.FS.Create(path))
}

func (f *faulty) Open(path string) (File, error) {
	if err := f.check("open", path); err != nil {
		return nil, err
	}
	return f.wrap(path)(f.FS.Open(path))
}

func (f *faulty) wrap(path string) func(File, error) (File, error) {
	return func(file File, err error) (File, error) {
		if err != nil {
			return nil, err
		}
		return &faultyFile{file, f, path}, nil
	}
}

func (f *faulty) Remove(path string) error {
	return errors.Join(f.check("remove", path), func() error {
		if f.faultFor("remove", path) {
			return nil
		}
		return f.FS.Remove(path)
	}())
}

func (f *faulty) Rename(from, to string) error {
	if err := f.check("rename", from); err != nil {
		return err
	}
	return f.FS.Rename(from, to)
}

func (f *faulty) faultFor(op, path string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fault != nil && f.fault(op, path) != nil
}

func (f *faulty) SyncDir(path string) error {
	if err := f.check("syncdir", path); err != nil || f.lazy {
		return err
	}
	return f.FS.SyncDir(path)
}

func (f *faulty) Space(path string) (Space, error) {
	if err := f.check("space", path); err != nil {
		return Space{}, err
	}
	return f.FS.Space(path)
}

type faultyFile struct {
	File
	fs   *faulty
	path string
}

func (f *faultyFile) WriteBuffers(bufs [][]byte, off int64) error {
	if err := f.fs.check("write", f.path); err != nil {
		rest := f.fs.torn
		for _, b := range bufs {
			n := min(rest, len(b))
			if n == 0 {
				break
			}
			if err := f.File.WriteBuffers([][]byte{b[:n]}, off); err != nil {
				return err
			}
			rest, off = rest-n, off+int64(n)
		}
		return err
	}
	return f.File.WriteBuffers(bufs, off)
}

func (f *faultyFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.fs.check("read", f.path); err != nil {
		return 0, err
	}
	return f.File.ReadAt(b, off)
}

func (f *faultyFile) DropCache(off, n int64) error {
	if err := f.fs.check("drop", f.path); err != nil {
		return err
	}
	return f.File.DropCache(off, n)
}

func (f *faultyFile) Sync() error {
	if err := f.fs.check("sync", f.path); err != nil || f.fs.lazy {
		return err
	}
	return f.File.Sync()
}

func (f *faultyFile) StartWriteback(off, n int64) error {
	if f.fs.lazy {
		return nil
	}
	return f.File.StartWriteback(off, n)
}

func (f *faultyFile) Truncate(n int64) error {
	if err := f.fs.check("truncate", f.path); err != nil {
		return err
	}
	return f.File.Truncate(n)
}
