package fuse_test

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/shoalfs/shoalfs/fuse"
	"github.com/shoalfs/shoalfs/internal/testenv"
)

// TestPosix runs go-fuse's own suite.
func TestPosix(t *testing.T) {
	testenv.NeedFUSE(t)
	for name, test := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			if name == "FcntlFlockLocksFile" {
				t.Skip("expects a process to conflict with its own POSIX locks; go-fuse skips it too")
			}
			test(t, mount(t))
		})
	}
}

// TestPosixRoot runs a few of them on a mount of the cluster's root, whose node and inode numbers are the same.
func TestPosixRoot(t *testing.T) {
	dir, _ := mountAt(t, fuse.Options{})
	for _, name := range []string{"MkdirRmdir", "SymlinkReadlink"} {
		t.Run(name, func(t *testing.T) { posixtest.All[name](t, dir) })
	}
}
