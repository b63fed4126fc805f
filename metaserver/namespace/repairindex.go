package namespace

import (
	"bytes"
	"encoding/binary"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// bucketOf is the bucket that a fix is about; one that there is not is the state's, of which no fix can be.
func bucketOf(f *pb.StateFix) kv.Bucket {
	if f.Bucket >= uint32(len(bucketNames)) {
		return bState
	}
	return kv.Bucket(f.Bucket)
}

// fixIndex has a record of an index be what the records say that it is made from. Where one of those cannot be read, it stays
// as it is.
func (x *tx) fixIndex(f *pb.StateFix) bool {
	b, k := bucketOf(f), f.Key
	size := map[kv.Bucket]int{bServerChunk: 12, bOwned: 16, bServerUUID: idSize, bNonce: nonceSize, bResult: 16, bOrphan: 16, bHeld: 16,
		bDeletion: 20, bDeletionIndex: 12, bDegraded: 8}[b]
	switch {
	case size == 0:
		return false
	case len(k) != size:
		return isIndex(b) && x.dropIndex(b, k)
	}
	switch b {
	case bServerChunk:
		return x.fixCopy(k)
	case bOwned:
		c, err := getChunk(x, chunk.ID(keyNumber(k[8:])))
		session := keyNumber(k[:8])
		return err == nil && x.setPresent(b, k, c != nil && c.Keeper() == session && ownerExists(x, session))
	case bDegraded:
		c, err := getChunk(x, chunk.ID(keyNumber(k)))
		return err == nil && x.setPresent(b, k, c != nil && c.degraded())
	case bNonce:
		return x.fixNonce(k, f.Id)
	case bServerUUID:
		return x.fixUUID(k, f.Id)
	case bResult:
		return x.fixResult(k)
	case bOrphan:
		return x.fixHolder(keyNumber(k[:8]), keyNumber(k[8:]))
	case bHeld:
		return x.fixHolder(keyNumber(k[8:]), keyNumber(k[:8]))
	case bDeletion:
		return x.fixDeletion(k)
	case bDeletionIndex:
		v := x.Get(b, k)
		if len(v) == 9 && v[0] == formatVersion && x.Get(bDeletion, deletionOf(k, v)) != nil {
			return false
		}
		return x.dropIndex(b, k) // what the server has is found by its inventory
	}
	return false
}

// fixCopy has a copy in the index that the chunk's record names. It must not be deleted then.
func (x *tx) fixCopy(k []byte) bool {
	server, stored := chunk.ServerID(binary.BigEndian.Uint32(k)), chunk.ID(keyNumber(k[4:]))
	c, err := getChunk(x, stored.Chunk())
	if err != nil {
		return false
	}
	belongs := c != nil && c.BelongsOn(server, stored)
	changed := x.setPresent(bServerChunk, k, belongs)
	if v := x.Get(bDeletionIndex, k); belongs && len(v) == 9 {
		changed = x.dropDeletion(deletionOf(k, v)) || changed
	}
	return changed
}

// dropDeletion takes a deletion back, and its index if that leads to it.
func (x *tx) dropDeletion(k []byte) bool {
	if x.Get(bDeletion, k) == nil {
		return false
	}
	x.Delete(bDeletion, k)
	if x.c.deletions > 0 {
		x.c.deletions--
	}
	index := append(append(make([]byte, 0, 12), k[:4]...), k[12:]...)
	if v := x.Get(bDeletionIndex, index); len(v) == 9 && bytes.Equal(v[1:], k[4:12]) {
		x.Delete(bDeletionIndex, index)
	}
	return true
}

func (x *tx) fixDeletion(k []byte) bool {
	if x.Get(bDeletion, k) == nil {
		return false
	}
	server := chunk.ServerID(binary.BigEndian.Uint32(k))
	index := serverChunkKey(server, chunk.ID(keyNumber(k[12:])))
	if x.Get(bServerChunk, index) != nil || x.Get(bServer, serverKey(server)) == nil {
		return x.dropDeletion(k)
	}
	if v := x.Get(bDeletionIndex, index); len(v) == 9 && v[0] == formatVersion {
		if other := deletionOf(index, v); !bytes.Equal(other, k) && x.Get(bDeletion, other) != nil {
			return x.dropDeletion(k) // one is enough
		}
	}
	return x.setIndex(bDeletionIndex, index, append([]byte{formatVersion}, k[4:12]...))
}

// fixNonce has a nonce lead to the session that has it; id is the one that a check found to have it.
func (x *tx) fixNonce(nonce []byte, id uint64) bool {
	if v := x.Get(bNonce, nonce); len(v) == 9 && v[0] == formatVersion {
		s, err := getSession(x, keyNumber(v[1:]))
		if err != nil || s != nil && bytes.Equal(s.Nonce, nonce) {
			return false
		}
	}
	if s, err := getSession(x, id); err == nil && s != nil && bytes.Equal(s.Nonce, nonce) {
		return x.setIndex(bNonce, nonce, binary.BigEndian.AppendUint64([]byte{formatVersion}, id))
	}
	return x.dropIndex(bNonce, nonce)
}

// fixUUID is the same for servers. One that leads to a server which is not registered stays: the server may come back.
func (x *tx) fixUUID(uuid []byte, id uint64) bool {
	if s, err := getServer(x, chunk.ServerID(id)); err == nil && s != nil && bytes.Equal(s.UUID, uuid) {
		return x.setIndex(bServerUUID, uuid, binary.BigEndian.AppendUint32([]byte{formatVersion}, uint32(s.ID)))
	}
	if v := x.Get(bServerUUID, uuid); len(v) == 5 && v[0] == formatVersion {
		s, err := getServer(x, chunk.ServerID(binary.BigEndian.Uint32(v[1:])))
		if err != nil || s == nil || bytes.Equal(s.UUID, uuid) {
			return false
		}
	}
	return x.dropIndex(bServerUUID, uuid)
}

// fixResult drops a result that no retry can ask for.
func (x *tx) fixResult(k []byte) bool {
	session, sequence := keyNumber(k[:8]), keyNumber(k[8:])
	if x.Get(bSession, key8(session)) == nil {
		return x.dropIndex(bResult, k)
	}
	w, ok, err := getWindow(x, session)
	if err != nil || !ok || sequence == 0 || sequence >= uint64(w) && sequence-uint64(w) <= maxWindow {
		return false
	}
	return x.dropIndex(bResult, k)
}

// fixHolder has both sides say that a session holds an unlinked inode, or neither.
func (x *tx) fixHolder(num, session uint64) bool {
	held := false
	if x.Get(bInode, key8(num)) != nil {
		in, err := getInode(x, num)
		if err != nil {
			return false
		}
		held = in.nlink == 0 && sessionExists(x, session)
	}
	orphan := x.setPresent(bOrphan, key16(num, session), held)
	return x.setPresent(bHeld, key16(session, num), held) || orphan
}
