package disk

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// Identity says to whom a data directory belongs.
type Identity struct {
	Cluster ClusterID      // zero until the server has registered
	Server  chunk.ServerID // 0 until the server has registered
	UUID    [16]byte       // of the server; all its data directories have the same
}

// IsZero says that the directory is a new one that belongs to no server yet.
func (i Identity) IsZero() bool { return i == Identity{} }

const (
	identityName = "shoal-disk.json"
	lockName     = "lock"
	chunksName   = "chunks"
	// directoryVersion is that of the layout of a data directory, format in shoal-disk.json.
	directoryVersion = 1
	maxIdentity      = 64 << 10
)

// identityFile is shoal-disk.json.
type identityFile struct {
	Format  int    `json:"format"`
	Cluster string `json:"cluster"`
	Server  uint32 `json:"server"`
	UUID    string `json:"server_uuid"`
	Disk    string `json:"disk_uuid"`
}

func decodeIdentity(b []byte) (Identity, [16]byte, error) {
	var f identityFile
	if len(b) > maxIdentity {
		return Identity{}, [16]byte{}, fmt.Errorf("%d bytes long", len(b))
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return Identity{}, [16]byte{}, err
	}
	if f.Format > directoryVersion {
		return Identity{}, [16]byte{}, fmt.Errorf("format %d, this program knows %d: %w", f.Format, directoryVersion, ErrNewer)
	}
	if f.Format < 1 {
		return Identity{}, [16]byte{}, fmt.Errorf("format %d", f.Format)
	}
	id := Identity{Server: chunk.ServerID(f.Server)}
	var disk [16]byte
	err := errors.Join(unhex(id.Cluster[:], f.Cluster), unhex(id.UUID[:], f.UUID), unhex(disk[:], f.Disk))
	if err == nil && disk == [16]byte{} {
		err = errors.New("no disk_uuid")
	}
	return id, disk, err
}

// unhex decodes exactly len(dst) bytes; an empty string leaves dst zero.
func unhex(dst []byte, s string) error {
	if s == "" {
		return nil
	}
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(dst) {
		return fmt.Errorf("%q: want %d hexadecimal digits", s, 2*len(dst))
	}
	copy(dst, b)
	return nil
}

func hexOf(b [16]byte) string {
	if b == [16]byte{} {
		return ""
	}
	return hex.EncodeToString(b[:])
}

func writeIdentity(dir string, id Identity, disk [16]byte) error {
	b, err := json.MarshalIndent(identityFile{
		Format: directoryVersion, Cluster: hexOf(id.Cluster), Server: uint32(id.Server), UUID: hexOf(id.UUID), Disk: hexOf(disk),
	}, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, identityName)
	if err := writeSynced(path+".new", append(b, '\n')); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return OS.SyncDir(dir)
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// prepare makes the directory if need be, locks it and reads to whom it belongs.
func prepare(dir string) (lock *os.File, id Identity, disk [16]byte, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, id, disk, fmt.Errorf("make the data directory: %w", err)
	}
	if lock, err = lockDir(dir); err != nil {
		return nil, id, disk, err
	}
	defer func() {
		if err != nil {
			_ = lock.Close()
			lock = nil
		}
	}()
	b, err := os.ReadFile(filepath.Join(dir, identityName))
	switch {
	case err == nil:
		if id, disk, err = decodeIdentity(bytes.TrimSpace(b)); err != nil {
			return lock, id, disk, fmt.Errorf("%s: %w", identityName, err)
		}
	case errors.Is(err, fs.ErrNotExist):
		if err := mustBeFresh(dir); err != nil {
			return lock, id, disk, err
		}
		if _, err := rand.Read(disk[:]); err != nil {
			return lock, id, disk, err
		}
	default:
		return lock, id, disk, err
	}
	if err := makeDirs(dir); err != nil {
		return lock, id, disk, err
	}
	if b == nil {
		err = writeIdentity(dir, id, disk)
	}
	return lock, id, disk, err
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if err == unix.EWOULDBLOCK {
			err = ErrLocked
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	return f, nil
}

// mustBeFresh refuses a directory that holds something which is not ours, or whose identity was lost: chunks of an unknown
// cluster must not be taken over, nor mixed with others.
func mustBeFresh(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch e.Name() {
		case lockName, "lost+found", identityName + ".new":
		case chunksName:
			if found, _ := filepath.Glob(filepath.Join(dir, chunksName, "*", "*")); len(found) > 0 {
				return fmt.Errorf("it holds chunks but %s is missing: put it back, or give an empty directory", identityName)
			}
		default:
			return fmt.Errorf("it is not empty (%s) and has no %s: %w", e.Name(), identityName, ErrForeign)
		}
	}
	return nil
}

// makeDirs makes chunks/00 to chunks/ff, durably, so that making a chunk never makes a directory.
func makeDirs(dir string) error {
	chunks := filepath.Join(dir, chunksName)
	made := false
	for i := range 256 {
		sub := filepath.Join(chunks, fmt.Sprintf("%02x", i))
		if _, err := os.Stat(sub); err == nil {
			continue
		}
		made = true
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return err
		}
	}
	if !made {
		return nil
	}
	return errors.Join(OS.SyncDir(chunks), OS.SyncDir(dir), OS.SyncDir(filepath.Dir(dir)))
}
