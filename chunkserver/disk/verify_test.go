package disk

import (
	"bytes"
	"context"
	"errors"
	"os"
	"syscall"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// sealedChunk writes chunk 1 with frames of these sizes.
func sealedChunk(t *testing.T, d *Disk, sizes ...int) {
	t.Helper()
	w := create(t, d, 1)
	for _, n := range sizes {
		appendTo(t, w, random(n))
	}
	finish(t, w)
}

// exchange changes the file of chunk 1 behind the disk's back, which knows nothing bad of it.
func exchange(t *testing.T, d *Disk, file []byte) {
	t.Helper()
	if err := os.WriteFile(d.pathOf(1), file, 0o600); err != nil { // in place, as a disk does it
		t.Fatal(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.chunks[1]
	s.bad, d.bad = false, 0
	d.chunks[1] = s
}

// TestVerifyEveryByte flips every byte of a sealed chunk's file, and cuts it at every length: all of that is found.
func TestVerifyEveryByte(t *testing.T) {
	d, _, bad := faultyDisk(t, Options{})
	sealedChunk(t, d, 60, 1, 90)
	file := contents(t, d.pathOf(1))
	if err := d.Verify(t.Context(), 1, nil); err != nil {
		t.Fatal(err)
	}
	found := int64(0)
	check := func(what string, at int) {
		t.Helper()
		found++
		if err := d.Verify(t.Context(), 1, nil); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s at %d of %d: %v", what, at, len(file), err)
		}
		if bad.Load() != found || !report(t, d, 1).Bad {
			t.Fatalf("%s at %d: reported %d of %d times", what, at, bad.Load(), found)
		}
	}
	for i := range file {
		b := bytes.Clone(file)
		b[i] ^= byte(1 << (i % 8))
		exchange(t, d, b)
		check("a flipped bit", i)
	}
	for i := range file {
		exchange(t, d, file[:i])
		check("a cut", i)
	}
	exchange(t, d, append(bytes.Clone(file), 0))
	check("a byte too many", len(file))
	exchange(t, d, file)
	if err := os.Remove(d.pathOf(1)); err != nil {
		t.Fatal(err)
	}
	check("no file", 0)
	if d.Err() != nil {
		t.Errorf("the disk: %v", d.Err())
	}
}

// TestVerifyLarge reads frames of all sizes in steps, and hardly more than there is.
func TestVerifyLarge(t *testing.T) {
	d, fs, _ := faultyDisk(t, Options{})
	var sizes []int
	for n := 1; n <= chunk.MaxFrame; n = n*3/2 + 1 {
		sizes = append(sizes, n, n)
	}
	sealedChunk(t, d, append(sizes, chunk.MaxFrame, chunk.MaxFrame)...)
	file := contents(t, d.pathOf(1))
	paced := 0
	pace := func(_ context.Context, n int) error {
		paced += n
		return nil
	}
	if err := d.Verify(t.Context(), 1, pace); err != nil {
		t.Fatal(err)
	}
	if paced < len(file) || paced > len(file)+tailRead {
		t.Errorf("%d bytes were announced, the file has %d", paced, len(file))
	}
	for at := 777; at < len(file); at += 200_001 {
		b := bytes.Clone(file)
		b[at] ^= 1
		exchange(t, d, b)
		if err := d.Verify(t.Context(), 1, nil); !errors.Is(err, ErrCorrupt) {
			t.Errorf("a flipped bit at %d: %v", at, err)
		}
	}
	exchange(t, d, file)

	// What the kernel remembers is dropped before anything is read, and again afterwards.
	var ops []string
	fs.set(func(op, _ string) error {
		if op == "read" || op == "drop" {
			ops = append(ops, op)
		}
		return nil
	})
	if err := d.Verify(t.Context(), 1, nil); err != nil {
		t.Fatal(err)
	}
	if len(ops) < 3 || ops[0] != "drop" || ops[len(ops)-1] != "drop" {
		t.Errorf("%v", ops)
	}
}

func TestVerifyOthers(t *testing.T) {
	d, fs, bad := faultyDisk(t, Options{})
	if err := d.Verify(t.Context(), 1, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("no chunk: %v", err)
	}
	w := create(t, d, 1)
	appendTo(t, w, random(1000))
	if err := d.Verify(t.Context(), 1, nil); err != nil {
		t.Errorf("a chunk that is written: %v", err)
	}
	fs.torn = 20
	fs.set(failing("write", syscall.ENOSPC))
	if err := w.Finish(); err == nil {
		t.Fatal("it was sealed")
	}
	fs.set(nil)
	if err := d.Verify(t.Context(), 1, nil); err != nil {
		t.Errorf("a chunk that could not be sealed: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Verify(ctx, 1, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	stop := errors.New("stop")
	if err := d.Verify(t.Context(), 1, func(context.Context, int) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
	for _, op := range []string{"open", "read"} {
		fs.set(failing(op, syscall.EMFILE))
		if err := d.Verify(t.Context(), 1, nil); !errors.Is(err, syscall.EMFILE) {
			t.Errorf("%v", err)
		}
	}
	if bad.Load() > 0 || d.Err() != nil {
		t.Fatal("a whole chunk is reported")
	}
	fs.set(failing("read", syscall.EIO))
	if err := d.Verify(t.Context(), 1, nil); !errors.Is(err, ErrCorrupt) || bad.Load() != 1 || d.Err() != nil {
		t.Errorf("%v, reported %d, the disk: %v", err, bad.Load(), d.Err())
	}
}

// TestVerifyRecovered: what a crash left between frames and index is no damage, nor is a file without chunk.
func TestVerifyRecovered(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		b := build(t, []int{60, 1, 90}, 1, sealed)
		s := newShelf(t, b.id)
		for cut := len(b.file); cut > 0; cut-- {
			d := s.with(t, b.file[:cut])
			if report(t, d, b.id).Bad {
				continue
			}
			if err := d.Verify(t.Context(), b.id, nil); err != nil {
				t.Fatalf("cut at %d of %d: %v", cut, len(b.file), err)
			}
		}
		if err := s.with(t, nil).Verify(t.Context(), b.id, nil); err != nil {
			t.Errorf("an empty file: %v", err)
		}
	}
}

// TestVerifyOpenEveryByte flips every byte of the file of a chunk that is being written, on disk or not, and cuts it at every
// length. Zeros that were written ahead do not matter.
func TestVerifyOpenEveryByte(t *testing.T) {
	d, _, bad := faultyDisk(t, Options{})
	w := create(t, d, 1)
	if err := d.Verify(t.Context(), 1, nil); err != nil {
		t.Fatalf("nothing was appended yet: %v", err)
	}
	for range smallSyncs + 1 {
		appendTo(t, w, random(30))
		syncNow(t, w)
	}
	appendTo(t, w, random(40))
	if w.zeroed <= w.pos {
		t.Fatal("no zeros were written ahead")
	}
	file := contents(t, d.pathOf(1))
	renew := func(b []byte) {
		t.Helper()
		exchange(t, d, b)
		w.mu.Lock()
		w.err, w.stopped = nil, make(chan struct{})
		w.mu.Unlock()
	}
	found := int64(0)
	check := func(what string, at int) {
		t.Helper()
		found++
		if err := d.Verify(t.Context(), 1, nil); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s at %d of %d: %v", what, at, w.pos, err)
		}
		if bad.Load() != found || !report(t, d, 1).Bad {
			t.Fatalf("%s at %d: reported %d of %d times", what, at, bad.Load(), found)
		}
		if err := tryAppend(w, []byte("abc")); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%s at %d: an append: %v", what, at, err)
		}
	}
	flipped := func(at int64) {
		t.Helper()
		b := bytes.Clone(file)
		b[at] ^= byte(1 << (at % 8))
		renew(b)
	}
	for i := range w.pos {
		flipped(i)
		check("a flipped bit", int(i))
	}
	for i := w.pos; i < int64(len(file)); i += 50_000 {
		flipped(i)
		if err := d.Verify(t.Context(), 1, nil); err != nil {
			t.Errorf("a flipped bit at %d, beyond %d: %v", i, w.pos, err)
		}
	}
	for i := range w.pos {
		renew(file[:i])
		check("a cut", int(i))
	}
	renew(file)
	if err := os.Remove(d.pathOf(1)); err != nil {
		t.Fatal(err)
	}
	check("no file", 0)
	if err := w.Finish(); !errors.Is(err, ErrCorrupt) || d.Err() != nil {
		t.Errorf("finish: %v, the disk: %v", err, d.Err())
	}
}

// TestVerifyBesideWriter verifies a chunk again and again while it is written, sealed and deleted.
func TestVerifyBesideWriter(t *testing.T) {
	d, fs, bad := faultyDisk(t, Options{})
	fs.lazy = true
	w := create(t, d, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			err := d.Verify(context.Background(), 1, nil)
			if errors.Is(err, ErrNotFound) {
				return
			}
			if err != nil {
				t.Errorf("%v", err)
				return
			}
		}
	}()
	want := []byte{}
	for i := range 300 {
		b := random(1 + i*i%5000)
		want = append(want, b...)
		appendTo(t, w, b)
		if i%3 == 0 {
			syncNow(t, w)
		}
	}
	finish(t, w)
	mustRead(t, d, 1, 0, want)
	if err := d.Delete(1); err != nil {
		t.Fatal(err)
	}
	<-done
	if bad.Load() != 0 {
		t.Error("a whole chunk was reported")
	}
}
