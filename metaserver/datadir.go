package metaserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// What a metaserver's data directory holds.
const (
	metaFile  = "meta.json" // whose directory it is
	stateFile = "state.db"  // the state, see package kv
	lockFile  = "lock"      // flocked while a process uses the directory
)

// formatVersion is the version of the directory as a whole.
const formatVersion = 1

// identity is meta.json.
type identity struct {
	Format  int    `json:"format"`
	Node    uint64 `json:"node"`
	Service string `json:"service"`
}

const service = "shoalfs metaserver"

// dataDir is a data directory that this process alone uses.
type dataDir struct {
	path string
	lock *os.File
}

// openDir locks a metaserver's data directory, making it if there is none or if it is empty. It refuses one that another
// process uses, that belongs to another metaserver or to something else, or that a newer version wrote.
func openDir(path string, node uint64) (*dataDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock, err := lockDir(path)
	if err != nil {
		return nil, err
	}
	d := &dataDir{path: path, lock: lock}
	if err := d.identify(node); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func lockDir(path string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s: another process is using it", path)
		}
		return nil, fmt.Errorf("lock data directory %s: %w", path, err)
	}
	return f, nil
}

func (d *dataDir) identify(node uint64) error {
	b, err := os.ReadFile(d.file(metaFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d.create(node)
	case err != nil:
		return fmt.Errorf("data directory: %w", err)
	}
	var id identity
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&id); err != nil {
		return fmt.Errorf("data directory %s: %s is damaged: %w", d.path, metaFile, err)
	}
	switch {
	case id.Service != service:
		return fmt.Errorf("data directory %s belongs to %q, not to a %s", d.path, id.Service, service)
	case id.Format > formatVersion:
		return fmt.Errorf("data directory %s has format %d, written by a newer version of shoalfs; this one knows formats up to %d", d.path, id.Format, formatVersion)
	case id.Format < 1:
		return fmt.Errorf("data directory %s: %s is damaged: format %d", d.path, metaFile, id.Format)
	case id.Node != node:
		return fmt.Errorf("data directory %s belongs to metaserver %d, this is %d", d.path, id.Node, node)
	}
	return nil
}

// create writes meta.json into a directory that holds nothing else, durably and before anything else.
func (d *dataDir) create(node uint64) error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	for _, e := range entries {
		if e.Name() != lockFile && e.Name() != metaFile+".new" {
			return fmt.Errorf("data directory %s holds %q but no %s: it is not a metaserver's, or it is damaged", d.path, e.Name(), metaFile)
		}
	}
	b, err := json.Marshal(identity{Format: formatVersion, Node: node, Service: service})
	if err != nil {
		return err
	}
	if err := errors.Join(writeDurably(d.file(metaFile), append(b, '\n')), syncDir(filepath.Dir(d.path))); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	return nil
}

// writeDurably makes a file appear whole or not at all.
func writeDurably(path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (d *dataDir) file(name string) string { return filepath.Join(d.path, name) }

// Close gives the directory up.
func (d *dataDir) Close() error { return d.lock.Close() }
