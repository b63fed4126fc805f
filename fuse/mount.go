package fuse

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fsType is what /proc/self/mountinfo calls our mounts.
const fsType = "fuse.shoal"

// checkMountPoint returns the absolute path of a directory that can be mounted on.
func checkMountPoint(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("mount point %q: %w", dir, err)
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real // as the kernel will call it
	}
	if m := findMount(abs); m != nil && strings.HasPrefix(m.fsType, "fuse") {
		if dead(abs) {
			return "", fmt.Errorf("mount point %s: a mount is left there whose server has died; `shoal umount %s` removes it", abs, dir)
		}
		if m.fsType == fsType {
			return "", fmt.Errorf("mount point %s: %s is mounted there already; `shoal umount %s` removes it", abs, m.source, dir)
		}
	}
	st, err := os.Stat(abs)
	switch {
	case errors.Is(err, syscall.ENOTCONN):
		return "", fmt.Errorf("mount point %s: a mount is left there whose server has died; `shoal umount %s` removes it", abs, dir)
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("mount point %s: there is no such directory, make it first", abs)
	case err != nil:
		return "", fmt.Errorf("mount point: %w", err)
	case !st.IsDir():
		return "", fmt.Errorf("mount point %s: not a directory", abs)
	}
	return abs, nil
}

// dead tells whether the server of a FUSE mount has gone.
func dead(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == syscall.ENOTCONN
}

// checkDevice says why the device of FUSE cannot be used, and what to do.
func checkDevice(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("this system has no FUSE (%w): load the kernel module with `modprobe fuse`, or give the container the device", err)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, path, unix.R_OK|unix.W_OK, unix.AT_EACCESS); err != nil {
		return denied(path, st.Mode().Perm(), err)
	}
	return nil
}

func denied(path string, mode fs.FileMode, err error) error {
	return fmt.Errorf("%s cannot be used (%w): its mode is %#o, on most systems it is 0666: `sudo chmod 666 %s`", path, err, mode, path)
}

const device = "/dev/fuse"

// Check says what keeps Mount from mounting on a directory, as far as that can be known before a cluster is there.
func Check(dir string) error {
	abs, err := checkMountPoint(dir)
	if err != nil {
		return err
	}
	if err := usable(device); err != nil {
		return fmt.Errorf("mount on %s: %w", abs, err)
	}
	return nil
}

// usable says why this user cannot mount anything.
func usable(device string) error {
	if err := checkDevice(device); err != nil {
		return err
	}
	if _, err := exec.LookPath("fusermount3"); err != nil && os.Geteuid() != 0 {
		return errors.New("mounting as an ordinary user needs the program fusermount3: install the package fuse3 (Debian, Ubuntu: apt install fuse3; Fedora: dnf install fuse3), or mount as root")
	}
	return nil
}

// mountRaw mounts, and starts nothing.
func mountRaw(f gofuse.RawFileSystem, dir string, o *Options) (*gofuse.Server, error) {
	if err := usable(device); err != nil {
		return nil, err
	}
	mo := &gofuse.MountOptions{
		AllowOther: o.AllowOther, Name: "shoal", FsName: o.Source, MaxBackground: maxBackground,
		MaxWrite: DefaultMaxWrite, MaxReadAhead: o.ReadAhead, EnableSymlinkCaching: true, // a symlink never changes
		Debug: o.Debug, Logger: requestLog(o),
		// What is read never comes from a file descriptor; the attempt to splice it would cost every read a pipe.
		DisableSplice: true,
		// Open truncates, in one request; nobody asks for a file's capabilities before each write.
		ExtraCapabilities: gofuse.CAP_ATOMIC_O_TRUNC | gofuse.CAP_HANDLE_KILLPRIV_V2 | gofuse.CAP_ASYNC_DIO | gofuse.CAP_DIRECT_IO_ALLOW_MMAP,
		// A new mtime alone drops no pages: what this mount wrote itself has one too. A size that the kernel did not expect
		// still does.
		DisabledCapabilities: gofuse.CAP_AUTO_INVAL_DATA,
	}
	if o.AllowOther {
		mo.Options = append(mo.Options, "default_permissions")
	}
	if o.ReadOnly {
		mo.Options = append(mo.Options, "ro")
	}
	var direct error
	if os.Geteuid() == 0 {
		mo.DirectMountStrict = true
		raw, err := gofuse.NewServer(f, dir, mo)
		if err == nil {
			return raw, nil
		}
		if _, noHelper := exec.LookPath("fusermount3"); noHelper != nil {
			return nil, fmt.Errorf("mount(2): %w", err)
		}
		direct = fmt.Errorf("mount(2): %w", err)
		mo.DirectMountStrict = false
	}
	raw, err := gofuse.NewServer(f, dir, mo)
	if err == nil {
		return raw, nil
	}
	err = helperError(err)
	if o.AllowOther && direct == nil {
		err = fmt.Errorf("%w (other users are let in only if /etc/fuse.conf says user_allow_other)", err)
	}
	return nil, errors.Join(direct, fmt.Errorf("fusermount3: %w", err))
}

// helperError is an error of mounting with fusermount3, which writes to standard error itself why it failed.
func helperError(err error) error {
	msg := strings.TrimSpace(err.Error())
	if strings.HasPrefix(msg, "fusermount exited with code") { // what go-fuse makes of its end; the number is a wait status
		return errors.New("it failed, and says above why")
	}
	if msg != err.Error() {
		return errors.New(msg)
	}
	return err
}

// Unmount takes a mount of shoalfs away, whoever serves it: also one whose server has died. EBUSY when programs use it.
func Unmount(dir string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("unmount %q: %w", dir, err)
	}
	if parent, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		abs = filepath.Join(parent, filepath.Base(abs)) // the last component is not looked at: it may hang, or be dead
	}
	m := findMount(abs)
	switch {
	case m == nil:
		return fmt.Errorf("unmount %s: nothing is mounted there", abs)
	case m.fsType != fsType:
		return fmt.Errorf("unmount %s: that is a mount of %s, not of shoalfs", abs, m.fsType)
	}
	err = unmountPatiently(abs)
	if errors.Is(err, syscall.EBUSY) && dead(abs) {
		err = unmount(abs, true)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", abs, err)
	}
	return nil
}

// unmountPatiently tries for a moment if the mount is in use: programs that just ended are still being cleared away.
func unmountPatiently(dir string) error {
	var err error
	for delay := 5 * time.Millisecond; delay < 200*time.Millisecond; delay *= 2 {
		if err = unmount(dir, false); !errors.Is(err, syscall.EBUSY) {
			return err
		}
		time.Sleep(delay)
	}
	return err
}

// unmount takes a mount away, lazily also one that is in use. It is no error when it has gone meanwhile.
func unmount(dir string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(dir, flags)
	switch err {
	case nil:
		return nil
	case unix.EINVAL, unix.ENOENT:
		if findMount(dir) == nil {
			return nil
		}
		return err
	case unix.EPERM:
		return fusermount(dir, lazy)
	}
	return err
}

func fusermount(dir string, lazy bool) error {
	args := []string{"-u"}
	if lazy {
		args = append(args, "-z")
	}
	var stderr bytes.Buffer
	cmd := exec.Command("fusermount3", append(args, "--", dir)...)
	cmd.Stderr = &stderr
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if msg := strings.TrimSpace(stderr.String()); msg != "" {
		if strings.Contains(msg, "busy") {
			return fmt.Errorf("%s: %w", msg, syscall.EBUSY)
		}
		return errors.New(msg)
	}
	return fmt.Errorf("fusermount3: %w", err)
}

// mountEntry is a line of /proc/self/mountinfo.
type mountEntry struct{ minor, device, dir, fsType, source string }

// findMount returns what is mounted on a directory, the topmost if there are several, or nil.
func findMount(dir string) *mountEntry {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var found *mountEntry
	for line := range strings.Lines(string(info)) {
		if m := parseMount(line); m != nil && m.dir == dir {
			found = m
		}
	}
	return found
}

// parseMount reads a line as proc_pid_mountinfo(5) describes it: six fields, any number of optional ones, "-", three more.
func parseMount(line string) *mountEntry {
	f := strings.Fields(line)
	for i := 6; i+2 < len(f); i++ {
		if f[i] != "-" {
			continue
		}
		_, minor, ok := strings.Cut(f[2], ":")
		if !ok {
			return nil
		}
		return &mountEntry{minor: minor, device: f[2], dir: unescape(f[4]), fsType: f[i+1], source: unescape(f[i+2])}
	}
	return nil
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// setReadAhead raises the kernel's readahead for the mount. The protocol can only lower it below the system's default
// (128 KiB); where the mounter may not raise it, that is what holds.
func (m *mountEntry) setReadAhead(bytes int) {
	_ = os.WriteFile("/sys/class/bdi/"+m.device+"/read_ahead_kb", []byte(strconv.Itoa(bytes>>10)), 0)
}
