package namespace

import (
	"encoding/binary"
	"fmt"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
)

// The buckets, in the order of Buckets. docs/formats.md says what each holds.
const (
	bState kv.Bucket = iota
	bDentry
	bInode
	bExtent
	bXattr
	bChunk
	bServerChunk
	bOwned
	bServer
	bServerUUID
	bSession
	bNonce
	bResult
	bOrphan
	bHeld
	bDeletion
	bDeletionIndex
	bDegraded
)

var bucketNames = []string{
	bState:         "state",
	bDentry:        "dentry",
	bInode:         "inode",
	bExtent:        "extent",
	bXattr:         "xattr",
	bChunk:         "chunk",
	bServerChunk:   "server-chunk",
	bOwned:         "owned-chunk",
	bServer:        "server",
	bServerUUID:    "server-uuid",
	bSession:       "session",
	bNonce:         "session-nonce",
	bResult:        "result",
	bOrphan:        "orphan",
	bHeld:          "held-inode",
	bDeletion:      "deletion",
	bDeletionIndex: "deletion-index",
	bDegraded:      "degraded-chunk",
}

// Buckets lists the names of the buckets; a kv.Bucket is an index into it. Names are only ever appended.
func Buckets() []string { return append([]string(nil), bucketNames...) }

func bucketName(b kv.Bucket) string {
	if int(b) < len(bucketNames) {
		return bucketNames[b]
	}
	return fmt.Sprintf("bucket-%d", b)
}

// Keys of single records in the state bucket.
var (
	countersKey = []byte("counters")
	clusterKey  = []byte("cluster")
	commandsKey = []byte("commands")
)

// present is the value of a key that only has to be there: the format's version.
var present = []byte{1}

func be64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

// key8 and key16 make keys of big-endian numbers, so that their order is that of the numbers.
func key8(a uint64) []byte { return binary.BigEndian.AppendUint64(make([]byte, 0, 8), a) }

func key16(a, b uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(make([]byte, 0, 16), a), b)
}

func dentryKey(parent uint64, name []byte) []byte {
	return append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(name)), parent), name...)
}

func xattrKey(inode uint64, name string) []byte {
	return append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(name)), inode), name...)
}

func serverKey(id chunk.ServerID) []byte {
	return binary.BigEndian.AppendUint32(make([]byte, 0, 4), uint32(id))
}

// serverChunkKey is of a server and a stored id.
func serverChunkKey(server chunk.ServerID, id chunk.ID) []byte {
	k := binary.BigEndian.AppendUint32(make([]byte, 0, 12), uint32(server))
	return binary.BigEndian.AppendUint64(k, uint64(id))
}

// deletionKey sorts by server, then by time. Times are after 1970, so that their unsigned order is theirs.
func deletionKey(server chunk.ServerID, time int64, id chunk.ID) []byte {
	k := binary.BigEndian.AppendUint32(make([]byte, 0, 20), uint32(server))
	k = binary.BigEndian.AppendUint64(k, uint64(max(time, 0)))
	return binary.BigEndian.AppendUint64(k, uint64(id))
}

// hasPrefix8 tells whether key starts with the number a and is at least 8 bytes long.
func hasPrefix8(key []byte, a uint64) bool {
	return len(key) >= 8 && binary.BigEndian.Uint64(key) == a
}

// scan8 calls fn with what follows the number a in every key that starts with it. fn must not write to the bucket.
func scan8(r kv.Reader, b kv.Bucket, a uint64, fn func(rest, value []byte) bool) {
	r.Scan(b, key8(a), func(k, v []byte) bool {
		return hasPrefix8(k, a) && fn(k[8:], v)
	})
}

// numbersUnder collects the second numbers of all keys (a, number).
func numbersUnder(r kv.Reader, b kv.Bucket, a uint64) []uint64 {
	var out []uint64
	scan8(r, b, a, func(rest, _ []byte) bool {
		if len(rest) == 8 {
			out = append(out, binary.BigEndian.Uint64(rest))
		}
		return true
	})
	return out
}
