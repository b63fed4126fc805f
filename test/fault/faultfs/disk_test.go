package faultfs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shoalfs/shoalfs/internal/testenv"
)

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

func TestMappingsAndDirectWrites(t *testing.T) {
	d := newDisk(t)
	d.must("mmap")
	d.must("direct")
	d.losePower(nil)
	if got := d.must("list"); !strings.Contains(got, "past the cache") {
		t.Errorf("what was written directly and synced is lost: %q", got)
	}
}

// TestDatabaseSurvivesPowerLoss cuts power under a database that is known to survive it, again and again, and finds that it does
// not on a disk that only says that it syncs.
func TestDatabaseSurvivesPowerLoss(t *testing.T) {
	d := newDisk(t)
	for round := range 6 {
		printed := d.bolt(100)
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
	printed := d.bolt(100)
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
