package fuse

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseMount(t *testing.T) {
	m := parseMount(`36 35 98:57 / /mnt\0402\134x rw,noatime shared:1 master:2 - fuse.shoal 127.0.0.1:7400,b\040c rw,errors=continue` + "\n")
	if m == nil || *m != (mountEntry{minor: "57", device: "98:57", dir: `/mnt 2\x`, fsType: "fuse.shoal", source: "127.0.0.1:7400,b c"}) {
		t.Errorf("got %+v", m)
	}
	for _, line := range []string{"", "-", "1 2 3 4 5 6 -", "1 2 3 4 5 6 - a", "1 2 3 / /x rw - fuse.shoal s rw", "36 35 98:0 / /mnt rw fuse.shoal x rw"} {
		if m := parseMount(line); m != nil {
			t.Errorf("parseMount(%q) = %+v", line, m)
		}
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add(`36 35 98:0 / /mnt\0402\134x rw - fuse.shoal x\ rw`)
	f.Add(`36 35 98:0 / \ rw - \1 \999 rw`)
	f.Fuzz(func(t *testing.T, line string) { parseMount(line) })
}

func TestMountPointErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "missing"): "no such directory",
		file:                          "not a directory",
		filepath.Join(file, "below"):  "not a directory",
	} {
		_, err := checkMountPoint(path)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("mount point %s: %v, want %q", path, err, want)
		}
	}
	if err := os.Symlink(dir, dir+"/link"); err != nil {
		t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := checkMountPoint(dir + "/link"); err != nil || got != real {
		t.Errorf("a symlink to a directory: %q, %v, want %q", got, err, real)
	}
}

func TestUnmountErrors(t *testing.T) {
	if err := Unmount(t.TempDir()); err == nil || !strings.Contains(err.Error(), "nothing is mounted") {
		t.Errorf("an ordinary directory: %v", err)
	}
	if findMount("/proc") != nil {
		if err := Unmount("/proc"); err == nil || !strings.Contains(err.Error(), "not of shoalfs") {
			t.Errorf("/proc: %v", err)
		}
	}
}
