package consensus

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shoalfs/shoalfs/internal/testenv"
)

// testDisk is an ext4 in a file, mounted.
type testDisk struct{ image, dir string }

func newTestDisk(t *testing.T) *testDisk {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedPrograms(t, "mkfs.ext4", "mount", "umount")
	base := t.TempDir()
	d := &testDisk{image: filepath.Join(base, "image"), dir: filepath.Join(base, "mnt")}
	must(t, os.Mkdir(d.dir, 0o755))
	must(t, os.WriteFile(d.image, nil, 0o600))
	must(t, os.Truncate(d.image, 32<<20))
	d.command(t, "mkfs.ext4", "-q", "-F", d.image)
	d.mount(t)
	t.Cleanup(func() { _ = testenv.Detach(d.dir) }) // after a failure
	return d
}

func (d *testDisk) command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// mount has the file system commit by itself only what nobody can wait for in a test.
func (d *testDisk) mount(t *testing.T) {
	t.Helper()
	d.command(t, "mount", "-o", "loop,commit=300", d.image, d.dir)
}

// cutPower leaves of the file system what its disk holds now.
func (d *testDisk) cutPower(t *testing.T) {
	t.Helper()
	held, err := os.ReadFile(d.image)
	must(t, err)
	d.command(t, "umount", d.dir)
	must(t, os.WriteFile(d.image, held, 0o600))
	d.mount(t)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestSegmentOfAKilledProcessOutlivesPowerLoss has a process killed when a segment just got its name, or was written and not
// synced; the next one opens it, and then power fails.
func TestSegmentOfAKilledProcessOutlivesPowerLoss(t *testing.T) {
	for _, buffered := range []bool{false, true} {
		for _, written := range []bool{false, true} {
			d := newTestDisk(t)
			const size = 64 << 10
			z, err := newZeroedFS(d.dir)
			must(t, err)
			z.prepare(size)
			z.work.Wait()
			must(t, syncDir(d.dir))
			z.close() // no further spare, whose sync would make the name durable too

			write := func(w io.WriterAt) {
				t.Helper()
				if s := w.(*segmentFile); buffered && s.direct != nil {
					must(t, s.direct.file.Close())
					s.direct = nil
				}
				_, err := w.WriteAt([]byte("entry"), 0)
				must(t, err)
			}
			w, err := z.Create(d.dir, "1.wal", size)
			must(t, err)
			if written {
				write(w)
			}
			must(t, w.Close())

			z, err = newZeroedFS(d.dir)
			must(t, err)
			w, err = z.OpenWriter(d.dir, "1.wal")
			must(t, err)
			if !written { // else it is found, as good as acknowledged
				write(w)
				must(t, w.Sync())
			}
			must(t, w.Close())
			z.close()
			d.cutPower(t)

			z, err = newZeroedFS(d.dir)
			must(t, err)
			got, err := os.ReadFile(filepath.Join(d.dir, "1.wal"))
			if err != nil || !bytes.HasPrefix(got, []byte("entry")) {
				t.Errorf("buffered %v, written before the kill %v: an entry was lost with its segment: %q, %v", buffered, written, got[:min(len(got), 5)], err)
			}
			z.close()
			must(t, testenv.Detach(d.dir))
		}
	}
}
