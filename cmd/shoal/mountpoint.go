package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"github.com/shoalfs/shoalfs/fuse"
)

// mountPoint is a directory to mount on.
type mountPoint struct {
	dir  string
	made []string // directories, the deepest first
}

// prepare makes the directory if it is not there, takes away what a mount left whose process died, and says what would keep us from
// mounting there. Whoever calls it calls abandon in the end.
func (m *mountPoint) prepare(log *slog.Logger) error {
	m.dir = filepath.Clean(m.dir) // as fuse does, whatever a/.. is where a is a symlink
	_, err := os.Stat(m.dir)
	switch {
	case errors.Is(err, syscall.ENOTCONN):
		log.Warn("removing the mount of a process that died", "dir", m.dir)
		err = fuse.Unmount(m.dir)
	case errors.Is(err, fs.ErrNotExist):
		err = m.make()
	}
	if err != nil {
		return err
	}
	return fuse.Check(m.dir)
}

func (m *mountPoint) make() error {
	for dir := m.dir; ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		m.made = append(m.made, dir)
	}
	return os.MkdirAll(m.dir, 0o755)
}

// keep says that something was mounted.
func (m *mountPoint) keep() { m.made = nil }

// abandon removes what was made for nothing.
func (m *mountPoint) abandon() {
	for _, dir := range m.made {
		_ = os.Remove(dir) // that somebody uses it now is no failure
	}
}
