package fuse_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/fuse"
)

// TestTwoMountsSeeEachOther: what one mount has done, the other sees at once, whatever it had cached before.
func TestTwoMountsSeeEachOther(t *testing.T) {
	a, b := twoMounts(t)
	absent := func(path string) {
		t.Helper()
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there: %v", path, err)
		}
	}
	for i := range 4 { // from one side, then from the other, with names and attributes cached from before
		x, y := a, b
		if i%2 == 1 {
			x, y = b, a
		}
		absent(y + "/new")
		write(t, x+"/new", "created")
		if got := string(read(t, y+"/new")); got != "created" {
			t.Errorf("created: %q", got)
		}
		stat(t, x+"/new")
		must(t, os.Chmod(y+"/new", 0o600))
		if st := stat(t, x+"/new"); st.Mode != unix.S_IFREG|0o600 {
			t.Errorf("chmod: mode %o", st.Mode)
		}
		f, err := os.OpenFile(x+"/new", os.O_APPEND|os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteString(", appended")
		must(t, errors.Join(err, f.Close()))
		if st := stat(t, y+"/new"); st.Size != int64(len("created, appended")) {
			t.Errorf("append: size %d", st.Size)
		}
		if got := string(read(t, y+"/new")); got != "created, appended" {
			t.Errorf("append: %q", got)
		}
		must(t, os.Truncate(y+"/new", 3))
		if got := string(read(t, x+"/new")); got != "cre" {
			t.Errorf("truncate: %q", got)
		}
		f, err = os.OpenFile(y+"/new", os.O_WRONLY, 0) // the same size, other bytes
		must(t, err)
		_, err = f.WriteString("CRE")
		must(t, errors.Join(err, f.Close()))
		if got := string(read(t, x+"/new")); got != "CRE" {
			t.Errorf("overwrite: %q", got)
		}
		must(t, os.Rename(x+"/new", x+"/moved"))
		absent(y + "/new")
		if got := string(read(t, y+"/moved")); got != "CRE" {
			t.Errorf("rename: %q", got)
		}
		must(t, os.Mkdir(x+"/dir", 0o755))
		write(t, y+"/dir/f", "deep")
		if got := string(read(t, x+"/dir/f")); got != "deep" {
			t.Errorf("in a new directory: %q", got)
		}
		must(t, os.Link(y+"/moved", y+"/dir/link"))
		if st := stat(t, x+"/moved"); st.Nlink != 2 {
			t.Errorf("link: %d links", st.Nlink)
		}
		must(t, os.RemoveAll(x+"/dir"))
		absent(y + "/dir")
		must(t, os.Remove(y+"/moved"))
		absent(x + "/moved")
		if names, err := os.ReadDir(x); len(names) != 0 || err != nil {
			t.Errorf("%d names left, %v", len(names), err)
		}
	}
}

// TestNamesInTheKernel: also names that the kernel itself has cached are gone when another mount has changed them.
func TestNamesInTheKernel(t *testing.T) {
	sub := newSubdir(t)
	registry := prometheus.NewRegistry()
	a, _ := mountAt(t, fuse.Options{Subdir: sub})
	b, _ := mountAt(t, fuse.Options{Subdir: sub, Registerer: registry})
	write(t, a+"/f", "x")
	// Until two looks cost no more lookups than one, the kernel asks for the name.
	cached := func(path string) bool {
		before := requests(t, registry, "lookup")
		_, _ = os.Lstat(path) // it may be there or not
		return requests(t, registry, "lookup") == before
	}
	for _, name := range []string{"/f", "/none"} {
		for deadline := time.Now().Add(testTimeout); !cached(b + name); {
			if time.Now().After(deadline) {
				t.Fatalf("the kernel never caches %s", name)
			}
		}
	}
	must(t, os.Rename(a+"/f", a+"/none"))
	if _, err := os.Lstat(b + "/f"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old name: %v", err)
	}
	if st := stat(t, b+"/none"); st.Size != 1 {
		t.Errorf("the new name: %d bytes", st.Size)
	}
	if cached(b + "/none") {
		t.Error("a name in a directory that two mounts use is cached in the kernel")
	}
}

// requests returns how many requests of a kind succeeded.
func requests(t *testing.T, registry *prometheus.Registry, op string) float64 {
	t.Helper()
	families, err := registry.Gather()
	must(t, err)
	var n float64
	for _, f := range families {
		if f.GetName() != "shoal_fuse_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "op" && l.GetValue() == op {
					n += m.GetCounter().GetValue()
				}
			}
		}
	}
	return n
}

// TestTailFollows: a reader that keeps a file open sees what another mount appended, and no zeros where its page ended.
func TestTailFollows(t *testing.T) {
	a, b := twoMounts(t)
	write(t, a+"/log", "")
	reader, err := os.Open(b + "/log")
	must(t, err)
	defer reader.Close()
	for i := range 10 {
		line := fmt.Sprintf("line %d\n", i)
		f, err := os.OpenFile(a+"/log", os.O_APPEND|os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteString(line)
		must(t, errors.Join(err, f.Close()))
		got, err := io.ReadAll(reader)
		if string(got) != line || err != nil {
			t.Fatalf("line %d: got %q, %v", i, got, err)
		}
	}
}

// TestAppendsOfTwoMounts: none overwrites another, and each mount's cached pages agree with the file.
func TestAppendsOfTwoMounts(t *testing.T) {
	a, b := twoMounts(t)
	const lines = 100
	write(t, a+"/log", "")
	var g sync.WaitGroup
	for i, dir := range []string{a, b} {
		g.Go(func() {
			for n := range lines {
				f, err := os.OpenFile(dir+"/log", os.O_APPEND|os.O_WRONLY, 0)
				if err == nil {
					_, err = fmt.Fprintf(f, "mount %d line %04d\n", i, n)
					err = errors.Join(err, f.Close())
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	g.Wait()
	ga, gb := read(t, a+"/log"), read(t, b+"/log")
	if !bytes.Equal(ga, gb) {
		t.Error("the mounts show different contents")
	}
	for i := range 2 {
		for n := range lines {
			if line := fmt.Sprintf("mount %d line %04d\n", i, n); strings.Count(string(ga), line) != 1 {
				t.Fatalf("%q is there %d times", line, strings.Count(string(ga), line))
			}
		}
	}
	if want := 2 * lines * len("mount 0 line 0000\n"); len(ga) != want {
		t.Errorf("%d bytes, want %d", len(ga), want)
	}
}

// TestTwoMountsInOneDirectory: at full speed, and no operation waits for a lease to run out.
func TestTwoMountsInOneDirectory(t *testing.T) {
	a, b := twoMounts(t)
	const rounds = 100
	slowest := make([]time.Duration, 2)
	var g sync.WaitGroup
	for i, dir := range []string{a, b} {
		g.Go(func() {
			step := func(err error, start time.Time) bool {
				slowest[i] = max(slowest[i], time.Since(start))
				if err != nil {
					t.Error(err)
				}
				return err == nil
			}
			for n := range rounds {
				name := fmt.Sprintf("%s/%d-%d", dir, i, n)
				start := time.Now()
				if !step(os.WriteFile(name, []byte("x"), 0o644), start) {
					return
				}
				start = time.Now()
				if !step(os.Rename(name, name+"-moved"), start) {
					return
				}
				start = time.Now()
				if _, err := os.Lstat(name + "-moved"); !step(err, start) {
					return
				}
				start = time.Now()
				if !step(os.Remove(name+"-moved"), start) {
					return
				}
			}
		})
	}
	g.Wait()
	t.Logf("the slowest operations took %v", slowest)
	const lease = 5 * time.Second // which every operation must stay clear of: then it did not wait for one to run out
	for i, d := range slowest {
		if d >= lease {
			t.Errorf("an operation of mount %d took %v", i, d)
		}
	}
	for _, dir := range []string{a, b} {
		if names, err := os.ReadDir(dir); len(names) != 0 || err != nil {
			t.Errorf("%d names left, %v", len(names), err)
		}
	}
}

// TestReplacedByOtherMount: a name that always exists is always found, though its file is another each time.
func TestReplacedByOtherMount(t *testing.T) {
	a, b := twoMounts(t)
	write(t, a+"/f", "0")
	stop := make(chan struct{})
	var g sync.WaitGroup
	g.Go(func() {
		defer close(stop)
		for n := range 100 {
			if err := errors.Join(os.WriteFile(a+"/tmp", fmt.Append(nil, n), 0o644), os.Rename(a+"/tmp", a+"/f")); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for {
		if data, err := os.ReadFile(b + "/f"); err != nil || len(data) == 0 {
			t.Errorf("got %q, %v", data, err)
			break
		}
		select {
		case <-stop:
			g.Wait()
			return
		default:
		}
	}
	g.Wait()
}

// TestUnlinkedByOtherMount: who has a file open keeps it.
func TestUnlinkedByOtherMount(t *testing.T) {
	a, b := twoMounts(t)
	write(t, a+"/f", "still here")
	f, err := os.OpenFile(b+"/f", os.O_RDWR, 0)
	must(t, err)
	must(t, os.Remove(a+"/f"))
	if _, err := os.Lstat(b + "/f"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("by name: %v", err)
	}
	got, err := io.ReadAll(f)
	if string(got) != "still here" || err != nil {
		t.Errorf("by handle: %q, %v", got, err)
	}
	_, err = f.WriteAt([]byte("STILL"), 0)
	must(t, err)
	must(t, f.Sync())
	st, err := f.Stat()
	must(t, err)
	if n := st.Sys().(*syscall.Stat_t).Nlink; n != 0 {
		t.Errorf("%d links", n)
	}
	must(t, f.Close())
}

// TestPagesAreKept: opening an unchanged file again does not read it again, and one that was changed is.
func TestPagesAreKept(t *testing.T) {
	a, b := twoMounts(t)
	path := filepath.Join(a, "f")
	data := bytes.Repeat([]byte("page"), 64<<10)
	must(t, os.WriteFile(path, data, 0o644))
	read(t, path)
	if got := cachedPages(t, path); got == 0 {
		t.Error("no page of a file read before is kept by the next open")
	}
	data[len(data)-1] = 'X'
	must(t, os.WriteFile(b+"/f", data, 0o644))
	if got := cachedPages(t, path); got != 0 {
		t.Errorf("%d pages of a file that was changed are kept by the next open", got)
	}
	if got := read(t, path); !bytes.Equal(got, data) {
		t.Error("the file is not what the other mount wrote")
	}
}

// cachedPages opens a file and counts its pages that are in memory before any is read.
func cachedPages(t *testing.T, path string) int {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	st, err := f.Stat()
	must(t, err)
	mem, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	defer func() { must(t, unix.Munmap(mem)) }()
	vec := make([]byte, (len(mem)+os.Getpagesize()-1)/os.Getpagesize())
	must(t, mincore(mem, vec))
	n := 0
	for _, v := range vec {
		n += int(v & 1)
	}
	return n
}
