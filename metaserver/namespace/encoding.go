package namespace

import (
	"cmp"
	"encoding/binary"
	"errors"
	"math/bits"
	"slices"
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
	size                        uint64       // bytes; of a directory the number of its entries
	allocated                   uint64       // bytes of the file that extents cover, inline ones included
	atime, mtime, ctime, btime  int64        // ns
	dataVersion, version        uint64       // log indexes
	parent                      uint64       // of a directory
	xattrBytes                  uint32       // names and values
	layout                      chunk.Layout // of new data, or of what is made in the directory; zero: the cluster's default
	symlink                     []byte
	inline                      []piece // sorted, without overlap; their data may lie in the stored value
}

const inodeFixed = 1 + 5*4 + 2*8 + 4*8 + 3*8 + 4 + 2 + 2

func (in *inode) encode() []byte {
	n := inodeFixed + len(in.symlink)
	for i := range in.inline {
		n += 10 + len(in.inline[i].data)
	}
	version := byte(formatVersion)
	if !in.layout.IsZero() {
		version = inodeWithLayout
	}
	b := append(make([]byte, 0, n+3), version)
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
	if version == inodeWithLayout {
		b = append(b, byte(in.layout.Data), byte(in.layout.Parity), byte(in.layout.Min))
	}
	return b
}

// inodeWithLayout is the version of records of inodes that have a layout of their own, which is at the end.
const inodeWithLayout = 2

// decodeInode reads a record; symlink and inline data stay where they are in v.
func decodeInode(num uint64, v []byte) (*inode, error) {
	d := decoder{b: v}
	version := d.u8()
	d.bad = d.bad || version != formatVersion && version != inodeWithLayout
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
	if version == inodeWithLayout {
		in.layout = chunk.Layout{Data: int(d.u8()), Parity: int(d.u8()), Min: int(d.u8())}
		d.bad = d.bad || in.layout.Check(false) != nil
	}
	return in, d.end()
}

// attr is the inode as callers see it. It shares no memory with the record.
func (in *inode) attr() *pb.Attr {
	a := &pb.Attr{
		Inode: in.num, Mode: in.mode, Nlink: in.nlink, Uid: in.uid, Gid: in.gid, Size: in.size, Allocated: in.allocated, Rdev: in.rdev,
		Atime: in.atime, Mtime: in.mtime, Ctime: in.ctime, Btime: in.btime, DataVersion: in.dataVersion, Version: in.version,
		Parent: in.parent, HasXattrs: in.xattrBytes > 0, Layout: in.layout.Proto(),
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
	ID      chunk.ID
	Layout  chunk.Layout
	Owner   uint64           // the session that writes it, or Rewriter; 0: sealed, it never grows again
	Length  uint64           // committed, bytes; 0 with an owner: pending
	Live    uint64           // bytes that extents of files refer to
	Servers []chunk.ServerID // where each shard is, or is written; 0: nowhere. One for each of Layout.Width()
	Held    uint32           // bit i: shard i is whole on Servers[i], up to Length
	Moves   []Move           // shards of a sealed chunk that are being made elsewhere, or anew
	// Writer is the session that wrote the chunk when repair sealed it, until it gives the chunk up; 0: none. Whatever it wrote
	// and had not committed may be nowhere else.
	Writer uint64
}

// Keeper is the session, or Rewriter, for which the chunk stays though nothing may refer to it; 0: none.
func (c *ChunkRecord) Keeper() uint64 { return cmp.Or(c.Owner, c.Writer) }

// Move is a shard that a server is to get.
type Move struct {
	Shard   int
	Server  chunk.ServerID
	Started uint64 // log index of the command; tells this attempt from others
}

// Stored is the id under which servers keep a shard.
func (c *ChunkRecord) Stored(shard int) chunk.ID { return c.ID.Stored(c.Layout, shard) }

// Holds tells whether a shard is whole on its server.
func (c *ChunkRecord) Holds(shard int) bool { return c.Held>>shard&1 != 0 }

// Holders is how many shards are whole.
func (c *ChunkRecord) Holders() int { return bits.OnesCount32(c.Held) }

// Full tells whether all shards are whole.
func (c *ChunkRecord) Full() bool { return c.Holders() == c.Layout.Width() }

// ShardOn returns the shard that belongs on a server, -1 for none.
func (c *ChunkRecord) ShardOn(server chunk.ServerID) int { return slices.Index(c.Servers, server) }

// move returns the index of the move of a shard, -1 for none.
func (c *ChunkRecord) move(shard int) int {
	return slices.IndexFunc(c.Moves, func(m Move) bool { return m.Shard == shard })
}

// BelongsOn tells whether a server may have something under a stored id of the chunk.
func (c *ChunkRecord) BelongsOn(server chunk.ServerID, stored chunk.ID) bool {
	for shard, s := range c.Servers {
		if s == server && c.Stored(shard) == stored {
			return true
		}
	}
	return slices.ContainsFunc(c.Moves, func(m Move) bool { return m.Server == server && c.Stored(m.Shard) == stored })
}

// Copies calls fn for every place where something of the chunk, whole or not, may be.
func (c *ChunkRecord) Copies(fn func(server chunk.ServerID, stored chunk.ID)) {
	for shard, s := range c.Servers {
		if s != 0 {
			fn(s, c.Stored(shard))
		}
	}
	for _, m := range c.Moves {
		if c.Servers[m.Shard] != m.Server {
			fn(m.Server, c.Stored(m.Shard))
		}
	}
}

// The versions of chunk records. The one before these knew copies only.
const (
	chunkFormat     = 2
	chunkWithWriter = 3 // of a chunk that was sealed under its writer, who is at the end
)

func (c *ChunkRecord) encode() []byte {
	b := make([]byte, 0, 1+3+4+8+4+8+4+4*len(c.Servers)+1+13*len(c.Moves)+8)
	version := byte(chunkFormat)
	if c.Writer != 0 {
		version = chunkWithWriter
	}
	b = append(b, version, byte(c.Layout.Data), byte(c.Layout.Parity), byte(c.Layout.Min))
	b = binary.BigEndian.AppendUint32(b, uint32(c.Layout.Cell))
	b = binary.BigEndian.AppendUint64(b, c.Owner)
	b = binary.BigEndian.AppendUint32(b, uint32(c.Length))
	b = binary.BigEndian.AppendUint64(b, c.Live)
	b = binary.BigEndian.AppendUint32(b, c.Held)
	for _, s := range c.Servers {
		b = binary.BigEndian.AppendUint32(b, uint32(s))
	}
	b = append(b, byte(len(c.Moves)))
	for _, m := range c.Moves {
		b = binary.BigEndian.AppendUint32(append(b, byte(m.Shard)), uint32(m.Server))
		b = binary.BigEndian.AppendUint64(b, m.Started)
	}
	if version == chunkWithWriter {
		b = binary.BigEndian.AppendUint64(b, c.Writer)
	}
	return b
}

func decodeChunk(id chunk.ID, v []byte) (*ChunkRecord, error) {
	d := decoder{b: v}
	version := d.u8()
	switch version {
	case chunkFormat, chunkWithWriter:
	case 1:
		return decodeCopies(id, &d)
	default:
		return nil, errDamaged
	}
	c := &ChunkRecord{ID: id, Layout: chunk.Layout{Data: int(d.u8()), Parity: int(d.u8()), Min: int(d.u8()), Cell: int(d.u32())}}
	c.Owner, c.Length, c.Live, c.Held = d.u64(), uint64(d.u32()), d.u64(), d.u32()
	if d.bad || c.Layout.Check(true) != nil {
		return nil, errDamaged
	}
	c.Servers = d.serverIDs(c.Layout.Width())
	for range d.u8() {
		m := Move{Shard: int(d.u8()), Server: chunk.ServerID(d.u32()), Started: d.u64()}
		if d.bad = d.bad || m.Shard >= c.Layout.Width() || m.Server == 0; d.bad {
			break
		}
		c.Moves = append(c.Moves, m)
	}
	if version == chunkWithWriter {
		c.Writer = d.u64()
		d.bad = d.bad || c.Writer == 0 || c.Owner != 0
	}
	if err := d.end(); err != nil || !c.plausible() {
		return nil, errDamaged
	}
	return c, nil
}

func (c *ChunkRecord) plausible() bool {
	for shard := range 32 {
		if c.Holds(shard) && (shard >= len(c.Servers) || c.Servers[shard] == 0) {
			return false
		}
	}
	return c.Length <= chunk.MaxLength && c.Length%uint64(c.Layout.Row()) == 0
}

// decodeCopies reads the first format: copies wanted, copies that count, owner, length, live bytes, who holds it and, while it
// is written, to whom.
func decodeCopies(id chunk.ID, d *decoder) (*ChunkRecord, error) {
	replicas, least := int(d.u8()), int(d.u8())
	c := &ChunkRecord{ID: id, Owner: d.u64(), Length: uint64(d.u32()), Live: d.u64()}
	holders, targets := int(d.u8()), int(d.u8())
	held, written := d.serverIDs(holders), d.serverIDs(targets)
	c.Layout = chunk.Copies(max(replicas, holders, targets)).WithMin(least)
	if d.end() != nil || c.Layout.Check(false) != nil || c.Length > chunk.MaxLength {
		return nil, errDamaged
	}
	c.Servers = held
	if c.Owner != 0 {
		c.Servers = written
	}
	for i, s := range c.Servers {
		if c.Length > 0 && slices.Contains(held, s) {
			c.Held |= 1 << i
		}
	}
	c.Servers = append(c.Servers, make([]chunk.ServerID, c.Layout.Width()-len(c.Servers))...)
	return c, nil
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
