package namespace

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	// maxProblems bounds the problems that a check lists, and maxFixes what it asks to be put right: the next one finds the rest.
	maxProblems = 1000
	maxFixes    = 64 << 10

	// progressEvery is how many records are read between two looks at the context.
	progressEvery = 4096

	moreProblems = "there are more problems than are listed"
	hopeless     = "; this cannot be repaired"
)

// Check reads the whole state and says, a line each, where it breaks the rules that doc.go lists: nil when it is sound.
func Check(r kv.Reader) []string {
	rep, _ := Inspect(context.Background(), r, Watch{}) // only ctx makes it fail
	return rep.Problems
}

// Watch is told how Inspect gets on, if its functions are set.
type Watch struct {
	Progress func(phase string, done, total uint64) // every some thousand records; total 0: not known
	Problem  func(line string)                      // those that are listed, as they are found
}

// Inspection is what Inspect found.
type Inspection struct {
	Problems []string       // at most maxProblems
	Found    uint64         // how many there are
	Fixes    []*pb.StateFix // what RepairState can do about them, in the order in which it should; at most maxFixes
	Ends     []uint64       // sessions that can only be ended

	Inodes, Chunks, Shards uint64 // looked at
}

// Inspect is Check with all that it finds out. It holds some 90 bytes for each inode and 50 for each chunk in memory. The
// error is that of the context.
func Inspect(ctx context.Context, r kv.Reader, watch Watch) (*Inspection, error) {
	c := &checker{ctx: ctx, r: r, watch: watch, out: &Inspection{}, servers: map[chunk.ServerID]bool{}, missing: map[uint64]*missingInode{},
		wanted: map[chunk.ID]bool{}, owners: map[uint64]uint64{}}
	if r.Get(bState, countersKey) == nil && r.Get(bState, clusterKey) == nil {
		return c.out, nil // no cluster yet
	}
	var err error
	if c.want, err = decodeCounters(r.Get(bState, countersKey)); err != nil {
		c.hopeless("%v", damaged(bState, countersKey))
		return c.out, nil // no command works either
	}
	if n := len(r.Get(bState, clusterKey)); n != idSize {
		c.hopeless("the cluster's id has %d bytes", n)
	}
	if _, err := Commands(r); err != nil {
		c.hopeless("%v", err)
	}
	// Each reads what those before it gathered.
	for _, part := range []func(){
		c.readServers, c.readServerUUIDs, c.readInodes, c.readDentries, c.readXattrs, c.readChunks, c.readExtents,
		c.readSessions, c.readNonces, c.readOwned, c.readResults, c.readHolders, c.readCopies, c.readDegraded, c.readDeletions,
		c.checkMissing, c.checkInodes, c.checkTree, c.checkChunks, c.checkCounters,
	} {
		if part(); c.err != nil {
			return c.out, c.err
		}
	}
	c.out.Inodes, c.out.Chunks = c.have.inodes, c.have.chunks
	c.out.Fixes = c.fixes()
	return c.out, nil
}

type checker struct {
	ctx   context.Context
	r     kv.Reader
	watch Watch
	out   *Inspection
	err   error

	phase       string
	done, total uint64

	want, have counters
	inodes     []inodeFacts // by number, as they are read
	chunks     []chunkFacts // likewise
	servers    map[chunk.ServerID]bool
	missing    map[uint64]*missingInode // inodes that names or data lead to
	wanted     map[chunk.ID]bool        // chunks that files refer to and that do not exist
	owners     map[uint64]uint64        // how many chunks each session writes or keeps
	blind      blindness
	losses     bool // extents seem to have been lost, see lookForLosses
	todo       [lastStage][]*pb.StateFix
}

// inodeFacts is what is remembered of an inode.
type inodeFacts struct {
	num, parent, size, allocated uint64 // as recorded
	nlink, xattrs                uint32 // likewise
	typ                          uint32
	names, subdirs, holders      uint32
	namedIn                      uint64 // the directory that has its last name
	entries                      uint64 // of a directory
	bytes                        uint64 // of extents, inline ones included
	xattrBytes                   uint32
	damaged                      bool // there is a record, and that is all that is known
	partial                      bool // some of its extents could not be read
	reach                        reach
}

func (in *inodeFacts) isDir() bool { return in.typ == syscall.S_IFDIR }

// chunkFacts is what is remembered of a chunk.
type chunkFacts struct {
	id         chunk.ID
	live       uint64 // as recorded
	used       uint64 // by extents
	keeper     uint64 // who writes it, or may not have given it up
	length     uint32
	places     uint8 // where something of it is
	indexed    uint8 // of these, in their index
	degraded   bool
	inDegraded bool // in the index of such
	owned      bool // in the index of its keeper
	damaged    bool // there is a record, and that is all that is known
}

// blindness says of which kinds there are records that could not be read. What they may refer to must not be given up.
type blindness struct{ inodes, names, extents, xattrs, chunks bool }

// The stages of a repair, in their order. Sums come first: while they are wrong, ordinary commands fail, or delete what they
// should not.
const (
	stageSums = iota
	stageRecords
	stageIndexes
	stageNames
	stageLost
	lastStage
)

func (c *checker) fixes() []*pb.StateFix {
	all := slices.Concat(c.todo[:]...)
	return all[:min(len(all), maxFixes)]
}

// broken reports a problem and what is to be done about it.
func (c *checker) broken(stage int, fix *pb.StateFix, format string, args ...any) {
	c.report(format, args...)
	if len(c.todo[stage]) < maxFixes {
		c.todo[stage] = append(c.todo[stage], fix)
	}
}

// hopeless reports a problem that only people can do something about.
func (c *checker) hopeless(format string, args ...any) { c.report(format+hopeless, args...) }

func (c *checker) report(format string, args ...any) {
	c.out.Found++
	line := moreProblems
	switch n := len(c.out.Problems); {
	case n >= maxProblems:
		return
	case n < maxProblems-1:
		line = fmt.Sprintf(format, args...)
	}
	c.out.Problems = append(c.out.Problems, line)
	if c.watch.Problem != nil {
		c.watch.Problem(line)
	}
}

// begin starts a phase of so many records, 0 for an unknown number.
func (c *checker) begin(phase string, total uint64) {
	c.phase, c.done, c.total = phase, 0, total
	c.progress()
}

func (c *checker) progress() {
	if c.err = c.ctx.Err(); c.err != nil || c.watch.Progress == nil {
		return
	}
	total := c.total
	if total > 0 {
		total = max(total, c.done) // what is recorded may be what is wrong
	}
	c.watch.Progress(c.phase, c.done, total)
}

// each calls fn for every record of a bucket whose key has the right length (0: at least 9 bytes, a number and a name). What
// fn cannot decode is reported; so are keys of another length. unread is then called, if it is not nil.
func (c *checker) each(b kv.Bucket, size int, unread func(k []byte), fn func(k, v []byte) error) {
	c.r.Scan(b, nil, func(k, v []byte) bool {
		if c.done++; c.done%progressEvery == 0 {
			if c.progress(); c.err != nil {
				return false
			}
		}
		bad := size == 0 && len(k) < 9 || size != 0 && len(k) != size
		switch {
		case bad && isIndex(b):
			c.broken(stageIndexes, indexFix(b, k, 0), "%s: a key of %d bytes: %x", bucketName(b), len(k), k)
		case bad:
			c.hopeless("%s: a key of %d bytes: %x", bucketName(b), len(k), k)
		case fn(k, v) != nil:
			bad = true
			c.hopeless("%v", damaged(b, k))
		}
		if bad && unread != nil {
			unread(k)
		}
		return true
	})
}

// inode returns what is known of an inode, nil when there is none.
func (c *checker) inode(num uint64) *inodeFacts {
	i, ok := slices.BinarySearchFunc(c.inodes, num, func(in inodeFacts, num uint64) int { return cmp.Compare(in.num, num) })
	if !ok {
		return nil
	}
	return &c.inodes[i]
}

// chunk returns what is known of a chunk, nil when there is none.
func (c *checker) chunk(id chunk.ID) *chunkFacts {
	i, ok := slices.BinarySearchFunc(c.chunks, id, func(ch chunkFacts, id chunk.ID) int { return cmp.Compare(ch.id, id) })
	if !ok {
		return nil
	}
	return &c.chunks[i]
}

// numbered checks that a number was given out before the next one.
func (c *checker) numbered(b kv.Bucket, k []byte, num, next uint64, what string) {
	switch {
	case num == 0 || num >= nextLimit(b):
		c.hopeless("%s %d: there can be none of that number", what, num)
	case num >= next:
		c.broken(stageSums, &pb.StateFix{Kind: pb.StateFix_NEXT, Bucket: uint32(b), Key: slices.Clone(k)}, "%s %d: the next new one is %d", what, num, next)
	}
}

func (c *checker) checkCounters() {
	type sum struct {
		what       string
		field      pb.StateFix_Sum
		have, want uint64
		known      bool
	}
	for _, n := range []sum{
		{"inodes", pb.StateFix_INODES, c.have.inodes, c.want.inodes, true},
		{"chunks", pb.StateFix_CHUNKS, c.have.chunks, c.want.chunks, true},
		{"live bytes", pb.StateFix_LIVE_BYTES, c.have.live, c.want.live, !c.blind.chunks},
		{"inline bytes", pb.StateFix_INLINE_BYTES, c.have.inline, c.want.inline, !c.blind.inodes},
		{"deletions", pb.StateFix_DELETIONS, c.have.deletions, c.want.deletions, true},
		{"sessions", pb.StateFix_SESSIONS, c.have.sessions, c.want.sessions, true},
		{"servers", pb.StateFix_SERVERS, c.have.servers, c.want.servers, true},
	} {
		switch {
		case !n.known || n.have == n.want:
		case n.field == pb.StateFix_INODES && n.have < n.want && c.losses:
			c.hopeless("there are %d %s, %d are recorded"+seemLost, n.have, n.what, n.want)
		default:
			c.broken(stageSums, addFix(n.field, 0, n.have, n.want), "there are %d %s, %d are recorded", n.have, n.what, n.want)
		}
	}
}

// addFix puts a sum right that is recorded as want, and should be have. It says by how much the sum is wrong, not what it
// should be: commands change sums by as much as they change what is summed up, so that it is still wrong by as much when the fix
// is applied.
func addFix(field pb.StateFix_Sum, id, have, want uint64) *pb.StateFix {
	return &pb.StateFix{Kind: pb.StateFix_ADD, Sum: field, Id: id, Delta: int64(have - want), Seen: want}
}

func indexFix(b kv.Bucket, key []byte, id uint64) *pb.StateFix {
	return &pb.StateFix{Kind: pb.StateFix_INDEX, Bucket: uint32(b), Key: slices.Clone(key), Id: id}
}

// isIndex tells whether all of a bucket follows from records of others.
func isIndex(b kv.Bucket) bool {
	switch b {
	case bServerChunk, bOwned, bNonce, bOrphan, bHeld, bDeletion, bDeletionIndex, bDegraded:
		return true
	}
	return false
}

// nextLimit bounds the numbers of what a bucket holds: those from it on are never given out.
func nextLimit(b kv.Bucket) uint64 {
	switch b {
	case bChunk:
		return chunk.MaxID
	case bServer:
		return 1<<32 - 1
	}
	return 1 << 48 // above is the shard of the metadata
}

func keyNumber(k []byte) uint64 {
	if len(k) == 4 {
		return uint64(binary.BigEndian.Uint32(k))
	}
	return binary.BigEndian.Uint64(k)
}

func nameOf(k []byte) (dir uint64, name []byte) { return binary.BigEndian.Uint64(k), k[8:] }

// reach is whether a directory is below the root.
type reach uint8

const (
	unknownReach reach = iota
	walking            // on the path that is being followed
	below              // it is
	astray             // it is not; why was said elsewhere
)

// checkTree follows every directory to the root. One without a name ends the walk, and is looked after elsewhere; one that lies
// below itself is taken out of that loop.
func (c *checker) checkTree() {
	c.begin("the tree", 0)
	if root := c.inode(posix.RootInode); root != nil {
		root.reach = below
	}
	var path []*inodeFacts
	for i := range c.inodes {
		path = path[:0]
		in := &c.inodes[i]
		for in != nil && in.isDir() && in.names > 0 && in.reach == unknownReach {
			in.reach = walking
			path = append(path, in)
			in = c.inode(in.namedIn)
		}
		end := astray
		switch {
		case in != nil && in.reach == walking:
			c.loop(path[slices.Index(path, in):])
		case in != nil && in.reach == below:
			end = below
		}
		for _, p := range path {
			p.reach = end
		}
	}
}
