package faultfs

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/shoalfs/shoalfs/test/fault/private"
)

func mkTemp() (string, error) { return os.MkdirTemp("", "faultfs-") }

func removeAll(dir string) { _ = os.RemoveAll(dir) } // a temporary directory

// TestMain makes this program a helper where it is told to be: what works on a disk must not be what serves it.
func TestMain(m *testing.M) {
	if name := os.Getenv(helperEnv); name != "" {
		help(name)
	}
	private.Mounts()
	goleak.VerifyTestMain(m)
}
