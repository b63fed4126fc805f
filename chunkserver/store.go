package chunkserver

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/shoalfs/shoalfs/chunkserver/disk"
	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// slot is a data directory as configured: open, or with the reason why it is not.
type slot struct {
	path string
	disk *disk.Disk
	err  error
}

// store is all data directories of a server.
type store struct {
	slots []slot
	disks []*disk.Disk // those of the slots that are open; at least one
	uuid  [16]byte     // of the server

	mu     sync.Mutex
	making map[chunk.ID]bool // chunks that create is busy with: no other disk may take one meanwhile
}

// openStore opens the data directories. One whose device fails is left out; every other error is one of the operator,
// who has to know before chunks go elsewhere.
func openStore(dirs []string, opts disk.Options) (*store, error) {
	if len(dirs) == 0 {
		return nil, errors.New("no data directory is given")
	}
	s := &store{making: map[chunk.ID]bool{}}
	seen := map[string]bool{}
	for _, dir := range dirs {
		if dir = filepath.Clean(dir); seen[dir] {
			return nil, errors.Join(fmt.Errorf("data directory %s is given twice", dir), s.close())
		}
		seen[dir] = true
		d, err := disk.Open(dir, opts)
		if err != nil && (!deviceError(err) || len(dirs) == 1) {
			return nil, errors.Join(err, s.close())
		}
		if err != nil {
			opts.Logger.Error("a data directory cannot be used; going on without it", "err", err)
		}
		s.slots = append(s.slots, slot{dir, d, err})
		if d != nil {
			s.disks = append(s.disks, d)
		}
	}
	if len(s.disks) == 0 {
		errs := []error{errors.New("no data directory can be used")}
		for _, sl := range s.slots {
			errs = append(errs, sl.err)
		}
		return nil, errors.Join(errs...)
	}
	if err := s.agree(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func deviceError(err error) bool {
	for _, e := range []syscall.Errno{syscall.EIO, syscall.ENXIO, syscall.ENODEV, syscall.EROFS, 117 /* EUCLEAN */} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// agree checks that all directories belong to one server, and takes new ones in.
func (s *store) agree() error {
	var id disk.Identity
	for _, d := range s.disks {
		if have := d.Identity(); id.IsZero() || id.Cluster.IsZero() && !have.Cluster.IsZero() {
			id = have
		}
	}
	if id.UUID == [16]byte{} {
		if _, err := rand.Read(id.UUID[:]); err != nil {
			return err
		}
	}
	s.uuid = id.UUID
	return s.setIdentity(id)
}

func (s *store) setIdentity(id disk.Identity) error {
	var errs []error
	for _, d := range s.disks {
		errs = append(errs, d.SetIdentity(id))
	}
	return errors.Join(errs...)
}

// identity says what all directories agree on.
func (s *store) identity() disk.Identity { return s.disks[0].Identity() }

// create makes a chunk on the working disk with most free space.
func (s *store) create(id chunk.ID) (*disk.Writer, error) {
	s.mu.Lock()
	busy := s.making[id]
	s.making[id] = true
	s.mu.Unlock()
	if !busy {
		defer func() {
			s.mu.Lock()
			delete(s.making, id)
			s.mu.Unlock()
		}()
	}
	if busy || s.find(id) != nil {
		return nil, fmt.Errorf("create chunk %v: %w", id, disk.ErrExists)
	}
	best := s.roomiest()
	if best == nil {
		return nil, fmt.Errorf("create chunk %v: no disk works: %w", id, disk.ErrFailed)
	}
	return best.Create(id)
}

// hangs says whether a disk does not answer while there are others that may.
func (s *store) hangs(d *disk.Disk) bool { return len(s.disks) > 1 && d.Stalled() }

// roomiest is the working disk with most free space, nil if none works. One that does not answer is the last choice.
func (s *store) roomiest() (best *disk.Disk) {
	var most uint64
	stalled := false
	for _, d := range s.disks {
		free, hangs := d.Space(), d.Stalled()
		if d.Err() == nil && (best == nil || hangs == stalled && free > most || stalled && !hangs) {
			best, most, stalled = d, free, hangs
		}
	}
	return best
}

// copy begins a copy of a chunk: on the disk that has it already, as something to be replaced, if that works and has room, else
// where most space is. at says which disk that is.
func (s *store) copy(id chunk.ID, length uint64, at *atomic.Pointer[disk.Disk]) (*disk.Copy, error) {
	for _, d := range s.disks {
		if h, _ := d.Held(id); h.Writing {
			return nil, fmt.Errorf("copy of chunk %v: %w", id, disk.ErrWriting)
		}
	}
	if d := s.find(id); d != nil && d.Err() == nil && !d.Stalled() {
		at.Store(d)
		if c, err := d.Copy(id, length); err == nil || !errors.Is(err, disk.ErrFull) && !errors.Is(err, disk.ErrFailed) {
			return c, err
		}
	}
	best := s.roomiest()
	if best == nil {
		return nil, fmt.Errorf("copy of chunk %v: no disk works: %w", id, disk.ErrFailed)
	}
	at.Store(best)
	return best.Copy(id, length)
}

// find returns the disk that holds a chunk, nil if none does. Where a disk that fails could not be rid of what was made anew
// on another, it is the one that has more of it that is good.
func (s *store) find(id chunk.ID) *disk.Disk {
	var best *disk.Disk
	var most disk.Held
	for _, d := range s.disks {
		if h, ok := d.Held(id); ok && (best == nil || better(h, most)) {
			best, most = d, h
		}
	}
	return best
}

func better(a, b disk.Held) bool {
	if a.Bad != b.Bad {
		return b.Bad
	}
	return a.Length > b.Length
}

// good says whether there is a whole copy of a chunk.
func (s *store) good(id chunk.ID) bool {
	for _, d := range s.disks {
		if h, ok := d.Held(id); ok && !h.Bad {
			return true
		}
	}
	return false
}

// supersede removes a chunk from all disks but the one where it was made anew. A disk that cannot do so, or hangs, has it
// forgotten: it comes back when the directory is next opened, and find knows which of the two is meant.
func (s *store) supersede(id chunk.ID, by *disk.Disk) error {
	var errs []error
	for _, d := range s.disks {
		if d == by || !d.Has(id) {
			continue
		}
		err := fmt.Errorf("data directory %s hangs", d.Path())
		if !d.Stalled() {
			err = errors.Join(d.Delete(id), d.SyncDeletions([]chunk.ID{id}))
		}
		if err != nil {
			d.Forget(id)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// list returns each chunk once; of one that several disks have, what find finds.
func (s *store) list() []disk.Report {
	var all []disk.Report
	for _, d := range s.disks {
		all = append(all, d.List()...)
	}
	if len(s.disks) == 1 {
		return all
	}
	held := func(r disk.Report) disk.Held { return disk.Held{Length: r.Length, Bad: r.Bad} }
	slices.SortFunc(all, func(a, b disk.Report) int {
		switch {
		case a.ID != b.ID:
			return cmp.Compare(a.ID, b.ID)
		case better(held(a), held(b)):
			return -1
		case better(held(b), held(a)):
			return 1
		}
		return 0
	})
	return slices.CompactFunc(all, func(a, b disk.Report) bool { return a.ID == b.ID })
}

// text makes something that may name a path fit for a message: paths may be any bytes, and what is not UTF-8 cannot be sent.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// infos describes every data directory, those that could not be opened too. It waits for no disk.
func (s *store) infos() []*pb.DiskInfo {
	infos := make([]*pb.DiskInfo, 0, len(s.slots))
	for _, sl := range s.slots {
		if sl.disk == nil {
			infos = append(infos, &pb.DiskInfo{Path: text(sl.path), Error: text(sl.err.Error())})
			continue
		}
		st := sl.disk.Stats()
		info := &pb.DiskInfo{Uuid: fmt.Sprintf("%x", st.UUID), Path: text(st.Path), Filesystem: st.Filesystem, Capacity: st.Capacity, Free: st.Free, Chunks: uint64(st.Chunks),
			Used: st.Used, WriteNs: uint64(st.WriteTime), ReadNs: uint64(st.ReadTime)}
		if st.Err != nil {
			info.Error, info.Free = text(st.Err.Error()), 0
		}
		infos = append(infos, info)
	}
	return infos
}

// working is how many disks take new chunks.
func (s *store) working() int {
	n := 0
	for _, d := range s.disks {
		if d.Err() == nil {
			n++
		}
	}
	return n
}

func (s *store) close() error {
	var errs []error
	for _, d := range s.disks {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}
