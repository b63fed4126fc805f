package faultfs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/internal/testenv"
)

const helperEnv = "FAULTFS_HELPER"

// helpers are what a process of its own does in a directory. It prints what the test is to know.
var helpers = map[string]func(dir string) error{
	"write":  helpWrite,
	"direct": helpDirect,
	"mmap":   helpMmap,
	"bolt":   helpBolt,
	"count":  helpCount,
	"fill":   helpFill,
	"sync":   helpSync,
	"space":  helpSpace,
	"list":   helpList,
}

func help(name string) {
	what, dir, _ := strings.Cut(name, " ")
	if err := helpers[what](dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// testDisk is a disk that is there as long as the test.
type testDisk struct {
	*Disk
	t   *testing.T
	dir string
}

func newDisk(t *testing.T) *testDisk {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.NeedFUSE(t)
	base := t.TempDir()
	dir, backing := filepath.Join(base, "disk"), filepath.Join(base, "backing")
	for _, d := range []string{dir, backing} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d, err := Mount(dir, backing)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return &testDisk{d, t, dir}
}

func (d *testDisk) command(name string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+name+" "+d.dir)
	return cmd
}

// help has a helper work on the disk, and returns what it printed.
func (d *testDisk) help(name string) (string, error) {
	out, err := d.command(name).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return strings.TrimSpace(string(out)), err
}

func (d *testDisk) must(name string) string {
	d.t.Helper()
	out, err := d.help(name)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

func (d *testDisk) losePower(rng *rand.Rand) {
	d.t.Helper()
	if err := d.LosePower(rng); err != nil {
		d.t.Fatal(err)
	}
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// helpWrite makes files that are durable in all combinations, as their names say.
func helpWrite(dir string) error {
	for _, name := range []string{"d/synced", "d/written", "e/synced"} {
		if err := os.Mkdir(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil && !os.IsExist(err) {
			return err
		}
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if _, err := f.WriteString("hello"); err != nil {
			return err
		}
		if filepath.Base(name) == "synced" {
			if err := f.Sync(); err != nil {
				return err
			}
			if _, err := f.WriteString(", world"); err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	if err := errors.Join(syncDir(filepath.Join(dir, "d")), syncDir(dir)); err != nil {
		return err
	}
	return os.Rename(filepath.Join(dir, "d/synced"), filepath.Join(dir, "d/renamed"))
}

func helpList(dir string) error {
	return filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		fmt.Printf("%s=%s ", path[len(dir)+1:], b)
		return err
	})
}

func TestPowerLossThroughTheKernel(t *testing.T) {
	d := newDisk(t)
	d.must("write")
	if got, want := d.must("list"), "d/renamed=hello, world d/written=hello e/synced=hello, world"; got != want {
		t.Errorf("before the loss %q, want %q", got, want)
	}
	d.losePower(nil)
	if got, want := d.must("list"), "d/synced=hello d/written="; got != want {
		t.Errorf("after the loss %q, want %q", got, want)
	}
}

// aligned is memory for direct writes.
func aligned(n int) []byte {
	b := make([]byte, n+blockSize)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (blockSize - 1)
	return b[skip : skip+n]
}

// helpDirect writes past the page cache what a mapping and a read through it must see.
func helpDirect(dir string) error {
	name := filepath.Join(dir, "direct")
	if err := os.WriteFile(name, make([]byte, 4*blockSize), 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 4*blockSize, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	_ = m[blockSize] // in the page cache
	direct, err := os.OpenFile(name, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	p := aligned(blockSize)
	copy(p, "past the cache")
	if _, err := direct.WriteAt(p, blockSize); err != nil {
		return err
	}
	got := make([]byte, blockSize)
	if _, err := f.ReadAt(got, blockSize); err != nil {
		return err
	}
	if !bytes.Equal(got, p) || !bytes.Equal(m[blockSize:2*blockSize], p) {
		return errors.New("what was written directly is not seen")
	}
	return errors.Join(direct.Sync(), unix.Munmap(m), f.Close(), direct.Close(), syncDir(dir))
}

// helpMmap writes through the page cache what a mapping must see.
func helpMmap(dir string) error {
	f, err := os.Create(filepath.Join(dir, "mapped"))
	if err != nil {
		return err
	}
	if err := f.Truncate(1 << 20); err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	for i := range 256 {
		p := []byte(fmt.Sprintf("block %d", i))
		if _, err := f.WriteAt(p, int64(i)*blockSize); err != nil {
			return err
		}
		if !bytes.HasPrefix(m[i*blockSize:], p) {
			return fmt.Errorf("block %d is not seen in the mapping", i)
		}
	}
	return errors.Join(unix.Munmap(m), f.Close())
}

func TestMappingsAndDirectWrites(t *testing.T) {
	d := newDisk(t)
	d.must("mmap")
	d.must("direct")
	d.losePower(nil)
	if got := d.must("list"); !strings.Contains(got, "past the cache") {
		t.Errorf("what was written directly and synced is lost: %q", got)
	}
}

var bucket = []byte("numbers")

// helpBolt commits numbers to a database, and prints each that is durable, until it is killed.
func helpBolt(dir string) error {
	db, err := bolt.Open(filepath.Join(dir, "db"), 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	for {
		if err := db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(bucket)
			if err != nil {
				return err
			}
			n, err := b.NextSequence()
			if err != nil {
				return err
			}
			if n%10 == 0 {
				fmt.Println(n - 1) // all before this one are durable
			}
			return b.Put([]byte(fmt.Sprintf("%08d", n)), bytes.Repeat([]byte{byte(n)}, 3000))
		}); err != nil {
			return err
		}
	}
}

// helpCount checks the database and prints its last number.
func helpCount(dir string) error {
	db, err := bolt.Open(filepath.Join(dir, "db"), 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	return errors.Join(db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			return err
		}
		n := uint64(0)
		if b := tx.Bucket(bucket); b != nil {
			n = b.Sequence()
			for i := uint64(1); i <= n; i++ {
				if v := b.Get([]byte(fmt.Sprintf("%08d", i))); !bytes.Equal(v, bytes.Repeat([]byte{byte(i)}, 3000)) {
					return fmt.Errorf("number %d is wrong", i)
				}
			}
		}
		fmt.Println(n)
		return nil
	}), db.Close())
}

// TestDatabaseSurvivesPowerLoss cuts power under a database that is known to survive it, again and again, and finds that it does
// not on a disk that only says that it syncs.
func TestDatabaseSurvivesPowerLoss(t *testing.T) {
	d := newDisk(t)
	for round := range 10 {
		printed := d.bolt(200)
		var rng *rand.Rand
		if round%2 == 1 {
			rng = rand.New(rand.NewPCG(uint64(round), 1))
		}
		d.losePower(rng)
		var n uint64
		if _, err := fmt.Sscan(d.must("count"), &n); err != nil || n < printed {
			t.Fatalf("round %d: %d numbers were durable, of which %d are there: %v", round, printed, n, err)
		}
	}
	d.SetFaults(Faults{IgnoreSync: true})
	printed := d.bolt(200)
	d.losePower(nil)
	var n uint64
	if out, err := d.help("count"); err == nil {
		if _, err := fmt.Sscan(out, &n); err != nil || n >= printed {
			t.Errorf("%d numbers were written without any sync, and %d survived: %v", printed, n, err)
		}
	}
}

// bolt runs a database until it printed so many numbers more, freezes the disk and kills it. It returns the last one.
func (d *testDisk) bolt(more uint64) (last uint64) {
	d.t.Helper()
	cmd := d.command("bolt")
	out, err := cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	for first := uint64(0); last == 0 || last < first+more; {
		if _, err := fmt.Fscan(out, &last); err != nil {
			d.t.Error(err)
			break
		}
		if first == 0 {
			first = last
		}
	}
	d.Freeze()
	_ = cmd.Process.Kill() // gone already, at worst
	d.Fail()
	_ = cmd.Wait() // it was killed
	return last
}

// helpFill writes until the disk is full, and prints how much fitted.
func helpFill(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, "fill"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	n := 0
	for ; ; n++ {
		if _, err = f.Write(make([]byte, 64<<10)); err != nil {
			break
		}
	}
	fmt.Println(n*64, errors.Is(err, unix.ENOSPC))
	return f.Close()
}

func helpSpace(dir string) error {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	fmt.Println(int64(st.Blocks)*st.Bsize>>10, int64(st.Bavail)*st.Bsize>>10)
	return err
}

func TestFullDisk(t *testing.T) {
	d := newDisk(t)
	d.SetCapacity(1 << 20)
	for _, step := range []struct{ command, want string }{{"space", "1024 1024"}, {"fill", "1024 true"}, {"space", "1024 0"}} {
		if got := d.must(step.command); got != step.want {
			t.Errorf("%s: %s, want %s", step.command, got, step.want)
		}
	}
	d.SetCapacity(2 << 20)
	if got := d.must("fill"); got != "1024 true" {
		t.Errorf("with room again: %s", got)
	}
	d.losePower(nil)
	if got := d.must("space"); got != "2048 2048" || d.Used() != 0 {
		t.Errorf("after all was lost: %s", got)
	}
}

// helpSync writes a file and prints what a sync of it says, and another.
func helpSync(dir string) error {
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		return err
	}
	if _, err := f.WriteString("hello"); err != nil {
		return err
	}
	for range 2 {
		if _, err := f.Seek(0, 0); err != nil {
			return err
		}
		fmt.Print(errors.Is(f.Sync(), unix.EIO), " ")
	}
	return errors.Join(syncDir(dir), f.Close())
}

func TestErrorsOfADisk(t *testing.T) {
	d := newDisk(t)
	var f Faults
	f.Errno[Write] = syscall.EIO
	d.SetFaults(f)
	if out, err := d.help("sync"); err == nil || !strings.Contains(out, "input/output error") {
		t.Errorf("a write on a disk that cannot write: %q, %v", out, err)
	}
	f.Errno[Write], f.Errno[Sync] = 0, syscall.EIO
	d.SetFaults(f)
	if out, err := d.help("sync"); err == nil || !strings.HasPrefix(out, "true true") {
		t.Errorf("syncs of a disk that cannot sync: %q, %v", out, err)
	}
	d.SetFaults(Faults{})
	if out := d.must("sync"); out != "false false" {
		t.Errorf("syncs of a disk that recovered: %q", out)
	}
	d.losePower(nil)
	if out := d.must("list"); out != "f=hello" {
		t.Errorf("a file that was written again and synced holds %q", out)
	}
	if err := d.Flip("f", 1); err != nil {
		t.Fatal(err)
	}
	if out := d.must("list"); out != "f=hdllo" {
		t.Errorf("a file with a bit flipped holds %q", out)
	}
	d.losePower(nil)
	if out := d.must("list"); out != "f=hdllo" {
		t.Errorf("after a loss of power the file holds %q", out)
	}
}
