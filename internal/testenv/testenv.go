// Package testenv tells tests whether the machine has what they need, and is used by nothing else.
package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Unavailable skips a test for what the machine lacks; in CI, which has to have everything, it fails.
func Unavailable(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// NeedFUSE is for tests that mount.
func NeedFUSE(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		Unavailable(t, "no FUSE here: %v", err)
		return
	}
	_ = f.Close() // opened only to see whether it can be
	if _, err := exec.LookPath("fusermount3"); err != nil && !IsRoot() {
		Unavailable(t, "mounting as an ordinary user needs fusermount3 (package fuse3)")
	}
}

// NeedRoot is for tests that become other users or change owners.
func NeedRoot(t testing.TB) {
	t.Helper()
	if !IsRoot() {
		Unavailable(t, "needs root")
	}
}

// NeedPrograms is for tests that call programs.
func NeedPrograms(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			Unavailable(t, "%s is not installed", name)
		}
	}
}

// IsRoot tells whether permissions keep the test from nothing.
func IsRoot() bool { return os.Geteuid() == 0 }

// Detach takes a mount out of the directory tree whoever uses it, and asks nothing of its server, which may hang. To take one
// away in good order is what fuse.Unmount is for.
func Detach(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	if out, err := exec.Command("fusermount3", "-u", "-z", "--", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("fusermount3 -u -z %s: %w: %s", dir, err, out)
	}
	return nil
}
