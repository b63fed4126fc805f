package consensus

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dirFormat   = 1
	lockTimeout = time.Second // how long another process may take to let go of the directory
)

// home is the directory of a member, locked while it is open.
type home struct {
	path string
	lock *os.File
}

// openHome makes or opens the directory and sees to it that it is this member's.
func openHome(dir string, id uint64) (_ *home, err error) {
	h := &home{path: filepath.Join(dir, "raft")}
	for _, d := range []string{h.logs(), h.snapshots()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("consensus: %w", err)
		}
	}
	if err := syncDir(dir); err != nil { // what is in h.path is synced as it is made, which is worth nothing without its own name
		return nil, err
	}
	if h.lock, err = lockFile(filepath.Join(h.path, "lock")); err != nil {
		return nil, err
	}
	if err := errors.Join(h.identify(id), h.condemned()); err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

// condemnedFile says why the directory is of no use any more.
const condemnedFile = "condemned"

// condemn notes, durably, that the directory is of no use any more.
func (h *home) condemn(cause error) error {
	return writeFile(filepath.Join(h.path, condemnedFile), []byte(cause.Error()+"\n"))
}

func (h *home) condemned() error {
	b, err := os.ReadFile(filepath.Join(h.path, condemnedFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("consensus: %w", err)
	}
	return fmt.Errorf("consensus: %s is of no use any more: %.1000s", filepath.Dir(h.path), strings.TrimSpace(string(b)))
}

func (h *home) logs() string      { return filepath.Join(h.path, "log") }
func (h *home) snapshots() string { return filepath.Join(h.path, "snapshots") }
func (h *home) close() error      { return h.lock.Close() } // which lets go of the lock

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("consensus: %w", err)
	}
	for deadline := time.Now().Add(lockTimeout); ; time.Sleep(lockTimeout / 20) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			break
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("consensus: %s is in use by another process: a data directory belongs to one metaserver at a time", filepath.Dir(path))
	} else {
		err = fmt.Errorf("consensus: lock %s: %w", path, err)
	}
	return nil, errors.Join(err, f.Close())
}

type identity struct {
	Format int    `json:"format"`
	ID     uint64 `json:"id"`
}

func (h *home) identify(id uint64) error {
	path := filepath.Join(h.path, "node")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if b, err = json.Marshal(identity{Format: dirFormat, ID: id}); err != nil {
			return fmt.Errorf("consensus: %w", err)
		}
		return writeFile(path, b)
	}
	if err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	var found identity
	if err := json.Unmarshal(b, &found); err != nil || found.Format < 1 || found.ID == 0 {
		return fmt.Errorf("consensus: %s is damaged: it should say which metaserver the directory belongs to", path)
	}
	if found.Format > dirFormat {
		return fmt.Errorf("consensus: %s has format %d, this version of shoalfs knows only %d: start the version that wrote it, or a newer one",
			h.path, found.Format, dirFormat)
	}
	if found.ID != id {
		return fmt.Errorf("consensus: %s belongs to metaserver %d, this one is %d: choose another data directory or the right id", h.path, found.ID, id)
	}
	return nil
}

// writeFile writes a file durably, whole or not at all.
func writeFile(path string, content []byte) error {
	f, err := os.OpenFile(path+tmpSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("consensus: write %s: %w", path, err)
	}
	return rename(path+tmpSuffix, path)
}

// tmpSuffix is what the name of a file ends in that does not count yet.
const tmpSuffix = ".new"

// rename gives a synced file its name, durably.
func rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	return syncDir(filepath.Dir(to))
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("consensus: sync %s: %w", d.Name(), err)
	}
	return nil
}
