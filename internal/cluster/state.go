package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

const (
	stateFile    = "cluster.json"
	lockFile     = "LOCK"
	stateVersion = 1
	maxState     = 64 << 10 // bytes
)

// state is cluster.json: what was decided when the cluster was made.
type state struct {
	Version      int      `json:"version"`
	Metaservers  []string `json:"metaservers"` // host:port of each, in the order of their ids
	Chunkservers int      `json:"chunkservers"`
}

// settle reconciles what is asked for with what the directory holds.
func settle(cfg Config) (*state, error) {
	st, err := loadState(cfg.Dir)
	switch {
	case err != nil:
		return nil, err
	case st == nil:
		if err := refuseForeign(cfg.Dir); err != nil {
			return nil, err
		}
		return newState(cfg)
	}
	return st, st.adopt(cfg)
}

// adopt checks an existing cluster against the configuration and takes the changes that are possible.
func (st *state) adopt(cfg Config) error {
	if n := len(st.Metaservers); cfg.Metaservers != 0 && cfg.Metaservers != n {
		return fmt.Errorf("%s has %d metaserver(s); this release cannot change that to %d (leave --metaservers out, or use a new --data directory)", cfg.Dir, n, cfg.Metaservers)
	}
	if n := cfg.Chunkservers; n != 0 {
		if n < st.Chunkservers {
			return fmt.Errorf("%s has directories of %d chunk servers, of which any but removed ones hold data; %d are too few (leave --chunkservers out, or ask for at least %d)", cfg.Dir, st.Chunkservers, n, st.Chunkservers)
		}
		if n > maxChunkservers {
			return fmt.Errorf("%d chunk servers in one process, at most %d (--chunkservers)", n, maxChunkservers)
		}
		st.Chunkservers = n
	}
	if cfg.Listen == "" || cfg.Listen == st.Metaservers[0] {
		return nil
	}
	host, port, err := splitListen(cfg.Listen)
	if err != nil {
		return err
	}
	if was, _, err := splitListen(st.Metaservers[0]); err != nil || (port == 0 && was == host) {
		return err
	}
	return fmt.Errorf("the metaservers of %s listen on %s and after; this release cannot move them to %s (leave --listen out)", cfg.Dir, st.Metaservers[0], cfg.Listen)
}

// newState decides for an empty directory.
func newState(cfg Config) (*state, error) {
	metas, chunks, listen := cfg.Metaservers, cfg.Chunkservers, cfg.Listen
	if metas == 0 {
		metas = DefaultMetaservers
	}
	if chunks == 0 {
		chunks = DefaultChunkservers
	}
	if listen == "" {
		listen = DefaultListen
	}
	if metas != 1 && metas != 3 && metas != 5 {
		return nil, fmt.Errorf("%d metaservers: there can be 1, 3 or 5 (--metaservers)", metas)
	}
	if chunks < 1 || chunks > maxChunkservers {
		return nil, fmt.Errorf("%d chunk servers in one process: there can be 1 to %d (--chunkservers)", chunks, maxChunkservers)
	}
	host, port, err := splitListen(listen)
	if err != nil {
		return nil, err
	}
	st := &state{Version: stateVersion, Chunkservers: chunks}
	if port == 0 {
		st.Metaservers, err = freeAddresses(host, metas)
		return st, err
	}
	if port+metas-1 > 65535 {
		return nil, fmt.Errorf("--listen %s: %d metaservers need ports up to %d", listen, metas, port+metas-1)
	}
	for i := range metas {
		st.Metaservers = append(st.Metaservers, net.JoinHostPort(host, strconv.Itoa(port+i)))
	}
	return st, nil
}

func splitListen(listen string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(listen)
	if err != nil {
		return "", 0, fmt.Errorf("--listen %q: want HOST:PORT", listen)
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("--listen %q: %q is no port", listen, p)
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		return "", 0, fmt.Errorf("--listen %q: name the one address that clients are to connect to", listen)
	}
	return host, int(n), nil
}

// freeAddresses finds n ports that are free now. All are held until the last is found, so that they differ.
func freeAddresses(host string, n int) ([]string, error) {
	var out []string
	for range n {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			return nil, fmt.Errorf("--listen %s:0: %w", host, err)
		}
		defer func() { _ = l.Close() }()
		out = append(out, l.Addr().String())
	}
	return out, nil
}

// partFiles are what tells that a directory belongs to a server that runs apart.
var partFiles = []struct{ name, command string }{
	{"meta.json", "shoal meta"},
	{"shoal-disk.json", "shoal chunk"},
}

// refusePart keeps out of the directory of a single server.
func refusePart(dir string) error {
	for _, p := range partFiles {
		if _, err := os.Lstat(filepath.Join(dir, p.name)); err == nil {
			return fmt.Errorf("%s holds %s: it is the data of a `%s`; choose another directory with --data", dir, p.name, p.command)
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return fmt.Errorf("data directory: %w", err)
		}
	}
	return nil
}

// refuseForeign keeps out of a directory that has data of servers but is not a cluster's.
func refuseForeign(dir string) error {
	for _, part := range []string{partName("meta", 0), partName("chunk", 0)} {
		if _, err := os.Lstat(filepath.Join(dir, part)); err == nil {
			return fmt.Errorf("%s holds %s but no %s: it was not made by `shoal up`, or that file was lost", dir, part, stateFile)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// loadState reads cluster.json; nil without error where there is none.
func loadState(dir string) (*state, error) {
	path := filepath.Join(dir, stateFile)
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if fi.Size() > maxState {
		return nil, fmt.Errorf("%s: %d bytes long, at most %d", path, fi.Size(), maxState)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseState(path, b)
}

func parseState(path string, b []byte) (*state, error) {
	st := new(state)
	if err := json.Unmarshal(b, st); err != nil {
		return nil, fmt.Errorf("%s: damaged: %w", path, err)
	}
	if st.Version > stateVersion {
		return nil, fmt.Errorf("%s: format %d is newer than this release of shoal understands (%d)", path, st.Version, stateVersion)
	}
	n := len(st.Metaservers)
	if st.Version < 1 || (n != 1 && n != 3 && n != 5) || st.Chunkservers < 1 || st.Chunkservers > maxChunkservers {
		return nil, fmt.Errorf("%s: damaged: version %d, %d metaservers, %d chunk servers", path, st.Version, n, st.Chunkservers)
	}
	for _, addr := range st.Metaservers {
		if _, port, err := splitListen(addr); err != nil || port == 0 {
			return nil, fmt.Errorf("%s: damaged: metaserver address %q", path, addr)
		}
	}
	return st, nil
}

// save writes cluster.json so that a crash leaves the old one or the new one.
func (st *state) save(dir string) error {
	b, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, stateFile)
	f, err := os.CreateTemp(dir, stateFile+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lockDir makes sure that one process at a time runs the cluster. The lock goes with the process, however it ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is in use by another `shoal up`: stop that, or choose another directory with --data", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}
