package namespace

import (
	"encoding/binary"
	"errors"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// formatVersion is the first byte of every value (of a dentry: its upper half).
const formatVersion = 1

// errDamaged is what a decoder says of a value that no encoder wrote.
var errDamaged = errors.New("damaged record")

// damaged names the record that could not be read.
func damaged(b kv.Bucket, key []byte) error {
	return fserr.New(syscall.EIO, "damaged record in the metadata: %s %x", bucketName(b), key)
}

// decoder takes fields off the front of a value. Once something was missing it yields zeros, and bad is set.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) bytes(n int) []byte {
	if d.bad || n < 0 || n > len(d.b) {
		d.bad = true
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) u8() uint8 {
	if v := d.bytes(1); v != nil {
		return v[0]
	}
	return 0
}

func (d *decoder) u16() uint16 {
	if v := d.bytes(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if v := d.bytes(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if v := d.bytes(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (d *decoder) version() { d.bad = d.u8() != formatVersion || d.bad }

// end says whether the whole value was read and nothing was missing.
func (d *decoder) end() error {
	if d.bad || len(d.b) != 0 {
		return errDamaged
	}
	return nil
}

// counters is the record of the state as a whole. It exists once the cluster has been made.
type counters struct {
	clock       int64 // time of the newest command, ns: commands' times never run backwards
	nextInode   uint64
	nextChunk   uint64
	nextSession uint64
	nextServer  uint32
	inodes      uint64 // that exist, the root and unlinked ones included
	chunks      uint64
	live        uint64 // bytes of files in chunks
	inline      uint64 // bytes of files in their inodes
	deletions   uint64 // copies of chunks that servers have yet to delete
	sessions    uint64
	servers     uint64
}

func (c *counters) encode() []byte {
	b := append(make([]byte, 0, 1+11*8+4), formatVersion)
	for _, v := range []uint64{uint64(c.clock), c.nextInode, c.nextChunk, c.nextSession} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = binary.BigEndian.AppendUint32(b, c.nextServer)
	for _, v := range []uint64{c.inodes, c.chunks, c.live, c.inline, c.deletions, c.sessions, c.servers} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return b
}

func decodeCounters(v []byte) (c counters, err error) {
	d := decoder{b: v}
	d.version()
	c.clock = int64(d.u64())
	c.nextInode, c.nextChunk, c.nextSession = d.u64(), d.u64(), d.u64()
	c.nextServer = d.u32()
	c.inodes, c.chunks, c.live, c.inline = d.u64(), d.u64(), d.u64(), d.u64()
	c.deletions, c.sessions, c.servers = d.u64(), d.u64(), d.u64()
	return c, d.end()
}

// A dentry's value is the version and the type (the upper four bits of the mode) in a byte, and the inode.
func encodeDentry(inode uint64, mode uint32) []byte {
	b := append(make([]byte, 0, 9), formatVersion<<4|byte(mode>>12&15))
	return binary.BigEndian.AppendUint64(b, inode)
}

// decodeDentry returns the inode and its type as in st_mode.
func decodeDentry(v []byte) (inode uint64, typ uint32, err error) {
	if len(v) != 9 || v[0]>>4 != formatVersion {
		return 0, 0, errDamaged
	}
	return binary.BigEndian.Uint64(v[1:]), uint32(v[0]&15) << 12, nil
}

// inode is the record of an inode.
type inode struct {
	num                         uint64 // its key, not in the value
	mode, nlink, uid, gid, rdev uint32
	size                        uint64 // bytes; of a directory the number of its entries
	allocated                   uint64 // bytes of the file that extents cover, inline ones included
	atime, mtime, ctime, btime  int64  // ns
	dataVersion, version        uint64 // log indexes
	parent                      uint64 // of a directory
	xattrBytes                  uint32 // names and values
	symlink                     []byte
	inline                      []piece // sorted, without overlap; their data may lie in the stored value
}

const inodeFixed = 1 + 5*4 + 2*8 + 4*8 + 3*8 + 4 + 2 + 2

func (in *inode) encode() []byte {
	n := inodeFixed + len(in.symlink)
	for i := range in.inline {
		n += 10 + len(in.inline[i].data)
	}
	b := append(make([]byte, 0, n), formatVersion)
	for _, v := range [...]uint32{in.mode, in.nlink, in.uid, in.gid, in.rdev} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	for _, v := range [...]uint64{in.size, in.allocated, uint64(in.atime), uint64(in.mtime), uint64(in.ctime), uint64(in.btime),
		in.dataVersion, in.version, in.parent} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = binary.BigEndian.AppendUint32(b, in.xattrBytes)
	b = binary.BigEndian.AppendUint16(b, uint16(len(in.symlink)))
	b = append(b, in.symlink...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(in.inline)))
	for i := range in.inline {
		p := &in.inline[i]
		b = binary.BigEndian.AppendUint64(b, p.off)
		b = binary.BigEndian.AppendUint16(b, uint16(len(p.data)))
		b = append(b, p.data...)
	}
	return b
}

// decodeInode reads a record; symlink and inline data stay where they are in v.
func decodeInode(num uint64, v []byte) (*inode, error) {
	d := decoder{b: v}
	d.version()
	in := &inode{num: num}
	in.mode, in.nlink, in.uid, in.gid, in.rdev = d.u32(), d.u32(), d.u32(), d.u32(), d.u32()
	in.size, in.allocated = d.u64(), d.u64()
	in.atime, in.mtime, in.ctime, in.btime = int64(d.u64()), int64(d.u64()), int64(d.u64()), int64(d.u64())
	in.dataVersion, in.version, in.parent = d.u64(), d.u64(), d.u64()
	in.xattrBytes = d.u32()
	if n := int(d.u16()); n > 0 {
		in.symlink = d.bytes(n)
	}
	total, last := 0, uint64(0)
	for range d.u16() {
		off, data := d.u64(), d.bytes(int(d.u16()))
		total += len(data)
		if d.bad || len(data) == 0 || off < last || off > posix.MaxSize || total > posix.MaxInline {
			return nil, errDamaged
		}
		last = off + uint64(len(data))
		in.inline = append(in.inline, piece{off: off, len: uint64(len(data)), data: data})
	}
	return in, d.end()
}

// attr is the inode as callers see it. It shares no memory with the record.
func (in *inode) attr() *pb.Attr {
	a := &pb.Attr{
		Inode: in.num, Mode: in.mode, Nlink: in.nlink, Uid: in.uid, Gid: in.gid, Size: in.size, Allocated: in.allocated, Rdev: in.rdev,
		Atime: in.atime, Mtime: in.mtime, Ctime: in.ctime, Btime: in.btime, DataVersion: in.dataVersion, Version: in.version,
		Parent: in.parent, HasXattrs: in.xattrBytes > 0,
	}
	if len(in.symlink) > 0 {
		a.Symlink = append([]byte(nil), in.symlink...)
	}
	return a
}

func (in *inode) typ() uint32  { return in.mode & syscall.S_IFMT }
func (in *inode) isDir() bool  { return in.typ() == syscall.S_IFDIR }
func (in *inode) isFile() bool { return in.typ() == syscall.S_IFREG }
func (in *inode) access(c posix.Cred, want uint32) error {
	return posix.Access(c, in.uid, in.gid, in.mode, want)
}

func (in *inode) inlineBytes() uint64 {
	var n uint64
	for i := range in.inline {
		n += in.inline[i].len
	}
	return n
}

// ChunkRecord is what the state knows of a chunk.
type ChunkRecord struct {
	ID        chunk.ID
	Replicas  uint32           // copies wanted
	MinCopies uint32           // copies that must hold bytes before they may be committed
	Owner     uint64           // the session that writes it; 0: sealed, it never grows again
	Length    uint64           // committed, bytes; 0 with an owner: pending
	Live      uint64           // bytes that extents of files refer to
	Servers   []chunk.ServerID // that hold all of Length
	Targets   []chunk.ServerID // while it has an owner: the servers that it is written to, a superset of Servers
}

// Layout is the chunk's layout as on the wire.
func (c *ChunkRecord) Layout() *pb.Layout {
	return &pb.Layout{Replicas: c.Replicas, MinCopies: c.MinCopies}
}

// Copies are the servers on which a copy, whole or not, may be.
func (c *ChunkRecord) Copies() []chunk.ServerID {
	if c.Owner != 0 {
		return c.Targets
	}
	return c.Servers
}

func (c *ChunkRecord) encode() []byte {
	b := make([]byte, 0, 1+2+8+4+8+2+4*(len(c.Servers)+len(c.Targets)))
	b = append(b, formatVersion, byte(c.Replicas), byte(c.MinCopies))
	b = binary.BigEndian.AppendUint64(b, c.Owner)
	b = binary.BigEndian.AppendUint32(b, uint32(c.Length))
	b = binary.BigEndian.AppendUint64(b, c.Live)
	b = append(b, byte(len(c.Servers)), byte(len(c.Targets)))
	for _, list := range [...][]chunk.ServerID{c.Servers, c.Targets} {
		for _, s := range list {
			b = binary.BigEndian.AppendUint32(b, uint32(s))
		}
	}
	return b
}

func decodeChunk(id chunk.ID, v []byte) (*ChunkRecord, error) {
	d := decoder{b: v}
	d.version()
	c := &ChunkRecord{ID: id, Replicas: uint32(d.u8()), MinCopies: uint32(d.u8()), Owner: d.u64(), Length: uint64(d.u32()), Live: d.u64()}
	servers, targets := int(d.u8()), int(d.u8())
	c.Servers, c.Targets = d.serverIDs(servers), d.serverIDs(targets)
	if c.Length > chunk.MaxLength {
		d.bad = true
	}
	return c, d.end()
}

func (d *decoder) serverIDs(n int) []chunk.ServerID {
	if d.bad || n == 0 || 4*n > len(d.b) {
		d.bad = d.bad || n != 0
		return nil
	}
	out := make([]chunk.ServerID, n)
	for i := range out {
		out[i] = chunk.ServerID(d.u32())
	}
	return out
}

// getInode reads an inode: ESTALE when there is none.
func getInode(r kv.Reader, num uint64) (*inode, error) {
	key := key8(num)
	v := r.Get(bInode, key)
	if v == nil {
		return nil, fserr.New(syscall.ESTALE, "inode %d does not exist", num)
	}
	in, err := decodeInode(num, v)
	if err != nil {
		return nil, damaged(bInode, key)
	}
	return in, nil
}

// getDir reads an inode that must be a directory: ENOTDIR otherwise.
func getDir(r kv.Reader, num uint64) (*inode, error) {
	in, err := getInode(r, num)
	if err == nil && !in.isDir() {
		return nil, syscall.ENOTDIR
	}
	return in, err
}

// getDentry returns the inode under a name, 0 when there is none, and its type as in st_mode.
func getDentry(r kv.Reader, parent uint64, name []byte) (num uint64, typ uint32, err error) {
	key := dentryKey(parent, name)
	v := r.Get(bDentry, key)
	if v == nil {
		return 0, 0, nil
	}
	if num, typ, err = decodeDentry(v); err != nil || num == 0 {
		return 0, 0, damaged(bDentry, key)
	}
	return num, typ, nil
}

// child reads the inode under a name, nil when there is none. A name without an inode is damage.
func child(r kv.Reader, parent uint64, name []byte) (*inode, error) {
	num, _, err := getDentry(r, parent, name)
	if err != nil || num == 0 {
		return nil, err
	}
	key := key8(num)
	v := r.Get(bInode, key)
	in, err := decodeInode(num, v)
	if err != nil {
		return nil, damaged(bInode, key)
	}
	return in, nil
}

// getChunk reads a chunk's record, nil when there is none.
func getChunk(r kv.Reader, id chunk.ID) (*ChunkRecord, error) {
	key := key8(uint64(id))
	v := r.Get(bChunk, key)
	if v == nil {
		return nil, nil
	}
	c, err := decodeChunk(id, v)
	if err != nil {
		return nil, damaged(bChunk, key)
	}
	return c, nil
}
