package fuse_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/client"
	"github.com/shoalfs/shoalfs/fuse"
	"github.com/shoalfs/shoalfs/internal/testenv"
)

func mincore(mem, vec []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(unsafe.Pointer(&vec[0])))
	if errno != 0 {
		return errno
	}
	return nil
}

// as runs a shell script as another user.
func as(t *testing.T, uid uint32, groups []uint32, script string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-ec", script)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: groups}}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

const nobody = 65534

// open lets every user through to a directory of the test's.
func open(t *testing.T, dir string) {
	t.Helper()
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
}

func TestPermissions(t *testing.T) {
	testenv.NeedRoot(t)
	dir, _ := mountAt(t, fuse.Options{Subdir: newSubdir(t), AllowOther: true})
	open(t, dir)
	must(t, os.Chmod(dir, 0o777))
	must(t, os.WriteFile(dir+"/secret", []byte("s"), 0o600))
	must(t, os.WriteFile(dir+"/shared", []byte("s"), 0o640))
	must(t, os.Chown(dir+"/shared", 0, 4242))
	must(t, os.Mkdir(dir+"/sticky", 0o777))
	must(t, os.Chmod(dir+"/sticky", 0o777|os.ModeSticky))
	must(t, os.WriteFile(dir+"/sticky/root", nil, 0o666))
	must(t, os.WriteFile(dir+"/suid", []byte("x"), 0o777))
	must(t, os.Chmod(dir+"/suid", 0o777|os.ModeSetuid|os.ModeSetgid))
	for _, c := range []struct {
		script string
		groups []uint32
		fails  bool
	}{
		{"cat secret", nil, true},
		{"echo x > secret", nil, true},
		{"chmod 644 secret", nil, true},
		{"chown 65534 secret", nil, true},
		{"cat shared", nil, true},
		{"cat shared", []uint32{4242}, false},
		{"echo x >> shared", []uint32{4242}, true},
		{"rm -f sticky/root", nil, true},
		{"mv sticky/root sticky/mine", nil, true},
		{"echo mine > mine; cat mine; chmod 600 mine; rm mine", nil, false},
		{"mkdir d; chmod 0 d; ls d", nil, true},
		{"chmod 700 d; touch d/f; rm -r d", nil, false},
		{"test -x suid && ! test -w secret && ! test -r secret", nil, false},
	} {
		out, err := as(t, nobody, c.groups, "cd "+dir+"; "+c.script)
		if (err != nil) != c.fails {
			t.Errorf("%q as nobody, groups %v: %v, %s", c.script, c.groups, err, out)
		}
	}
	if out, err := as(t, nobody, nil, "printf y >> "+dir+"/suid"); err != nil {
		t.Fatalf("write to suid: %v, %s", err, out)
	}
	if st := stat(t, dir+"/suid"); st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		t.Errorf("mode %o after an ordinary user wrote to it", st.Mode)
	}
	if out, err := as(t, nobody, nil, "echo x > "+dir+"/owned"); err != nil {
		t.Fatalf("create: %v, %s", err, out)
	}
	if st := stat(t, dir+"/owned"); st.Uid != nobody || st.Gid != nobody {
		t.Errorf("a file made by nobody belongs to %d:%d", st.Uid, st.Gid)
	}
}

// TestOthersAreKeptOut: without AllowOther only the mounting user gets in.
func TestOthersAreKeptOut(t *testing.T) {
	testenv.NeedRoot(t)
	dir, _ := mountAt(t, fuse.Options{Subdir: newSubdir(t)})
	open(t, dir)
	if out, err := as(t, nobody, nil, "ls "+dir); err == nil {
		t.Errorf("another user is let in: %s", out)
	}
}

func TestReadOnly(t *testing.T) {
	sub := newSubdir(t)
	rw, _ := mountAt(t, fuse.Options{Subdir: sub})
	ro, _ := mountAt(t, fuse.Options{Subdir: sub, ReadOnly: true})
	write(t, rw+"/f", "data")
	if got := string(read(t, ro+"/f")); got != "data" {
		t.Errorf("got %q", got)
	}
	for name, err := range map[string]error{
		"write": os.WriteFile(ro+"/f", nil, 0o644), "create": os.WriteFile(ro+"/g", nil, 0o644), "mkdir": os.Mkdir(ro+"/d", 0o755),
		"remove": os.Remove(ro + "/f"), "chmod": os.Chmod(ro+"/f", 0o600), "rename": os.Rename(ro+"/f", ro+"/g"),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSubdirShowsItsInodes(t *testing.T) {
	sub := newSubdir(t)
	whole, _ := mountAt(t, fuse.Options{})
	part, _ := mountAt(t, fuse.Options{Subdir: sub})
	write(t, part+"/f", "x")
	must(t, os.Mkdir(part+"/d", 0o755))
	for _, name := range []string{"", "/f", "/d"} {
		a, b := stat(t, whole+sub+name), stat(t, part+name)
		if a.Ino != b.Ino || b.Ino == 1 {
			t.Errorf("%q is inode %d in the whole and %d in the part", name, a.Ino, b.Ino)
		}
	}
	if _, err := os.Stat(part + "/../" + filepath.Base(part) + "/f"); err != nil {
		t.Error(err)
	}
	fs := dial(t)
	for sub, want := range map[string]string{"/no/such": "no such file", sub + "/f": "not a directory"} {
		if _, err := fuse.Mount(t.Context(), fs, t.TempDir(), fuse.Options{Subdir: sub}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("mounting %s: %v, want %q", sub, err, want)
		}
	}
}

func TestMountedTwice(t *testing.T) {
	dir, _ := mountAt(t, fuse.Options{Subdir: newSubdir(t)})
	if _, err := fuse.Mount(t.Context(), dial(t), dir, fuse.Options{}); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("mounting over a mount: %v", err)
	}
}

// TestUnmountFromOutside: Wait returns, and what was open is written.
func TestUnmountFromOutside(t *testing.T) {
	sub := newSubdir(t)
	dir, s := mountAt(t, fuse.Options{Subdir: sub})
	write(t, dir+"/f", "written")
	if err := fuse.Unmount(dir); err != nil {
		t.Fatal(err)
	}
	must(t, s.Wait())
	must(t, s.Unmount()) // nothing left to do
	dir, _ = mountAt(t, fuse.Options{Subdir: sub})
	if got := string(read(t, dir+"/f")); got != "written" {
		t.Errorf("got %q", got)
	}
}

// TestUnmountCopied: another mount namespace that got a copy of the mount, as that of a container may, does not keep it from ending.
func TestUnmountCopied(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.NeedPrograms(t, "unshare")
	sub := newSubdir(t)
	dir, s := mountAt(t, fuse.Options{Subdir: sub})
	write(t, dir+"/f", "written")
	ready, w, err := os.Pipe()
	must(t, err)
	other := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo >&3; exec cat")
	other.ExtraFiles = []*os.File{w}
	stdin, err := other.StdinPipe()
	must(t, err)
	must(t, other.Start())
	must(t, w.Close())
	defer func() {
		_ = stdin.Close() // which ends it
		must(t, other.Wait())
	}()
	_, err = ready.Read(make([]byte, 1))
	must(t, err)
	must(t, s.Unmount())
	dir, _ = mountAt(t, fuse.Options{Subdir: sub})
	if got := string(read(t, dir+"/f")); got != "written" {
		t.Errorf("got %q", got)
	}
}

// slowToForget is another client that takes its time to give up what it has cached.
type slowToForget time.Duration

func (d slowToForget) Revoked(_ client.Ino, done func()) { time.AfterFunc(time.Duration(d), done) }

// TestUnmountWaitsForCommits that take longer than the kernel to let the mount go.
func TestUnmountWaitsForCommits(t *testing.T) {
	sub := newSubdir(t)
	dir, s := mountAt(t, fuse.Options{Subdir: sub})
	write(t, dir+"/f", strings.Repeat("x", 4096))
	other := dial(t)
	other.Low().Observe(slowToForget(4 * time.Second))
	_, err := other.Stat(t.Context(), sub+"/f")
	must(t, err)
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), mapAndLeave+"="+dir+"/f")
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	must(t, s.Unmount())
	select {
	case <-s.Done():
	default:
		t.Error("it did not wait")
	}
	b, err := dial(t).ReadFile(t.Context(), sub+"/f")
	must(t, err)
	if got := string(b[:7]); got != "changed" {
		t.Errorf("got %q", got)
	}
}

// TestUnmountInUse: what is open is committed before it is cut off.
func TestUnmountInUse(t *testing.T) {
	sub := newSubdir(t)
	dir, s := mountAt(t, fuse.Options{Subdir: sub})
	f, err := os.Create(dir + "/f")
	must(t, err)
	_, err = f.WriteString("not closed")
	must(t, err)
	if err := fuse.Unmount(dir); !errors.Is(err, unix.EBUSY) {
		t.Errorf("unmounting from outside while in use: %v", err)
	}
	must(t, s.Unmount())
	other, _ := mountAt(t, fuse.Options{Subdir: sub})
	if got := string(read(t, other+"/f")); got != "not closed" {
		t.Errorf("got %q", got)
	}
	_ = f.Close() // whether it fails depends on whether the connection could be ended
	must(t, s.Wait())
}
