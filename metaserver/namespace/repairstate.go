package namespace

import (
	"bytes"
	"encoding/binary"
	"slices"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// MaxFixes bounds the fixes of one RepairState, and so what it reads and writes: of a common one a record and an entry of an
// index, of the largest (a chunk of 32 shards) some hundred keys.
const MaxFixes = 1024

// repairState puts right what a check found. It never trusts what the check saw where it can look again: each fix is worked
// out from the state as it is now, and left out where nothing is wrong (any more), or where only the checked replica is damaged.
// Sums over more records than a command may read, such as the live bytes of a chunk, are taken from the check, as the difference
// that it found. That difference is the same at any later time, as every command changes a sum by as much as what is summed up; but
// it counts once. So the state remembers its last repair, and one that began with an older check is refused.
func (x *tx) repairState(op *pb.RepairState) (*pb.Result, error) {
	last, err := lastRepair(x)
	switch {
	case err != nil:
		return nil, err
	case len(op.Fixes) > MaxFixes:
		return nil, fserr.New(syscall.EINVAL, "%d things to repair, at most %d", len(op.Fixes), MaxFixes)
	case last > max(op.Checked, op.After):
		return nil, fserr.New(syscall.EINVAL, "the state was repaired by command %d, since it was checked at %d", last, op.Checked)
	}
	changed := false
	count := recount{x: x, left: maxRecounted}
	for _, fix := range op.Fixes {
		changed = x.fix(fix, op.Spare, &count) || changed
	}
	if !changed {
		return &pb.Result{Mismatch: true}, nil
	}
	x.Put(bState, repairedKey, binary.BigEndian.AppendUint64([]byte{formatVersion}, x.index))
	return &pb.Result{}, nil
}

// repairedKey is of the index of the last command that repaired something.
var repairedKey = []byte("repaired")

func lastRepair(x *tx) (uint64, error) {
	switch v := x.Get(bState, repairedKey); {
	case v == nil:
		return 0, nil
	case len(v) != 9 || v[0] != formatVersion:
		return 0, damaged(bState, repairedKey)
	default:
		return binary.BigEndian.Uint64(v[1:]), nil
	}
}

// fix puts one thing right. It tells whether that changed anything, and does nothing by halves.
func (x *tx) fix(f *pb.StateFix, spare bool, count *recount) bool {
	switch f.GetKind() {
	case pb.StateFix_ADD:
		return x.fixSum(f, count)
	case pb.StateFix_NEXT:
		return x.fixNext(f)
	case pb.StateFix_INODE:
		return x.fixInode(f.Id)
	case pb.StateFix_PARENT:
		return x.fixParent(f)
	case pb.StateFix_CHUNK:
		return x.fixChunk(chunk.ID(f.Id), spare)
	case pb.StateFix_GARBAGE:
		return x.fixGarbage(chunk.ID(f.Id))
	case pb.StateFix_INDEX:
		return x.fixIndex(f)
	case pb.StateFix_NAME:
		return x.fixName(f.Key)
	case pb.StateFix_REMAKE:
		return x.remake(f)
	case pb.StateFix_ATTACH:
		return x.attach(f)
	}
	return false
}

func (x *tx) fixSum(f *pb.StateFix, count *recount) bool {
	if f.Delta == 0 {
		return false
	}
	switch f.Sum {
	case pb.StateFix_CHUNK_LIVE:
		return x.fixLive(f)
	case pb.StateFix_OWNED:
		s, err := getSession(x, f.Id)
		if err != nil || s == nil || !add(&s.Owned, f.Delta) {
			return false
		}
		x.Put(bSession, key8(f.Id), s.encode())
		return true
	case pb.StateFix_NLINK, pb.StateFix_ENTRIES, pb.StateFix_ALLOCATED, pb.StateFix_XATTR_BYTES:
		return x.fixInodeSum(f, count)
	}
	sum := map[pb.StateFix_Sum]*uint64{
		pb.StateFix_INODES: &x.c.inodes, pb.StateFix_CHUNKS: &x.c.chunks, pb.StateFix_LIVE_BYTES: &x.c.live, pb.StateFix_INLINE_BYTES: &x.c.inline,
		pb.StateFix_DELETIONS: &x.c.deletions, pb.StateFix_SESSIONS: &x.c.sessions, pb.StateFix_SERVERS: &x.c.servers,
	}[f.Sum]
	return sum != nil && add(sum, f.Delta)
}

// putFixed records an inode that was wrong. Nothing happened to what it stands for, so its times stay.
func (x *tx) putFixed(in *inode) {
	in.version = x.index
	x.putInode(in)
}

// fixLive corrects the live bytes of a chunk that has as many as were seen. They seldom change: where they did, the next check
// finds them again.
func (x *tx) fixLive(f *pb.StateFix) bool {
	cs := newChunkSet(x)
	c, err := cs.get(chunk.ID(f.Id))
	if err != nil || c == nil || c.Live != f.Seen {
		return false
	}
	after := c.Live
	if !add(&after, f.Delta) || after == 0 && x.c.chunks == 0 {
		return false
	}
	c.delta = f.Delta
	return cs.flush() == nil // cannot fail: the chunk keeps its owner, and there is one to count
}

func (x *tx) fixNext(f *pb.StateFix) bool {
	b := bucketOf(f)
	if n := len(f.Key); b == bServer && n != 4 || b != bServer && n != 8 || x.Get(b, f.Key) == nil {
		return false
	}
	num := keyNumber(f.Key)
	if num >= nextLimit(b) {
		return false
	}
	var next *uint64
	switch b {
	case bInode:
		next = &x.c.nextInode
	case bChunk:
		next = &x.c.nextChunk
	case bSession:
		next = &x.c.nextSession
	case bServer:
		changed := num >= uint64(x.c.nextServer)
		x.c.nextServer = max(x.c.nextServer, uint32(num)+1)
		return changed
	default:
		return false
	}
	changed := num >= *next
	*next = max(*next, num+1)
	return changed
}

// fixChunk ends moves that cannot be, and seals, or keeps no more, a chunk whose writer is gone without a trace. The chunk
// stays, whatever its record says of its live bytes.
func (x *tx) fixChunk(id chunk.ID, spare bool) bool {
	c, err := getChunk(x, id)
	if err != nil || c == nil {
		return false
	}
	changed := false
	if c.Owner != 0 && !ownerExists(x, c.Owner) {
		x.Delete(bOwned, key16(c.Owner, uint64(id)))
		c.Owner = 0
		changed = true
		for shard, s := range c.Servers {
			if s != 0 && !c.Holds(shard) && !(spare && c.Holders() < c.Layout.Data) { // see disown
				c.Servers[shard] = 0
				x.dropUnless(c, s, c.Stored(shard))
			}
		}
	}
	if c.Writer != 0 && !sessionExists(x, c.Writer) {
		x.Delete(bOwned, key16(c.Writer, uint64(id)))
		c.Writer = 0
		changed = true
	}
	registered := func(s chunk.ServerID) bool { return x.Get(bServer, serverKey(s)) != nil }
	for k := len(c.Moves) - 1; k >= 0; k-- {
		if c.badMove(k, registered) == "" {
			continue
		}
		m := c.Moves[k]
		c.Moves = slices.Delete(c.Moves, k, k+1)
		x.dropUnless(c, m.Server, c.Stored(m.Shard))
		changed = true
	}
	if changed {
		x.Put(bChunk, key8(uint64(id)), c.encode())
		x.setPresent(bDegraded, key8(uint64(id)), c.degraded())
	}
	return changed
}

// dropUnless has a copy deleted unless the chunk needs it there. What is on a server that is not registered cannot be deleted.
func (x *tx) dropUnless(c *ChunkRecord, server chunk.ServerID, stored chunk.ID) {
	switch {
	case c.BelongsOn(server, stored):
	case x.Get(bServer, serverKey(server)) == nil:
		x.Delete(bServerChunk, serverChunkKey(server, stored))
	default:
		x.dropCopy(server, stored)
	}
}

// fixGarbage deletes a chunk that nobody writes and nobody refers to.
func (x *tx) fixGarbage(id chunk.ID) bool {
	cs := newChunkSet(x)
	c, err := cs.get(id)
	if err != nil || c == nil || c.Keeper() != 0 || c.Live != 0 || x.c.chunks == 0 {
		return false
	}
	return cs.flush() == nil // cannot fail: there is one to count
}

// setPresent has a key that stands for nothing but itself there or not.
func (x *tx) setPresent(b kv.Bucket, key []byte, there bool) bool {
	if there {
		return x.setIndex(b, key, present)
	}
	return x.dropIndex(b, key)
}

func (x *tx) setIndex(b kv.Bucket, key, value []byte) bool {
	if bytes.Equal(x.Get(b, key), value) {
		return false
	}
	x.Put(b, key, value)
	return true
}

func (x *tx) dropIndex(b kv.Bucket, key []byte) bool {
	if len(key) == 0 || x.Get(b, key) == nil {
		return false
	}
	x.Delete(b, key)
	return true
}
