package fault

import (
	"fmt"
	"os"
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
	RemoveBinary()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
