package namespace

import (
	"encoding/binary"
	"math"
	"slices"
	"syscall"

	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	defaultReadDir = 1024
	maxReadDir     = 4096
	// maxReadDirBytes bounds what is listed at once, roughly, in bytes: entries may be symlinks with long targets.
	maxReadDirBytes = 2 << 20
	// maxReplyExtents bounds an ExtentsReply, so that it stays well below the size of a message.
	maxReplyExtents = 32 << 10
)

// Lookup finds a name. child is nil when the directory has no such name. The caller needs search permission on it.
func Lookup(r kv.Reader, cred posix.Cred, parent uint64, name []byte) (found, dir *pb.Attr, err error) {
	d, err := searchDir(r, cred, parent, name)
	if err != nil {
		return nil, nil, err
	}
	in, err := child(r, parent, name)
	if err != nil {
		return nil, nil, err
	}
	if in != nil {
		found = in.attr()
	}
	return found, d.attr(), nil
}

// GetAttr reads an inode's attributes: ESTALE when it does not exist.
func GetAttr(r kv.Reader, num uint64) (*pb.Attr, error) {
	in, err := getInode(r, num)
	if err != nil {
		return nil, err
	}
	return in.attr(), nil
}

// Open checks that the caller may have the access asked for (bits as of access(2)), and returns attributes and, of a file,
// the extents of its first block.
func Open(r kv.Reader, cred posix.Cred, num uint64, access uint32) (*pb.ExtentsReply, error) {
	in, err := getInode(r, num)
	if err != nil {
		return nil, err
	}
	if access&^(posix.Read|posix.Write|posix.Execute) != 0 {
		return nil, fserr.New(syscall.EINVAL, "access bits %#o", access)
	}
	if err := in.access(cred, access); err != nil {
		return nil, err
	}
	switch {
	case in.isDir() && access&posix.Write != 0:
		return nil, syscall.EISDIR
	case in.isFile():
		return extents(r, in, 0, 0)
	}
	return &pb.ExtentsReply{Attr: in.attr()}, nil
}

// Extents describes a range of a file; length 0 is to the end of the 64 MiB block that holds offset. Where there are too
// many extents for one reply, it describes less: up to the reply's `end`.
func Extents(r kv.Reader, num, offset, length uint64) (*pb.ExtentsReply, error) {
	in, err := getInode(r, num)
	if err != nil {
		return nil, err
	}
	if !in.isFile() {
		return nil, fserr.New(syscall.EINVAL, "inode %d is not a regular file", num)
	}
	return extents(r, in, offset, length)
}

func extents(r kv.Reader, in *inode, offset, length uint64) (*pb.ExtentsReply, error) {
	if offset > posix.MaxSize || length > posix.MaxSize {
		return nil, fserr.New(syscall.EINVAL, "a range of %d bytes at %d", length, offset)
	}
	end := offset + length
	if length == 0 {
		end = (offset/posix.ExtentBlock + 1) * posix.ExtentBlock
	}
	list, end, err := stored(r, in, offset, end)
	if err != nil {
		return nil, err
	}
	var inline []piece
	for i := range in.inline {
		if p := &in.inline[i]; p.end() > offset && p.off < end {
			inline = append(inline, p.cut(max(p.off, offset), min(p.end(), end)))
		}
	}
	list = merge(list, inline)
	reply := &pb.ExtentsReply{Attr: in.attr(), Offset: offset, End: end, Extents: make([]*pb.Extent, len(list))}
	seen := map[chunk.ID]bool{}
	for i := range list {
		p := &list[i]
		reply.Extents[i] = p.extent()
		if p.chunk == 0 || seen[p.chunk] {
			continue
		}
		seen[p.chunk] = true
		c, err := getChunk(r, p.chunk)
		if err != nil {
			return nil, err
		}
		if c == nil {
			return nil, damaged(bChunk, key8(uint64(p.chunk)))
		}
		reply.Chunks = append(reply.Chunks, c.info())
	}
	return reply, nil
}

// info tells readers where the chunk is. Where too few shards are known to be whole, it names the damaged ones too: checksums
// keep a reader from taking anything wrong, and what is left of them may be what it needs.
func (c *ChunkRecord) info() *pb.ChunkInfo {
	info := &pb.ChunkInfo{Id: uint64(c.ID), Length: c.Length, Servers: make([]uint32, len(c.Servers)), Layout: c.Layout.Proto(),
		Open: c.Keeper() != 0 && c.Owner != Rewriter}
	desperate := c.Holders() < c.Layout.Data
	for shard, s := range c.Servers {
		if c.Holds(shard) || desperate {
			info.Servers[shard] = uint32(s)
		}
	}
	return info
}

// stored returns the chunk extents of a range, clipped, and where what they describe ends.
func stored(r kv.Reader, in *inode, offset, end uint64) (list []piece, _ uint64, err error) {
	if in.allocated == in.inlineBytes() {
		return nil, end, nil
	}
	r.Scan(bExtent, extentKey(in.num, offset/posix.ExtentBlock), func(k, v []byte) bool {
		if len(k) != 16 || !hasPrefix8(k, in.num) {
			return false
		}
		number := binary.BigEndian.Uint64(k[8:])
		if number > (end-1)/posix.ExtentBlock {
			return false
		}
		b, berr := parseBlock(number, v)
		if berr == nil {
			list, end, berr = b.clipped(list, offset, end)
		}
		if berr != nil {
			err = damaged(bExtent, k)
		}
		return err == nil
	})
	return list, end, err
}

// clipped appends the extents of a range to list. When that gets too long, the range ends where the next one starts.
func (b block) clipped(list []piece, offset, end uint64) ([]piece, uint64, error) {
	i := b.after(offset)
	j := max(b.from(end), i)
	full := j-i > maxReplyExtents-len(list)
	if full {
		j = i + maxReplyExtents - len(list) + 1
	}
	more, err := b.pieces(i, j)
	if err != nil {
		return nil, 0, err
	}
	if full {
		end = more[len(more)-1].off
		more = more[:len(more)-1]
	}
	for k := range more {
		p := &more[k]
		if p.end() <= offset || p.off >= end {
			return nil, 0, errDamaged
		}
		list = append(list, p.cut(max(p.off, offset), min(p.end(), end)))
	}
	return list, end, nil
}

// ReadDir lists a directory in the bytewise order of its names, from the first after `after`: at most limit entries (0:
// 1024, never more than 4096 or some 2 MiB). eof: there are no more. The caller needs read permission.
func ReadDir(r kv.Reader, cred posix.Cred, num uint64, after []byte, limit int) (entries []*pb.Dirent, eof bool, dir *pb.Attr, err error) {
	d, err := getDir(r, num)
	if err != nil {
		return nil, false, nil, err
	}
	if err := d.access(cred, posix.Read); err != nil {
		return nil, false, nil, err
	}
	if len(after) > posix.MaxName {
		return nil, false, nil, fserr.New(syscall.EINVAL, "a name of %d bytes to go on after", len(after))
	}
	if limit <= 0 {
		limit = defaultReadDir
	}
	limit = min(limit, maxReadDir)
	from := dentryKey(num, after)
	if len(after) > 0 {
		from = append(from, 0) // the first key behind it
	}
	eof = true
	size := 0
	r.Scan(bDentry, from, func(k, v []byte) bool {
		if !hasPrefix8(k, num) {
			return false
		}
		if len(entries) == limit || size > maxReadDirBytes {
			eof = false
			return false
		}
		var e *pb.Dirent
		if e, err = readEntry(r, k, v); err != nil {
			return false
		}
		entries = append(entries, e)
		size += 128 + len(e.Name) + len(e.Attr.Symlink)
		return true
	})
	if err != nil {
		return nil, false, nil, err
	}
	return entries, eof, d.attr(), nil
}

func readEntry(r kv.Reader, k, v []byte) (*pb.Dirent, error) {
	num, _, err := decodeDentry(v)
	if err != nil {
		return nil, damaged(bDentry, k)
	}
	key := key8(num)
	in, err := decodeInode(num, r.Get(bInode, key))
	if err != nil {
		return nil, damaged(bInode, key)
	}
	return &pb.Dirent{Name: append([]byte(nil), k[8:]...), Attr: in.attr()}, nil
}

// GetXattr reads an extended attribute: ENODATA when there is none.
func GetXattr(r kv.Reader, cred posix.Cred, num uint64, name string) ([]byte, error) {
	in, err := getInode(r, num)
	if err != nil {
		return nil, err
	}
	if err := xattrAccess(in, cred, name, posix.Read); err != nil {
		return nil, err
	}
	key := xattrKey(num, name)
	v, err := decodeXattr(r.Get(bXattr, key))
	switch {
	case err != nil:
		return nil, damaged(bXattr, key)
	case v == nil:
		return nil, syscall.ENODATA
	}
	return append([]byte{}, v...), nil
}

// ListXattr lists the names of an inode's extended attributes, trusted ones for root only.
func ListXattr(r kv.Reader, cred posix.Cred, num uint64) ([]string, error) {
	in, err := getInode(r, num)
	if err != nil {
		return nil, err
	}
	var names []string
	if in.xattrBytes == 0 {
		return nil, nil
	}
	scan8(r, bXattr, num, func(rest, _ []byte) bool {
		if name := string(rest); cred.Root() || !isTrusted(name) {
			names = append(names, name)
		}
		return true
	})
	return names, nil
}

// TotalsRecord is what Totals returns.
type TotalsRecord struct {
	Inodes      uint64 // in use, the root and unlinked but open ones included
	Chunks      uint64
	LiveBytes   uint64 // of files in chunks
	InlineBytes uint64 // of files in their inodes
	Deletions   uint64 // copies of chunks that servers have yet to delete
	Sessions    uint64
	Servers     uint64 // registered
	Clock       int64  // time of the newest command, ns
	Cluster     []byte // 16 bytes; nil: the cluster has not been initialised
}

// Totals reads the totals of the state, which are zero before the cluster is made.
func Totals(r kv.Reader) TotalsRecord {
	c, err := decodeCounters(r.Get(bState, countersKey))
	if err != nil {
		return TotalsRecord{}
	}
	return TotalsRecord{Inodes: c.inodes, Chunks: c.chunks, LiveBytes: c.live, InlineBytes: c.inline, Deletions: c.deletions,
		Sessions: c.sessions, Servers: c.servers, Clock: c.clock, Cluster: append([]byte(nil), r.Get(bState, clusterKey)...)}
}

// Servers lists all registered chunk servers by id.
func Servers(r kv.Reader) []ServerRecord {
	var out []ServerRecord
	r.Scan(bServer, nil, func(k, v []byte) bool {
		if len(k) == 4 {
			if s, err := decodeServer(chunk.ServerID(binary.BigEndian.Uint32(k)), v); err == nil {
				out = append(out, *s)
			}
		}
		return true
	})
	return out
}

// Server reads one chunk server.
func Server(r kv.Reader, id chunk.ServerID) (*ServerRecord, bool) {
	s, err := getServer(r, id)
	return s, err == nil && s != nil
}

// Sessions lists the sessions that live.
func Sessions(r kv.Reader) []uint64 {
	var out []uint64
	r.Scan(bSession, nil, func(k, _ []byte) bool {
		if len(k) == 8 {
			out = append(out, binary.BigEndian.Uint64(k))
		}
		return true
	})
	return out
}

// Owned is how many chunks are being written, or kept for who wrote them, rewritten ones included.
func Owned(r kv.Reader) uint64 {
	n := uint64(len(Rewrites(r)))
	r.Scan(bSession, nil, func(k, v []byte) bool {
		if len(k) == 8 {
			if s, err := decodeSession(binary.BigEndian.Uint64(k), v); err == nil {
				n += uint64(s.Owned)
			}
		}
		return true
	})
	return n
}

// HasSession tells whether a session lives.
func HasSession(r kv.Reader, id uint64) bool {
	_, ok, _ := getWindow(r, id)
	return ok
}

// Session reads one session.
func Session(r kv.Reader, id uint64) (*SessionRecord, bool) {
	s, err := getSession(r, id)
	return s, err == nil && s != nil
}

// Held lists the unlinked inodes that stay because a session has them open.
func Held(r kv.Reader, session uint64) []uint64 { return numbersUnder(r, bHeld, session) }

// Holds tells whether an unlinked inode stays because that session has it open.
func Holds(r kv.Reader, session, inode uint64) bool {
	return r.Get(bOrphan, key16(inode, session)) != nil
}

// Chunk reads a chunk's record.
func Chunk(r kv.Reader, id chunk.ID) (*ChunkRecord, bool) {
	c, err := getChunk(r, id)
	return c, err == nil && c != nil
}

// HasCopy tells whether the state knows of a copy, whole or being written, of a chunk on a server.
func HasCopy(r kv.Reader, server chunk.ServerID, id chunk.ID) bool {
	return r.Get(bServerChunk, serverChunkKey(server, id)) != nil
}

// Copies calls fn for every stored id of which a server is to have a copy, in the order of the ids, until it returns false.
func Copies(r kv.Reader, server chunk.ServerID, fn func(chunk.ID) bool) { CopiesFrom(r, server, 0, fn) }

// CopiesFrom is Copies for stored ids of at least from.
func CopiesFrom(r kv.Reader, server chunk.ServerID, from chunk.ID, fn func(chunk.ID) bool) {
	r.Scan(bServerChunk, serverChunkKey(server, from), func(k, _ []byte) bool {
		return len(k) == 12 && binary.BigEndian.Uint32(k) == uint32(server) && fn(chunk.ID(binary.BigEndian.Uint64(k[4:])))
	})
}

// Degraded calls fn for every sealed chunk with an id of at least from that has not all its shards whole, or has some on the
// move, in the order of the ids, until it returns false.
func Degraded(r kv.Reader, from chunk.ID, fn func(chunk.ID) bool) {
	r.Scan(bDegraded, key8(uint64(from)), func(k, _ []byte) bool {
		return len(k) != 8 || fn(chunk.ID(binary.BigEndian.Uint64(k)))
	})
}

// Chunks calls fn for every chunk with an id of at least from, in the order of the ids, until it returns false. A record that
// cannot be read is left out.
func Chunks(r kv.Reader, from chunk.ID, fn func(*ChunkRecord) bool) {
	r.Scan(bChunk, key8(uint64(from)), func(k, v []byte) bool {
		if len(k) != 8 {
			return true
		}
		c, err := decodeChunk(chunk.ID(binary.BigEndian.Uint64(k)), v)
		return err != nil || fn(c)
	})
}

// LayoutOf is how new data of an inode, or of what is made in it, is stored; zero: as the cluster's default says.
func LayoutOf(r kv.Reader, num uint64) (chunk.Layout, error) {
	in, err := getInode(r, num)
	if err != nil {
		return chunk.Layout{}, err
	}
	return in.layout, nil
}

// Deletions lists at most limit stored ids that a server is to delete and that went before a time (ns), the oldest first.
func Deletions(r kv.Reader, server chunk.ServerID, before int64, limit int) []chunk.ID {
	out, _ := DeletionsAfter(r, server, nil, before, limit)
	return out
}

// DeletionsAfter is Deletions behind the last one that it returned before; nil: all. What it says of the last one is to be
// given to it the next time.
func DeletionsAfter(r kv.Reader, server chunk.ServerID, after []byte, before int64, limit int) (out []chunk.ID, last []byte) {
	from := deletionKey(server, 0, 0)
	if after != nil {
		from = append(slices.Clone(after), 0) // the first key behind it
	}
	last = slices.Clone(after)
	r.Scan(bDeletion, from, func(k, _ []byte) bool {
		if len(k) != 20 || binary.BigEndian.Uint32(k) != uint32(server) || len(out) >= limit {
			return false
		}
		if t := binary.BigEndian.Uint64(k[4:]); t > math.MaxInt64 || int64(t) >= before {
			return false
		}
		out = append(out, chunk.ID(binary.BigEndian.Uint64(k[12:])))
		last = append(last[:0], k...)
		return true
	})
	return out, last
}

// NextChunk is the id that the next allocated chunk gets: every id from it on is unknown to the state.
func NextChunk(r kv.Reader) chunk.ID {
	c, err := decodeCounters(r.Get(bState, countersKey))
	if err != nil {
		return 0
	}
	return chunk.ID(c.nextChunk)
}

// Result returns the recorded result of a command, nil when there is none.
func Result(r kv.Reader, session, sequence uint64) *pb.Result {
	if sequence == 0 {
		return nil
	}
	v := r.Get(bResult, key16(session, sequence))
	if v == nil {
		return nil
	}
	res := new(pb.Result)
	if err := proto.Unmarshal(v, res); err != nil {
		return nil
	}
	return res
}
