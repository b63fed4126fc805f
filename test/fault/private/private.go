// Package private gives test programs mounts that nobody else sees.
package private

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/internal/testenv"
)

// Env is set in a program that has mounts of its own, and so in those that it starts.
const Env = "SHOAL_PRIVATE_MOUNTS"

// Mounts starts the program anew in a mount namespace of its own, unless it is in one already. It is to be called before
// anything else is done. What is mounted from then on is gone when the program and all processes that it started are, however they
// end: a test that is killed leaves no dead mounts behind. It needs root, and does nothing without.
func Mounts() {
	if !testenv.IsRoot() || os.Getenv(Env) != "" {
		return
	}
	if err := mounts(); err != nil {
		fmt.Fprintf(os.Stderr, "mounts are not private: %v\n", err) // and the tests do without
	}
}

func mounts() error {
	runtime.LockOSThread() // which alone is moved, and becomes the whole program
	defer runtime.UnlockOSThread()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := os.Setenv(Env, "1"); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", os.Args, os.Environ())
}
