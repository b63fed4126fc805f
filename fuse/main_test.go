package fuse_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(mapAndLeave); path != "" {
		writeMapped(path)
		return
	}
	unix.Umask(0o022) // go-fuse's suite expects it
	code := m.Run()
	if err := stopCluster(); err != nil {
		fmt.Fprintln(os.Stderr, "stop the cluster:", err)
		code = max(code, 1)
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// mapAndLeave names a file that a process of its own changes through a mapping and leaves so: no close follows that would commit it.
const mapAndLeave = "SHOAL_TEST_MAP"

func writeMapped(path string) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		var mem []byte
		mem, err = unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		_ = f.Close() // nothing was written yet
		copy(mem, "changed")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
