package fault

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

var built struct {
	sync.Once
	path, dir string
	err       error
}

// Binary builds shoal once and returns its path. SHOAL_BINARY is the absolute path of one that is built already.
func Binary(t testing.TB) string {
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

// RemoveBinary removes what Binary built; for the end of a test program.
func RemoveBinary() {
	if built.dir != "" {
		_ = os.RemoveAll(built.dir) // a temporary directory; nothing depends on it
	}
}
