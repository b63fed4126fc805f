package namespace

import (
	"encoding/binary"
	"maps"
	"slices"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	idSize         = 16   // bytes of a cluster's id and of a server's uuid
	maxAddress     = 1024 // bytes
	maxDomains     = 16   // levels
	maxDomainBytes = 255  // of a level's name, and of a domain's
	rootMode       = syscall.S_IFDIR | 0o755
)

// initCluster makes the state of a new cluster: its id, and a root directory that belongs to whom op says. A cluster that exists
// already stays as it is, and its id is returned.
func (x *tx) initCluster(op *pb.InitCluster) (*pb.Result, error) {
	if id := x.Get(bState, clusterKey); id != nil {
		return &pb.Result{Cluster: append([]byte(nil), id...)}, nil
	}
	if len(op.Cluster) != idSize {
		return nil, fserr.New(syscall.EINVAL, "a cluster id of %d bytes, it has %d", len(op.Cluster), idSize)
	}
	x.now = max(x.now, op.Time)
	x.c = counters{clock: x.now, nextInode: posix.RootInode + 1, nextChunk: 1, nextSession: 1, nextServer: 1, inodes: 1}
	id := append([]byte(nil), op.Cluster...)
	x.Put(bState, clusterKey, id)
	x.putInode(&inode{num: posix.RootInode, parent: posix.RootInode, mode: rootMode, nlink: 2, uid: op.Uid, gid: op.Gid,
		atime: x.now, mtime: x.now, ctime: x.now, btime: x.now, version: x.index, dataVersion: x.index})
	return &pb.Result{Cluster: id}, nil
}

// ServerRecord is a chunk server as the state knows it.
type ServerRecord struct {
	ID      chunk.ServerID
	UUID    []byte            // 16 bytes, made by the server
	Address string            // host:port
	Domain  map[string]string // zone, rack, host
	// Draining: what it holds goes elsewhere, and nothing new comes.
	Draining bool
}

const serverDraining = 1 // a bit of the flags at the end of the record, which are left out while none is set

func (s *ServerRecord) encode() []byte {
	b := append([]byte{formatVersion}, s.UUID...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(s.Address)))
	b = append(b, s.Address...)
	b = append(b, byte(len(s.Domain)))
	for _, level := range slices.Sorted(maps.Keys(s.Domain)) {
		b = append(append(b, byte(len(level))), level...)
		b = append(append(b, byte(len(s.Domain[level]))), s.Domain[level]...)
	}
	if s.Draining {
		b = append(b, serverDraining)
	}
	return b
}

func decodeServer(id chunk.ServerID, v []byte) (*ServerRecord, error) {
	d := decoder{b: v}
	d.version()
	s := &ServerRecord{ID: id, UUID: append([]byte(nil), d.bytes(idSize)...)}
	s.Address = string(d.bytes(int(d.u16())))
	if n := int(d.u8()); n > 0 && n <= maxDomains {
		s.Domain = make(map[string]string, n)
		last := ""
		for i := range n {
			level := string(d.bytes(int(d.u8())))
			d.bad = d.bad || i > 0 && level <= last
			s.Domain[level] = string(d.bytes(int(d.u8())))
			last = level
		}
	} else {
		d.bad = d.bad || n > 0
	}
	if !d.bad && len(d.b) > 0 {
		flags := d.u8()
		s.Draining = flags&serverDraining != 0
		d.bad = flags != serverDraining
	}
	return s, d.end()
}

func getServer(r kv.Reader, id chunk.ServerID) (*ServerRecord, error) {
	key := serverKey(id)
	v := r.Get(bServer, key)
	if v == nil {
		return nil, nil
	}
	s, err := decodeServer(id, v)
	if err != nil {
		return nil, damaged(bServer, key)
	}
	return s, nil
}

func checkRegistration(op *pb.RegisterServer) error {
	switch {
	case len(op.Uuid) != idSize:
		return fserr.New(syscall.EINVAL, "a server uuid of %d bytes, it has %d", len(op.Uuid), idSize)
	case op.Address == "" || len(op.Address) > maxAddress:
		return fserr.New(syscall.EINVAL, "a server address of %d bytes, 1 to %d", len(op.Address), maxAddress)
	case len(op.Domain) > maxDomains:
		return fserr.New(syscall.EINVAL, "a server in %d failure domains, at most %d", len(op.Domain), maxDomains)
	}
	for _, level := range slices.Sorted(maps.Keys(op.Domain)) {
		if level == "" || len(level) > maxDomainBytes || len(op.Domain[level]) > maxDomainBytes {
			return fserr.New(syscall.EINVAL, "a failure domain whose name is not of 1 to %d bytes", maxDomainBytes)
		}
	}
	return nil
}

// registerServer gives a server its id, or records the new address of one that comes back. An id that the server claims
// to have must be the one recorded for its uuid.
func (x *tx) registerServer(op *pb.RegisterServer) (*pb.Result, error) {
	if err := checkRegistration(op); err != nil {
		return nil, err
	}
	s := &ServerRecord{UUID: op.Uuid, Address: op.Address, Domain: op.Domain}
	if v := x.Get(bServerUUID, op.Uuid); v != nil {
		if len(v) != 5 || v[0] != formatVersion {
			return nil, damaged(bServerUUID, op.Uuid)
		}
		s.ID = chunk.ServerID(binary.BigEndian.Uint32(v[1:]))
	}
	if op.Server != 0 && chunk.ServerID(op.Server) != s.ID {
		return nil, fserr.New(syscall.EINVAL, "the server at %s says that it is number %d, but its uuid %x has %d (0: none, or it was removed from the cluster; then give it an empty data directory)", op.Address, op.Server, op.Uuid, s.ID)
	}
	if s.ID == 0 {
		s.ID = chunk.ServerID(x.c.nextServer)
		x.c.nextServer++
		x.c.servers++
		x.Put(bServerUUID, append([]byte(nil), op.Uuid...), binary.BigEndian.AppendUint32([]byte{formatVersion}, uint32(s.ID)))
	} else {
		old, err := getServer(x, s.ID)
		if err != nil {
			return nil, err
		}
		s.Draining = old != nil && old.Draining
	}
	x.Put(bServer, serverKey(s.ID), s.encode())
	return &pb.Result{Server: uint32(s.ID), Cluster: append([]byte(nil), x.Get(bState, clusterKey)...)}, nil
}

// setServer changes what an operator may change about a server.
func (x *tx) setServer(op *pb.SetServer) (*pb.Result, error) {
	s, err := x.registered(op.Server)
	if err != nil {
		return nil, err
	}
	s.Draining = op.Draining
	x.Put(bServer, serverKey(s.ID), s.encode())
	return &pb.Result{Server: op.Server}, nil
}

// removeServer forgets a server that holds nothing. Its number is not used again.
func (x *tx) removeServer(op *pb.RemoveServer) (*pb.Result, error) {
	s, err := x.registered(op.Server)
	if err != nil {
		return nil, err
	}
	holds := false
	Copies(x, s.ID, func(chunk.ID) bool { holds = true; return false })
	if holds {
		return nil, fserr.New(syscall.EBUSY, "chunk server %d still holds data", op.Server)
	}
	var keys [][]byte
	x.Scan(bDeletion, deletionKey(s.ID, 0, 0), func(k, _ []byte) bool {
		if len(k) != 20 || binary.BigEndian.Uint32(k) != op.Server {
			return false
		}
		keys = append(keys, append([]byte(nil), k...))
		return true
	})
	for _, k := range keys {
		x.Delete(bDeletion, k)
		x.Delete(bDeletionIndex, serverChunkKey(s.ID, chunk.ID(binary.BigEndian.Uint64(k[12:]))))
	}
	if err := x.subtract(&x.c.deletions, uint64(len(keys)), "deletions"); err != nil {
		return nil, err
	}
	x.Delete(bServerUUID, s.UUID)
	x.Delete(bServer, serverKey(s.ID))
	return &pb.Result{Server: op.Server}, x.subtract(&x.c.servers, 1, "servers")
}

// registered returns a server that is to be changed: ENOENT when there is none.
func (x *tx) registered(id uint32) (*ServerRecord, error) {
	s, err := getServer(x, chunk.ServerID(id))
	if err == nil && s == nil {
		err = fserr.New(syscall.ENOENT, "there is no chunk server %d", id)
	}
	return s, err
}
