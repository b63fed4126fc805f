package test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/shoalfs/shoalfs/internal/testenv"
)

// envInt reads a number from the environment.
func envInt(t testing.TB, name string, standard int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return standard
	}
	v, err := strconv.Atoi(s)
	if err != nil || v <= 0 {
		t.Fatalf("%s=%q: want a positive number", name, s)
	}
	return v
}

// TestKillNine is the promise of the file system in one test: while a big file is written and a tree is copied, a chunk
// server and then the leading metaserver are killed and started again, and no program sees an error; then everything is
// killed at once, and all that was fsynced or closed is still there.
//
// SHOAL_BIG_MIB is the size of the big file, SHOAL_TREE the tree.
func TestKillNine(t *testing.T) {
	testenv.NeedPrograms(t, "bash", "diff")
	c := startProcesses(t, 3, 3)
	mib := envInt(t, "SHOAL_BIG_MIB", 192)
	tree := os.Getenv("SHOAL_TREE")
	if tree == "" {
		tree = filepath.Join(strings.TrimSpace(sh(t, ".", "go env GOROOT")), "src", "net")
	}
	big := filepath.Join(c.mountDir, "big")
	halfway, written := make(chan struct{}), make(chan error, 1)
	var sum [sha256.Size]byte
	go func() {
		var err error
		sum, err = writeRandom(big, mib, mib/4, halfway)
		written <- err
	}()
	copied := make(chan error, 1)
	go func() {
		out, err := exec.Command("cp", "-r", tree, filepath.Join(c.mountDir, "tree")).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("cp -r: %w: %s", err, out)
		}
		copied <- err
	}()
	select {
	case <-halfway:
	case err := <-written:
		t.Fatalf("writing %s ended early: %v", big, err)
	}
	c.chunks[0].end(syscall.SIGKILL)
	leader := c.leader()
	leader.end(syscall.SIGKILL)
	c.leader() // another takes over
	leader.start()
	c.chunks[0].start()
	for what, done := range map[string]chan error{"the big file": written, "the tree": copied} {
		if err := <-done; err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	verify := func(when string) {
		t.Helper()
		if got, err := fileSum(big); err != nil || got != sum {
			t.Errorf("%s: the big file has the sum %x, %v; written was %x", when, got, err, sum)
		}
		if out, err := exec.Command("diff", "-r", tree, filepath.Join(c.mountDir, "tree")).CombinedOutput(); err != nil {
			t.Errorf("%s: diff -r: %v\n%.2000s", when, err, out)
		}
	}
	verify("after the kills")
	c.killAll()
	c.restartAll()
	verify("after everything was killed at once")
}

// writeRandom writes a file of so many MiB, fsyncs and closes it, and returns its SHA-256. It closes mark when so many
// MiB are written.
func writeRandom(path string, mib, markAt int, mark chan struct{}) (sum [sha256.Size]byte, err error) {
	f, err := os.Create(path)
	if err != nil {
		return sum, err
	}
	rnd, h := rand.NewChaCha8([32]byte{7}), sha256.New()
	block := make([]byte, 1<<20)
	for i := range mib {
		if i == markAt {
			close(mark)
		}
		_, _ = rnd.Read(block) // never fails
		_, _ = h.Write(block)  // never fails
		if _, err := f.Write(block); err != nil {
			_ = f.Close() // the write's error is the one to tell
			return sum, err
		}
	}
	if err := f.Sync(); err != nil {
		_ = f.Close() // likewise
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), f.Close()
}

func fileSum(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer func() { _ = f.Close() }() // only read
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, f, make([]byte, 1<<20)); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// TestBitRot flips a bit in chunk files: with some copies damaged every read is right and a scrub has them repaired, with all
// copies damaged a read fails with EIO, and wrong bytes are never returned.
func TestBitRot(t *testing.T) {
	c := startProcesses(t, 1, 3)
	data := make([]byte, 3<<20+12345)
	_, _ = rand.NewChaCha8([32]byte{9}).Read(data) // never fails
	file := filepath.Join(c.mountDir, "f")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	for damaged := 1; damaged <= 3; damaged++ {
		// Caches are not what is tested: everything starts anew.
		for _, p := range append([]*process{c.mount}, c.chunks...) {
			p.end(syscall.SIGTERM)
		}
		for server := 1; server <= damaged; server++ {
			if flipBits(t, filepath.Join(c.dir, fmt.Sprintf("chunk-%d", server), "chunks")) == 0 {
				t.Fatalf("chunk-%d holds no chunk to damage", server)
			}
		}
		c.all(c.chunks, (*process).start)
		c.mount.start()
		got, err := os.ReadFile(file)
		switch {
		case damaged < 3 && err != nil:
			t.Fatalf("with %d of 3 copies damaged: %v", damaged, err)
		case err == nil && !bytes.Equal(got, data):
			t.Fatalf("with %d of 3 copies damaged: wrong bytes", damaged)
		case damaged == 3 && err == nil:
			t.Fatal("with every copy damaged the read succeeded")
		case damaged == 3 && !isErrno(err, syscall.EIO):
			t.Fatalf("with every copy damaged: %v, want EIO", err)
		}
		if damaged == 3 {
			continue
		}
		if out, err := c.shoal("scrub"); err != nil {
			t.Fatalf("scrub: %v\n%s", err, out)
		}
		c.sound()
	}
}

// flipBits damages every chunk file below dir in the middle of its first frame's data and returns how many there are.
func flipBits(t *testing.T, dir string) int {
	t.Helper()
	n := 0
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || !info.Mode().IsRegular() || filepath.Ext(path) != ".chunk" {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		var b [1]byte
		at := min(info.Size()/2, 1<<19)
		if _, err := f.ReadAt(b[:], at); err != nil {
			return err
		}
		b[0] ^= 0x10
		if _, err := f.WriteAt(b[:], at); err != nil {
			return err
		}
		n++
		return f.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
