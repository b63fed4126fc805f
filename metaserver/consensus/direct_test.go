package consensus

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoalfs/shoalfs/internal/testenv"
)

// TestSegmentFile appends, and sometimes goes back as the log does for what was not committed, and compares with memory.
func TestSegmentFile(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, size := range []int64{1 << 20, 1<<20 - 100} { // the last block of the second is none: it goes through the page cache
		z, err := newZeroedFS(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer z.close()
		name := "1.wal"
		w, err := z.Create(z.dir, name, uint64(size))
		if err != nil {
			t.Fatal(err)
		}
		direct := w.(*segmentFile).direct != nil
		want := make([]byte, size)
		for end := int64(0); end < size; {
			switch rng.IntN(20) {
			case 0: // as after a restart
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				if w, err = z.OpenWriter(z.dir, name); err != nil {
					t.Fatal(err)
				}
			case 1:
				end -= rng.Int64N(min(end, 10000) + 1)
			}
			b := make([]byte, min(size-end, 1+rng.Int64N(int64(1)<<rng.IntN(15))))
			for i := range b {
				b[i] = byte(1 + rng.IntN(255))
			}
			if n, err := w.WriteAt(b, end); n != len(b) || err != nil {
				t.Fatal(n, err)
			}
			end += int64(copy(want[end:], b))
			if err := w.Sync(); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, end)
			if _, err := w.ReadAt(got, 0); err != nil || !bytes.Equal(got, want[:end]) {
				t.Fatalf("the first %d bytes read back differ (direct writes: %v): %v", end, direct, err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(z.dir, name))
		if err != nil || info.Size() != size {
			t.Errorf("the segment has %d bytes, %d were asked for: %v", info.Size(), size, err)
		}
	}
}

// TestDirectWriteGivesUp: what cannot be written directly is written all the same, and what failed leaves nothing for the
// next write to build on.
func TestDirectWriteGivesUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "segment")
	must(t, os.WriteFile(path, bytes.Repeat([]byte{7}, 4*directBlock), 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	s := newSegmentFile(f, filepath.Dir(path))
	if s.direct == nil {
		testenv.Unavailable(t, "the file system of the temporary directory has no direct writes")
	}
	write := func(b string, off int64) {
		t.Helper()
		_, err := s.WriteAt([]byte(b), off)
		must(t, err)
	}
	write("first", 100)
	if s.direct.write(make([]byte, 5*directBlock), 105, s.File) {
		t.Fatal("the segment was made longer")
	}
	broken, err := os.Open(path) // not for writing
	must(t, err)
	works := s.direct.file
	s.direct.file = broken
	write("second", 105)
	must(t, broken.Close())
	s.direct.file = works
	write("third", 111)
	write("fourth", 116)
	must(t, s.Sync())
	got := make([]byte, 122)
	_, err = s.ReadAt(got, 0)
	must(t, err)
	if want := append(bytes.Repeat([]byte{7}, 100), "firstsecondthirdfourth"...); !bytes.Equal(got, want) {
		t.Errorf("read back %q", got[100:])
	}
	must(t, s.Close())
	if _, err := s.WriteAt([]byte("lost"), 122); err == nil {
		t.Error("a write to a closed segment was reported as done")
	}
}
