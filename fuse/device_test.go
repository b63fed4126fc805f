package fuse

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestCheckDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fuse")
	if err := checkDevice(path); err == nil || !strings.Contains(err.Error(), "modprobe") {
		t.Errorf("no device: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := checkDevice(path); err != nil {
		t.Error(err)
	}
	err := denied(path, 0o040, syscall.EACCES)
	if os.Geteuid() != 0 { // root is denied no device
		if err := os.Chmod(path, 0o040); err != nil {
			t.Fatal(err)
		}
		if err = checkDevice(path); err == nil {
			t.Fatal("a device that may not be used is taken for one that may")
		}
	}
	for _, want := range []string{"permission denied", "040", "chmod 666 " + path} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %q", want, err)
		}
	}
}

// What can be known before is said before.
func TestCheck(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Check(file); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("%v", err)
	}
	if err := usable(filepath.Join(t.TempDir(), "fuse")); err == nil || !strings.Contains(err.Error(), "modprobe") {
		t.Errorf("%v", err)
	}
	err := Check(t.TempDir())
	if device := usable("/dev/fuse"); (err == nil) != (device == nil) {
		t.Errorf("%v, %v", err, device)
	}
	if os.Geteuid() != 0 { // root needs no helper
		t.Setenv("PATH", "")
		if err := usable(file); err == nil || !strings.Contains(err.Error(), "fusermount3") {
			t.Errorf("%v", err)
		}
	}
}

// One line, without numbers that mean nothing to anybody.
func TestHelperError(t *testing.T) {
	for msg, want := range map[string]string{
		"fusermount exited with code 256\n": "it failed, and says above why",
		"no such thing\n":                   "no such thing",
		"no such thing":                     "no such thing",
	} {
		if got := helperError(errors.New(msg)).Error(); got != want {
			t.Errorf("%q: %q", msg, got)
		}
	}
}
