package fault

import (
	"cmp"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/shoalfs/shoalfs/test/fault/netns"
)

// Kill ends servers at once, as kill -9 does.
func Kill(servers ...*Server) error {
	return each(servers, func(s *Server) error { return s.End(syscall.SIGKILL) })
}

// Restart ends a server in good order and starts it again.
func (s *Server) Restart() error {
	if err := s.End(syscall.SIGTERM); err != nil {
		return err
	}
	if err := s.Failed(); err != nil {
		return err
	}
	return s.Start()
}

// StartAll starts servers that have ended: metaservers first, which most of are needed for any to be ready.
func (c *Cluster) StartAll(servers ...*Server) error {
	var metas, chunks []*Server
	for _, s := range servers {
		if slices.Contains(c.Metas, s) {
			metas = append(metas, s)
		} else {
			chunks = append(chunks, s)
		}
	}
	if err := each(metas, func(s *Server) error { return s.Start() }); err != nil {
		return err
	}
	return each(chunks, func(s *Server) error { return s.Start() })
}

// CutFromMetas keeps a chunk server and the metaservers from reaching each other, until the network heals.
func (c *Cluster) CutFromMetas(s *Server) error { return c.Net.Cut(s.Host, Hosts(c.Metas)...) }

// CutFromChunks keeps a server and the chunk servers from reaching each other.
func (c *Cluster) CutFromChunks(s *Server) error { return c.Net.Cut(s.Host, Hosts(c.Chunks)...) }

// CutFromClients keeps a server from all hosts but those of servers.
func (c *Cluster) CutFromClients(s *Server) error {
	var others []*netns.Host
	for _, cl := range c.clients {
		others = append(others, cl.host)
	}
	for _, m := range c.Mounts {
		others = append(others, m.Host)
	}
	for _, p := range c.programs {
		others = append(others, p.Host)
	}
	return c.Net.Cut(s.Host, append(others, c.console)...)
}

// LosePower cuts the power of servers, all at the same moment. Their disks must be ones with faults; with a seed that is not
// zero, some of what they were not asked to keep survives.
func (c *Cluster) LosePower(seed uint64, servers ...*Server) error {
	for _, s := range servers {
		if s.Disk == nil {
			return fmt.Errorf("%s has no disk that could lose power", s.Name)
		}
	}
	for _, s := range servers {
		s.Disk.Freeze()
	}
	for _, s := range servers {
		if err := s.Signal(syscall.SIGKILL); err != nil {
			return err
		}
	}
	for _, s := range servers {
		s.Disk.Fail()
	}
	if err := each(servers, func(s *Server) error { return s.Wait("power was lost") }); err != nil {
		return err
	}
	for i, s := range servers {
		var rng *rand.Rand
		if seed != 0 {
			rng = rand.New(rand.NewPCG(seed, uint64(i)))
		}
		if err := s.Disk.LosePower(rng); err != nil {
			return err
		}
	}
	return nil
}

// Files lists the files of a server's data directory, as Flip takes them.
func (s *Server) Files() (files []string, sizes []int64, err error) {
	add := func(path string, size int64) {
		files, sizes = append(files, path), append(sizes, size)
	}
	if s.Disk != nil {
		s.Disk.Files(add)
		return files, sizes, nil
	}
	err = filepath.Walk(s.Data, func(path string, info fs.FileInfo, err error) error {
		switch {
		case os.IsNotExist(err):
			return nil // deleted meanwhile
		case err != nil:
			return err
		case info.Mode().IsRegular():
			add(path, info.Size())
		}
		return nil
	})
	return files, sizes, err
}

// Flip changes a bit of a file where it lies.
func (s *Server) Flip(path string, off int64) error {
	if s.Disk != nil {
		return s.Disk.Flip(path, off)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // the write tells whether it worked
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		return err
	}
	b[0] ^= 1
	_, err = f.WriteAt(b[:], off)
	return err
}

// Damage flips a bit in every 64 KiB of all chunks of a server, at random, and returns of how many.
func (s *Server) Damage(seed uint64) (chunks int, err error) {
	rng := rand.New(rand.NewPCG(seed, 1))
	files, sizes, err := s.Files()
	if err != nil {
		return 0, err
	}
	for i, f := range files {
		if !strings.HasSuffix(f, chunkSuffix) {
			continue
		}
		for at := int64(0); at < sizes[i]; at += 64 << 10 {
			if err := s.Flip(f, at+rng.Int64N(min(64<<10, sizes[i]-at))); err != nil && !os.IsNotExist(err) {
				return chunks, err
			}
		}
		chunks++
	}
	return chunks, nil
}

// chunkSuffix ends the names of chunk files.
const chunkSuffix = ".chunk"

// Busiest returns those n chunk servers that hold most, the first before the others: a fault of one that holds nothing would be none.
func (c *Cluster) Busiest(n int) ([]*Server, error) {
	held := map[*Server]int64{}
	for _, s := range c.Chunks {
		files, sizes, err := s.Files()
		if err != nil {
			return nil, err
		}
		for i, f := range files {
			if strings.HasSuffix(f, chunkSuffix) {
				held[s] += sizes[i]
			}
		}
	}
	all := slices.SortedFunc(slices.Values(c.Chunks), func(a, b *Server) int { return cmp.Compare(held[b], held[a]) })
	if held[all[n-1]] == 0 {
		return nil, fmt.Errorf("only %d of %d chunk servers hold anything", len(held), len(all))
	}
	return all[:n], nil
}
