package fuse_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/fuse"
)

// mapping is a shared mapping of a file. It is touched inside of system calls only: a page fault outside of one stops
// the thread where Go's scheduler does not see it, and the fault is served by this very process.
type mapping struct {
	mem  []byte
	r, w *os.File
}

func mapFile(t *testing.T, f *os.File, size int) *mapping {
	t.Helper()
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	r, w, err := os.Pipe()
	must(t, err)
	return &mapping{mem, r, w}
}

const pipeBytes = 4096

func (m *mapping) read(t *testing.T, p []byte, off int) {
	t.Helper()
	for len(p) > 0 {
		n, err := syscall.Write(int(m.w.Fd()), m.mem[off:off+min(len(p), pipeBytes)])
		must(t, err)
		_, err = io.ReadFull(m.r, p[:n])
		must(t, err)
		p, off = p[n:], off+n
	}
}

func (m *mapping) write(t *testing.T, p []byte, off int) {
	t.Helper()
	for len(p) > 0 {
		n, err := m.w.Write(p[:min(len(p), pipeBytes)])
		must(t, err)
		for got := 0; got < n; {
			k, err := syscall.Read(int(m.r.Fd()), m.mem[off+got:off+n])
			must(t, err)
			got += k
		}
		p, off = p[n:], off+n
	}
}

// close stores what is dirty before it unmaps: munmap would wait for that with the lock of this process's memory, which the mount,
// served by this process, may need to store anything.
func (m *mapping) close(t *testing.T) {
	t.Helper()
	must(t, errors.Join(unix.Msync(m.mem, unix.MS_SYNC), unix.Munmap(m.mem), m.r.Close(), m.w.Close()))
}

func TestMmapShared(t *testing.T) {
	sub := newSubdir(t)
	dir, server := mountAt(t, fuse.Options{Subdir: sub})
	path := filepath.Join(dir, "f")
	const size = 3*4096 + 100
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	must(t, f.Truncate(size))
	m := mapFile(t, f, size)
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(i * 7)
	}
	m.write(t, want[:5000], 0)
	_, err = f.WriteAt(want[5000:], 5000)
	must(t, err)
	got := make([]byte, size)
	m.read(t, got, 0)
	if !bytes.Equal(got, want) {
		t.Error("the mapping does not show what was written beside it")
	}
	must(t, unix.Msync(m.mem, unix.MS_SYNC))
	must(t, f.Close())
	// Pages that get dirty after the last close count too.
	copy(want[100:], "after close")
	m.write(t, []byte("after close"), 100)
	m.close(t)
	must(t, server.Unmount())
	dir, _ = mountAt(t, fuse.Options{Subdir: sub})
	if got := read(t, filepath.Join(dir, "f")); !bytes.Equal(got, want) {
		t.Error("the file does not have what was written to the mapping")
	}
}

// TestMmapAppendHandle: dirty pages are written back through whatever handle is there, also one that appends.
func TestMmapAppendHandle(t *testing.T) {
	path := filepath.Join(mount(t), "f")
	write(t, path, strings.Repeat("x", 5000))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	must(t, err)
	m := mapFile(t, f, 5000)
	m.write(t, []byte("mapped"), 10)
	_, err = f.WriteString("end")
	must(t, err)
	must(t, unix.Msync(m.mem, unix.MS_SYNC))
	m.close(t)
	must(t, f.Close())
	want := strings.Repeat("x", 10) + "mapped" + strings.Repeat("x", 5000-16) + "end"
	if got := string(read(t, path)); got != want {
		t.Errorf("got %d bytes, starting %q, ending %q", len(got), got[:20], got[len(got)-5:])
	}
}

func TestAppendFromTwo(t *testing.T) {
	path := filepath.Join(mount(t), "f")
	a, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	must(t, err)
	b, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	var want []byte
	for i := range 50 {
		line := fmt.Appendf(nil, "line %d\n", i)
		want = append(want, line...)
		_, err := []*os.File{a, b}[i%2].Write(line)
		must(t, err)
	}
	if got := read(t, path); !bytes.Equal(got, want) {
		t.Errorf("while open: got %q", got)
	}
	must(t, errors.Join(a.Close(), b.Close()))
	if got := read(t, path); !bytes.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// TestAppendFlagChanges: fcntl turns O_APPEND on and off after the open.
func TestAppendFlagChanges(t *testing.T) {
	path := filepath.Join(mount(t), "f")
	write(t, path, "0123456789")
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_APPEND, 0)
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0)
	must(t, err)
	_, err = unix.Pwrite(fd, []byte("ab"), 2)
	must(t, err)
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_APPEND)
	must(t, err)
	_, err = unix.Write(fd, []byte("end"))
	must(t, err)
	if got := string(read(t, path)); got != "01ab456789end" {
		t.Errorf("got %q", got)
	}
}

func TestUnlinkedWhileOpen(t *testing.T) {
	path := filepath.Join(mount(t), "f")
	write(t, path, "before")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	must(t, os.Remove(path))
	_, err = f.WriteAt([]byte("after, longer than it was"), 0)
	must(t, err)
	must(t, f.Sync())
	got := make([]byte, 100)
	n, err := f.ReadAt(got, 0)
	if string(got[:n]) != "after, longer than it was" || err != io.EOF {
		t.Errorf("got %q, %v", got[:n], err)
	}
	st, err := f.Stat()
	must(t, err)
	if st.Sys().(*syscall.Stat_t).Nlink != 0 || st.Size() != int64(n) {
		t.Errorf("%d links, %d bytes", st.Sys().(*syscall.Stat_t).Nlink, st.Size())
	}
	must(t, f.Close())
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("lstat: %v", err)
	}
}

func TestRenamedOverWhileOpen(t *testing.T) {
	dir := mount(t)
	write(t, dir+"/old", "old")
	write(t, dir+"/new", "new")
	f, err := os.Open(dir + "/old")
	must(t, err)
	defer f.Close()
	must(t, os.Rename(dir+"/new", dir+"/old"))
	if got := string(read(t, dir+"/old")); got != "new" {
		t.Errorf("by name: %q", got)
	}
	got, err := io.ReadAll(f)
	if string(got) != "old" || err != nil {
		t.Errorf("by handle: %q, %v", got, err)
	}
	if _, err := os.Lstat(dir + "/new"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old name: %v", err)
	}
}

func TestRenameFlags(t *testing.T) {
	dir := mount(t)
	write(t, dir+"/a", "a")
	write(t, dir+"/b", "b")
	rename := func(flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, dir+"/a", unix.AT_FDCWD, dir+"/b", flags)
	}
	if err := rename(unix.RENAME_NOREPLACE); err != unix.EEXIST {
		t.Errorf("RENAME_NOREPLACE: %v", err)
	}
	must(t, rename(unix.RENAME_EXCHANGE))
	if a, b := string(read(t, dir+"/a")), string(read(t, dir+"/b")); a != "b" || b != "a" {
		t.Errorf("after RENAME_EXCHANGE: %q, %q", a, b)
	}
	if err := rename(unix.RENAME_WHITEOUT); err != unix.EINVAL {
		t.Errorf("RENAME_WHITEOUT: %v", err)
	}
	must(t, os.Mkdir(dir+"/d", 0o755))
	must(t, os.Mkdir(dir+"/d/e", 0o755))
	if err := os.Rename(dir+"/d", dir+"/d/e/f"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a directory into itself: %v", err)
	}
}

func TestSparse(t *testing.T) {
	path := filepath.Join(mount(t), "f")
	f, err := os.Create(path)
	must(t, err)
	const far = 200 << 20
	_, err = f.WriteAt([]byte("far"), far)
	must(t, err)
	_, err = f.WriteAt([]byte("near"), 10)
	must(t, err)
	must(t, f.Close())
	st := stat(t, path)
	if st.Size != far+3 || st.Blocks*512 > 1<<20 {
		t.Errorf("%d bytes, %d of them backed", st.Size, st.Blocks*512)
	}
	f, err = os.Open(path)
	must(t, err)
	defer f.Close()
	got := make([]byte, 30)
	_, err = f.ReadAt(got, 0)
	must(t, err)
	if want := append(append(make([]byte, 10), "near"...), make([]byte, 16)...); !bytes.Equal(got, want) {
		t.Errorf("the start: %q", got)
	}
	_, err = f.ReadAt(got, far-27)
	must(t, err)
	if want := append(make([]byte, 27), "far"...); !bytes.Equal(got, want) {
		t.Errorf("the end: %q", got)
	}
}

func TestTruncateWhileOpen(t *testing.T) {
	path := filepath.Join(mount(t), "f")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	defer f.Close()
	data := bytes.Repeat([]byte("0123456789"), 1000)
	_, err = f.Write(data)
	must(t, err)
	must(t, f.Truncate(4500))
	must(t, os.Truncate(path, 8000))
	_, err = f.WriteAt([]byte("z"), 9000)
	must(t, err)
	must(t, f.Truncate(9001))
	want := make([]byte, 9001)
	copy(want, data[:4500])
	want[9000] = 'z'
	if got := read(t, path); !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, want %d; they differ", len(got), len(want))
	}
	must(t, f.Truncate(0))
	if got := read(t, path); len(got) != 0 {
		t.Errorf("%d bytes left", len(got))
	}
	write(t, path, "truncated at open")
	if got := string(read(t, path)); got != "truncated at open" {
		t.Errorf("got %q", got)
	}
}

func TestBigDirectory(t *testing.T) {
	dir := mount(t)
	const files = 5000
	var g sync.WaitGroup
	for w := range 8 {
		g.Go(func() {
			for i := w; i < files; i += 8 {
				if err := unix.Mknod(fmt.Sprintf("%s/file-%05d", dir, i), unix.S_IFREG|0o644, 0); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	g.Wait()
	d, err := os.Open(dir)
	must(t, err)
	defer d.Close()
	for range 2 { // the second time after seeking to the start
		names, err := d.Readdirnames(-1)
		must(t, err)
		slices.Sort(names)
		if len(slices.Compact(names)) != files {
			t.Fatalf("%d names, want %d", len(names), files)
		}
		_, err = d.Seek(0, io.SeekStart)
		must(t, err)
	}
	// Removing while listing: every name comes once.
	seen := 0
	for {
		names, err := d.Readdirnames(100)
		for _, name := range names {
			seen++
			must(t, os.Remove(filepath.Join(dir, name)))
		}
		if err == io.EOF {
			break
		}
		must(t, err)
	}
	if seen != files {
		t.Errorf("%d names seen while removing them, want %d", seen, files)
	}
	left, err := os.ReadDir(dir)
	if len(left) != 0 || err != nil {
		t.Errorf("%d names left, %v", len(left), err)
	}
}

func TestBigFile(t *testing.T) {
	dir := mount(t)
	const size = 64 << 20
	src := rand.NewChaCha8([32]byte{1})
	written, readBack := sha256.New(), sha256.New()
	f, err := os.Create(dir + "/f")
	must(t, err)
	buf := make([]byte, 300_000)
	for n := 0; n < size; n += len(buf) {
		_, _ = src.Read(buf)
		_, err := f.Write(buf)
		must(t, err)
		_, _ = written.Write(buf)
	}
	must(t, f.Close())
	f, err = os.Open(dir + "/f")
	must(t, err)
	defer f.Close()
	_, err = io.Copy(readBack, f)
	must(t, err)
	if !bytes.Equal(written.Sum(nil), readBack.Sum(nil)) {
		t.Error("the checksums differ")
	}
}

func TestDirectIO(t *testing.T) {
	path := filepath.Join(mount(t), "f")
	cached, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	defer cached.Close()
	_, err = cached.Write(bytes.Repeat([]byte("c"), 3*4096))
	must(t, err)
	direct, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	defer direct.Close()
	got := make([]byte, 4096)
	_, err = direct.ReadAt(got, 4096)
	must(t, err)
	if !bytes.Equal(got, bytes.Repeat([]byte("c"), 4096)) {
		t.Error("a direct read does not see a cached write")
	}
	_, err = direct.WriteAt(bytes.Repeat([]byte("d"), 4096), 4096)
	must(t, err)
	_, err = cached.ReadAt(got, 4096)
	must(t, err)
	if !bytes.Equal(got, bytes.Repeat([]byte("d"), 4096)) {
		t.Error("a cached read does not see a direct write")
	}
}

func TestFallocate(t *testing.T) {
	path := filepath.Join(mount(t), "f")
	write(t, path, "data")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	fd := int(f.Fd())
	must(t, unix.Fallocate(fd, 0, 0, 2))
	if st := stat(t, path); st.Size != 4 {
		t.Errorf("%d bytes after a range inside", st.Size)
	}
	must(t, unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 10000))
	if st := stat(t, path); st.Size != 4 {
		t.Errorf("%d bytes after FALLOC_FL_KEEP_SIZE", st.Size)
	}
	must(t, unix.Fallocate(fd, 0, 1000, 9000))
	want := append([]byte("data"), make([]byte, 9996)...)
	if got := read(t, path); !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, want %d", len(got), len(want))
	}
	if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 2); err != unix.EOPNOTSUPP {
		t.Errorf("punching a hole: %v", err)
	}
}

func TestXattrs(t *testing.T) {
	path := filepath.Join(mount(t), "f")
	write(t, path, "x")
	if _, err := unix.Getxattr(path, "user.none", nil); err != unix.ENODATA {
		t.Errorf("no xattrs at all: %v", err)
	}
	must(t, unix.Setxattr(path, "user.a", []byte("value a"), unix.XATTR_CREATE))
	must(t, unix.Setxattr(path, "user.empty", nil, 0))
	if err := unix.Setxattr(path, "user.a", nil, unix.XATTR_CREATE); err != unix.EEXIST {
		t.Errorf("XATTR_CREATE of one that is there: %v", err)
	}
	if err := unix.Setxattr(path, "user.b", nil, unix.XATTR_REPLACE); err != unix.ENODATA {
		t.Errorf("XATTR_REPLACE of one that is not: %v", err)
	}
	buf := make([]byte, 100)
	n, err := unix.Getxattr(path, "user.a", buf)
	if string(buf[:max(n, 0)]) != "value a" || err != nil {
		t.Errorf("got %q, %v", buf[:max(n, 0)], err)
	}
	if n, err := unix.Getxattr(path, "user.a", nil); n != 7 || err != nil {
		t.Errorf("size %d, %v", n, err)
	}
	if _, err := unix.Getxattr(path, "user.a", buf[:3]); err != unix.ERANGE {
		t.Errorf("too little room: %v", err)
	}
	if n, err := unix.Getxattr(path, "user.empty", buf); n != 0 || err != nil {
		t.Errorf("an empty value: %d, %v", n, err)
	}
	n, err = unix.Listxattr(path, buf)
	must(t, err)
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	if !slices.Equal(names, []string{"user.a", "user.empty"}) {
		t.Errorf("the names are %q", names)
	}
	must(t, unix.Removexattr(path, "user.a"))
	if err := unix.Removexattr(path, "user.a"); err != unix.ENODATA {
		t.Errorf("removed twice: %v", err)
	}
}

func TestLinks(t *testing.T) {
	dir := mount(t)
	write(t, dir+"/f", "one")
	must(t, os.Link(dir+"/f", dir+"/g"))
	write(t, dir+"/g", "two")
	f, g := stat(t, dir+"/f"), stat(t, dir+"/g")
	if string(read(t, dir+"/f")) != "two" || f.Ino != g.Ino || f.Nlink != 2 {
		t.Errorf("inodes %d and %d, %d links", f.Ino, g.Ino, f.Nlink)
	}
	must(t, os.Remove(dir+"/f"))
	if g := stat(t, dir+"/g"); g.Nlink != 1 || string(read(t, dir+"/g")) != "two" {
		t.Errorf("%d links after one is removed", g.Nlink)
	}
	long := strings.Repeat("x", 4095)
	for _, target := range []string{"g", "nowhere/at/all", long} {
		must(t, os.Symlink(target, dir+"/link"))
		for range 2 { // the second time from the kernel's cache
			if got, err := os.Readlink(dir + "/link"); got != target || err != nil {
				t.Errorf("readlink: %q, %v", got, err)
			}
		}
		if st := stat(t, dir+"/link"); st.Size != int64(len(target)) {
			t.Errorf("a symlink of %d bytes has size %d", len(target), st.Size)
		}
		must(t, os.Remove(dir+"/link"))
	}
	must(t, os.Symlink("g", dir+"/link"))
	if got := string(read(t, dir+"/link")); got != "two" {
		t.Errorf("through a symlink: %q", got)
	}
}

func TestSpecialFiles(t *testing.T) {
	dir := mount(t)
	must(t, unix.Mkfifo(dir+"/fifo", 0o600))
	if st := stat(t, dir+"/fifo"); st.Mode != unix.S_IFIFO|0o600 {
		t.Errorf("mode %o", st.Mode)
	}
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(dir+"/fifo", []byte("through the pipe"), 0) }()
	if got := string(read(t, dir+"/fifo")); got != "through the pipe" {
		t.Errorf("got %q", got)
	}
	must(t, <-done)
	if os.Geteuid() == 0 {
		must(t, unix.Mknod(dir+"/dev", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
		if st := stat(t, dir+"/dev"); st.Mode != unix.S_IFCHR|0o600 || st.Rdev != unix.Mkdev(1, 3) {
			t.Errorf("mode %o, device %#x", st.Mode, st.Rdev)
		}
	}
}

func TestTimesAndModes(t *testing.T) {
	path := filepath.Join(mount(t), "f")
	write(t, path, "x")
	at, mt := time.Unix(1_000_000_000, 123_456_789), time.Unix(-5, 987_654_321)
	must(t, os.Chtimes(path, at, mt))
	st := stat(t, path)
	if got := time.Unix(st.Atim.Unix()); !got.Equal(at) {
		t.Errorf("atime %v, want %v", got, at)
	}
	if got := time.Unix(st.Mtim.Unix()); !got.Equal(mt) {
		t.Errorf("mtime %v, want %v", got, mt)
	}
	for _, mode := range []uint32{0o000, 0o4755, 0o2755, 0o1777, 0o644} {
		must(t, unix.Chmod(path, mode))
		if st := stat(t, path); st.Mode != unix.S_IFREG|mode {
			t.Errorf("mode %o after chmod %o", st.Mode, mode)
		}
	}
	old := unix.Umask(0o027)
	defer unix.Umask(old)
	must(t, os.WriteFile(path+"2", nil, 0o666))
	if st := stat(t, path+"2"); st.Mode&0o777 != 0o640 {
		t.Errorf("mode %o with umask 027", st.Mode)
	}
}

func TestStatfs(t *testing.T) {
	dir := mount(t)
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	if st.Namelen != 255 || st.Bsize == 0 || st.Blocks == 0 || st.Bavail == 0 || st.Bavail > st.Blocks || st.Ffree == 0 {
		t.Errorf("%+v", st)
	}
}

func TestNames(t *testing.T) {
	dir := mount(t)
	longest := strings.Repeat("n", 255)
	for _, name := range []string{longest, "\xff\xfe", "new\nline", "ünï", " ", "-", "..."} {
		write(t, filepath.Join(dir, name), name)
		if got := string(read(t, filepath.Join(dir, name))); got != name {
			t.Errorf("%q: %q", name, got)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, longest+"n"), nil, 0o644); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("a name of 256 bytes: %v", err)
	}
	names, err := os.ReadDir(dir)
	if len(names) != 7 || err != nil {
		t.Errorf("%d names, %v", len(names), err)
	}
}
