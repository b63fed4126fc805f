package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/testenv"
)

// TestRandomOperations does the same random operations on a cluster and on a model of a file system, and compares all that
// can be seen. SHOAL_SEED repeats a run, SHOAL_OPS says how many operations.
func TestRandomOperations(t *testing.T) {
	seed := uint64(envInt(t, "SHOAL_SEED", int(time.Now().UnixNano()&0x7fffffff)))
	ops := envInt(t, "SHOAL_OPS", 5000)
	t.Run("SDK", func(t *testing.T) { randomOperations(t, newSDKTarget(t), seed, ops) })
	t.Run("mount", func(t *testing.T) {
		testenv.NeedFUSE(t)
		randomOperations(t, newMountTarget(t), seed, ops)
	})
}

const (
	maxWindow  = 1 << 20 // bytes of a file's contents from its base on
	maxHandles = 12
	// farBase puts a file across the border between two blocks of extents.
	farBase = 64<<20 - 70_000
)

// run is a test under way.
type run struct {
	t       *testing.T
	target  target
	model   *model
	rnd     *rand.Rand
	seed    uint64
	handles []*openHandle
	log     []string // the last operations
	n       int
}

type openHandle struct {
	file                   targetFile
	node                   *node
	name                   string
	reads, writes, appends bool
}

func randomOperations(t *testing.T, target target, seed uint64, ops int) {
	t.Logf("SHOAL_SEED=%d SHOAL_OPS=%d", seed, ops)
	r := &run{t: t, target: target, model: newModel(), rnd: rand.New(rand.NewPCG(seed, 1)), seed: seed}
	watchdog := r.watch()
	defer watchdog.Stop()
	defer r.closeAll()
	steps := []struct {
		weight int
		do     func()
	}{
		{220, r.write}, {220, r.read}, {80, r.append}, {40, r.truncateHandle}, {20, r.truncateName}, {110, r.open}, {80, r.close},
		{50, r.rename}, {30, r.link}, {60, r.remove}, {30, r.sync}, {80, r.stat}, {20, r.list}, {10, r.mkdir}, {40, r.mapped},
	}
	total := 0
	for _, s := range steps {
		total += s.weight
	}
	for r.n = 1; r.n <= ops; r.n++ {
		watchdog.Reset(patience)
		switch {
		case r.n%2500 == 0:
			r.remount()
			r.checkAll()
		case r.n%1000 == 0:
			r.checkAll()
		}
		w := r.rnd.IntN(total)
		for _, s := range steps {
			if w -= s.weight; w < 0 {
				s.do()
				break
			}
		}
	}
	r.remount()
	r.checkAll()
}

// watch ends the test if one operation hangs. The mount goes first, or the process could not end.
func (r *run) watch() *time.Timer {
	return time.AfterFunc(patience, func() {
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		if m, ok := r.target.(*mountTarget); ok {
			for _, p := range []*process{m.main, m.cluster} { // the test has failed; their logs say what they were at
				_ = p.cmd.Process.Signal(syscall.SIGQUIT)
				<-p.done
				log, _ := os.ReadFile(p.log)
				fmt.Fprintf(os.Stderr, "--- the end of %s's log\n%s\n", p.name, log[max(0, len(log)-200_000):])
			}
			_ = testenv.Detach(m.dir)
		}
		panic(fmt.Sprintf("seed %d: an operation hangs", r.seed))
	})
}

func (r *run) logf(format string, args ...any) {
	r.log = append(r.log, fmt.Sprintf("%d: ", r.n)+fmt.Sprintf(format, args...))
	if len(r.log) > 60 {
		r.log = r.log[1:]
	}
}

func (r *run) fatalf(format string, args ...any) {
	r.t.Helper()
	r.t.Fatalf("SHOAL_SEED=%d: %s\nthe last operations:\n%s", r.seed, fmt.Sprintf(format, args...), strings.Join(r.log, "\n"))
}

// check compares the results of an operation.
func (r *run) check(got, want error) bool {
	r.t.Helper()
	if want == nil && got != nil || want != nil && !errors.Is(got, want) {
		r.fatalf("got %v, want %v", got, want)
	}
	return want == nil
}

// name picks a name: there are few, so that the same ones are used again and again.
func (r *run) name() string {
	if d := r.rnd.IntN(4); d > 0 {
		return fmt.Sprintf("/dir%d/f%d", d, r.rnd.IntN(8))
	}
	return fmt.Sprintf("/f%d", r.rnd.IntN(8))
}

// existing picks a name that is there, most of the time.
func (r *run) existing() string {
	if len(r.model.names) == 0 || r.rnd.IntN(10) == 0 {
		return r.name()
	}
	var files []string
	for name, n := range r.model.names {
		if !n.dir {
			files = append(files, name)
		}
	}
	if len(files) == 0 {
		return r.name()
	}
	slices.Sort(files) // the same for the same seed
	return files[r.rnd.IntN(len(files))]
}

func (r *run) handle(ok func(*openHandle) bool) *openHandle {
	if len(r.handles) == 0 {
		return nil
	}
	from := r.rnd.IntN(len(r.handles))
	for i := range r.handles {
		if h := r.handles[(from+i)%len(r.handles)]; ok(h) {
			return h
		}
	}
	return nil
}

func (r *run) bytes(n int) []byte {
	p := make([]byte, n)
	b, step := byte(r.rnd.IntN(255)+1), byte(r.rnd.IntN(7))
	for i := range p {
		p[i] = b
		if i&63 == 63 {
			b += step
		}
	}
	return p
}

// length picks how much is read or written: mostly little.
func (r *run) length() int {
	switch r.rnd.IntN(20) {
	case 0:
		return r.rnd.IntN(300_000)
	case 1, 2, 3:
		return r.rnd.IntN(40_000)
	}
	return r.rnd.IntN(6000)
}

// offset picks a place in a file or a bit behind it.
func (r *run) offset(n *node, length int) int64 {
	end := len(n.data) + 5000
	return n.base + int64(r.rnd.IntN(max(1, min(end, maxWindow-length))))
}

func (r *run) open() {
	if len(r.handles) >= maxHandles {
		r.close()
		return
	}
	name := r.name()
	flag := []int{os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR}[r.rnd.IntN(4)]
	create := r.rnd.IntN(3) > 0
	exclusive := create && r.rnd.IntN(8) == 0
	if create {
		flag |= os.O_CREATE
	} else {
		name = r.existing()
	}
	if exclusive {
		flag |= os.O_EXCL
	}
	truncate := flag&syscall.O_ACCMODE != os.O_RDONLY && r.rnd.IntN(8) == 0
	if truncate {
		flag |= os.O_TRUNC
	}
	h := &openHandle{name: name, reads: flag&syscall.O_ACCMODE != os.O_WRONLY, writes: flag&syscall.O_ACCMODE != os.O_RDONLY}
	if h.writes && r.rnd.IntN(4) == 0 {
		h.appends = true
		flag |= os.O_APPEND
	}
	r.logf("open %s flags %#x", name, flag)
	existed := r.model.names[name] != nil
	node, want := r.model.open(name, create, exclusive, truncate)
	file, err := r.target.OpenFile(name, flag, 0o644)
	if !r.check(err, want) {
		return
	}
	h.file, h.node = file, node
	r.handles = append(r.handles, h)
	if !existed && h.writes && r.rnd.IntN(5) == 0 {
		r.logf("  base %d", farBase)
		r.check(file.Truncate(farBase), nil)
		node.base = farBase
	}
}

func (r *run) close() {
	if len(r.handles) == 0 {
		return
	}
	i := r.rnd.IntN(len(r.handles))
	h := r.handles[i]
	r.handles = slices.Delete(r.handles, i, i+1)
	r.logf("close %s", h.name)
	r.check(h.file.Close(), nil)
}

func (r *run) closeAll() {
	for _, h := range r.handles {
		if err := h.file.Close(); err != nil {
			r.t.Errorf("close %s: %v", h.name, err)
		}
	}
	r.handles = nil
}

func (r *run) write() {
	h := r.handle(func(h *openHandle) bool { return h.writes && !h.appends })
	if h == nil {
		r.open()
		return
	}
	p := r.bytes(r.length())
	off := r.offset(h.node, len(p))
	r.logf("write %s: %d at %d", h.name, len(p), off)
	n, err := h.file.WriteAt(p, off)
	r.check(err, nil)
	if n != len(p) {
		r.fatalf("%d of %d bytes written", n, len(p))
	}
	h.node.write(p, off)
}

func (r *run) append() {
	h := r.handle(func(h *openHandle) bool { return h.appends })
	if h == nil {
		r.open()
		return
	}
	p := r.bytes(r.length())
	if len(h.node.data)+len(p) > maxWindow {
		return
	}
	r.logf("append %s: %d at %d", h.name, len(p), h.node.size())
	n, err := h.file.Write(p)
	r.check(err, nil)
	if n != len(p) {
		r.fatalf("%d of %d bytes written", n, len(p))
	}
	h.node.write(p, h.node.size())
}

func (r *run) read() {
	h := r.handle(func(h *openHandle) bool { return h.reads })
	if h == nil {
		r.open()
		return
	}
	r.readAt(h.file, h.node, h.name, max(0, r.offset(h.node, 0)-int64(r.rnd.IntN(100))), r.length())
}

func (r *run) readAt(f targetFile, n *node, name string, off int64, length int) {
	r.t.Helper()
	r.logf("read %s: %d at %d of %d", name, length, off, n.size())
	want := n.read(off, length)
	got := make([]byte, length)
	k, err := f.ReadAt(got, off)
	if k == length || length == 0 {
		r.check(ignore(err, io.EOF), nil)
	} else {
		r.check(err, io.EOF)
	}
	r.same(name, got[:k], want, off)
}

func ignore(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}

func (r *run) same(name string, got, want []byte, off int64) {
	r.t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	r.fatalf("%s: got %d bytes, want %d; they differ from %d on: got %x, want %x", name, len(got), len(want), off+int64(i),
		got[i:min(i+16, len(got))], want[i:min(i+16, len(want))])
}

func (r *run) newSize(n *node) int64 {
	if r.rnd.IntN(4) == 0 {
		return n.base
	}
	return n.base + int64(r.rnd.IntN(min(len(n.data)+10_000, maxWindow)))
}

func (r *run) truncateHandle() {
	h := r.handle(func(h *openHandle) bool { return h.writes })
	if h == nil {
		return
	}
	size := r.newSize(h.node)
	r.logf("ftruncate %s from %d to %d", h.name, h.node.size(), size)
	r.check(h.file.Truncate(size), nil)
	h.node.truncate(size)
}

func (r *run) truncateName() {
	name := r.existing()
	n, want := r.model.open(name, false, false, false)
	size := int64(0)
	if want == nil {
		size = r.newSize(n)
	}
	r.logf("truncate %s to %d", name, size)
	if r.check(r.target.Truncate(name, size), want) {
		n.truncate(size)
	}
}

func (r *run) rename() {
	old, name := r.existing(), r.name()
	r.logf("rename %s to %s", old, name)
	r.check(r.target.Rename(old, name), r.model.rename(old, name))
}

func (r *run) link() {
	old, name := r.existing(), r.name()
	r.logf("link %s as %s", old, name)
	r.check(r.target.Link(old, name), r.model.link(old, name))
}

func (r *run) remove() {
	name := r.existing()
	if r.rnd.IntN(20) == 0 {
		name = fmt.Sprintf("/dir%d", 1+r.rnd.IntN(3))
	}
	r.logf("remove %s", name)
	r.check(r.target.Remove(name), r.model.remove(name))
}

func (r *run) mkdir() {
	name := fmt.Sprintf("/dir%d", 1+r.rnd.IntN(3))
	r.logf("mkdir %s", name)
	r.check(r.target.Mkdir(name, 0o755), r.model.mkdir(name))
}

func (r *run) sync() {
	if h := r.handle(func(*openHandle) bool { return true }); h != nil {
		r.logf("fsync %s", h.name)
		r.check(h.file.Sync(), nil)
	}
}

func (r *run) stat() {
	if h := r.handle(func(*openHandle) bool { return true }); h != nil && r.rnd.IntN(2) == 0 {
		r.logf("fstat %s", h.name)
		info, err := h.file.Stat()
		r.check(err, nil)
		r.sameInfo(h.name, info, h.node)
		return
	}
	name := r.existing()
	r.logf("stat %s", name)
	info, err := r.target.Lstat(name)
	want := r.model.parent(name)
	n := r.model.names[name]
	if want == nil && n == nil {
		want = syscall.ENOENT
	}
	if r.check(err, want) {
		r.sameInfo(name, info, n)
	}
}

func (r *run) sameInfo(name string, info fs.FileInfo, n *node) {
	r.t.Helper()
	if info.IsDir() != n.dir {
		r.fatalf("%s: is a directory: %v", name, info.IsDir())
	}
	if n.dir {
		return
	}
	if info.Size() != n.size() || r.target.links(info) != n.links {
		r.fatalf("%s: %d bytes and %d links, want %d and %d", name, info.Size(), r.target.links(info), n.size(), n.links)
	}
}

func (r *run) list() {
	dir := "/"
	if d := r.rnd.IntN(4); d > 0 {
		dir = fmt.Sprintf("/dir%d", d)
	}
	r.listDir(dir)
}

func (r *run) listDir(dir string) {
	r.t.Helper()
	r.logf("list %s", dir)
	entries, err := r.target.ReadDir(dir)
	if dir != "/" && r.model.names[dir] == nil {
		r.check(err, syscall.ENOENT)
		return
	}
	r.check(err, nil)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	if want := r.model.list(dir); !slices.Equal(names, want) {
		r.fatalf("%s has %q, want %q", dir, names, want)
	}
}

// mapped writes to a shared mapping and reads from it, where there are mappings.
func (r *run) mapped() {
	h := r.handle(func(h *openHandle) bool { return h.reads && h.writes && len(h.node.data) > 0 })
	if h == nil {
		return
	}
	file, ok := h.file.(*os.File)
	if !ok {
		r.read()
		return
	}
	at := r.rnd.IntN(len(h.node.data))
	length := 1 + r.rnd.IntN(min(len(h.node.data)-at, 20_000))
	off := h.node.base + int64(at)
	m, err := mapRange(file, off, length)
	r.check(err, nil)
	if r.rnd.IntN(3) > 0 {
		r.logf("write mapping of %s: %d at %d", h.name, length, off)
		p := r.bytes(length)
		r.check(m.write(p), nil)
		h.node.write(p, off)
	}
	r.logf("read mapping of %s: %d at %d", h.name, length, off)
	got := make([]byte, length)
	r.check(m.read(got), nil)
	r.same(h.name, got, h.node.read(off, length), off)
	r.check(m.close(r.rnd.IntN(2) == 0), nil)
}

func (r *run) remount() {
	r.logf("remount")
	r.closeAll()
	r.target.remount(r.t)
}

// checkAll compares everything.
func (r *run) checkAll() {
	r.t.Helper()
	r.listDir("/")
	for name, n := range r.model.names {
		if n.dir {
			r.listDir(name)
			continue
		}
		info, err := r.target.Lstat(name)
		r.check(err, nil)
		r.sameInfo(name, info, n)
		f, err := r.target.OpenFile(name, os.O_RDONLY, 0)
		r.check(err, nil)
		r.readAt(f, n, name, n.base, len(n.data)+1)
		if n.base > 0 {
			r.readAt(f, n, name, 0, 5000)
			r.readAt(f, n, name, n.base-5000, 5000)
		}
		r.check(f.Close(), nil)
	}
}
