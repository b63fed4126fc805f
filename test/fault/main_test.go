package fault

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/shoalfs/shoalfs/test/fault/private"
	"github.com/shoalfs/shoalfs/test/fault/workload"
)

// TestMain makes this program one of the clients where it is told to be.
func TestMain(m *testing.M) {
	workload.Main()
	private.Mounts()
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir) // a temporary directory; nothing depends on it
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

var built struct {
	sync.Once
	path, dir string
	err       error
}

// binary builds shoal once and returns its path. SHOAL_BINARY is the absolute path of one that is built already.
func binary(t testing.TB) string {
	t.Helper()
	built.Do(func() {
		if built.path = os.Getenv("SHOAL_BINARY"); built.path != "" {
			return
		}
		if built.dir, built.err = os.MkdirTemp("", "shoal-fault-bin-"); built.err != nil {
			return
		}
		built.path = filepath.Join(built.dir, "shoal")
		args := []string{"build", "-o", built.path}
		if raceEnabled {
			args = append(args, "-race")
		}
		if out, err := exec.Command("go", append(args, "github.com/shoalfs/shoalfs/cmd/shoal")...).CombinedOutput(); err != nil {
			built.err = errors.Join(err, errors.New(string(out)))
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}
