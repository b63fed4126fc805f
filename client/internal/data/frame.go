package data

import (
	"sync/atomic"
	"time"

	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// frame is a run of dirty bytes on its way to a chunk, and after that the record of where in which chunk they are, until
// they are committed and on enough disks.
type frame struct {
	file *File
	gen  *generation
	n    int
	sums []uint32 // of each chunk.ChecksumBlock
	sync bool     // whoever waits for it wants it on disk
	// policy is that of the file when the frame was made: how it is to be stored.
	policy chunk.Layout

	// Guarded by writer.mu:
	buf     mem.Buffer // nil once enough servers have the bytes on disk
	size    int64      // of buf, as it counts
	chunk   *openChunk // nil: waits for a chunk
	off     uint64     // in the chunk
	room    int        // bytes there, of a code with what fills its last row up
	cut     *stripe    // while it is sent in shards
	settled bool       // every live target has received it, and at least the minimum
	durable bool       // likewise, and has it on disk
	awaited bool       // somebody waits until it is settled
	pinned  bool       // named by a commit under way
	rescued bool       // its bytes are being read back from the chunk that they must leave
	gone    bool       // committed and safe, or dropped: nothing needs its bytes any more
	full    int        // how often it was turned away by full disks where there were no others
	err     error      // the bytes are lost
	changed chan struct{}

	// Of a frame that was committed before it was durable:
	published  bool
	blocks     []uint64   // numbers of the parts of the file that its extents are in, ascending
	home       *openChunk // where its extents say that it is, if its bytes had to leave
	homeOff    uint64
	prev, next *frame // of the same inode
}

// end is where in the chunk the frame and what fills it up end.
func (fr *frame) end() uint64 { return fr.off + uint64(fr.room) }

// wait returns a channel that is closed at the frame's next change. writer.mu is held.
func (fr *frame) wait() <-chan struct{} {
	if fr.changed == nil {
		fr.changed = make(chan struct{})
	}
	return fr.changed
}

// keep makes b the frame's bytes in memory.
func (fr *frame) keep(b *[]byte) {
	fr.size = int64(cap(*b))
	fr.buf = mem.NewBuffer(b, &fr.file.s.buffers.pools)
}

func (fr *frame) notify() {
	if fr.changed != nil {
		close(fr.changed)
		fr.changed = nil
	}
}

// free gives the bytes in memory up. writer.mu is held.
func (fr *frame) free() {
	if fr.buf != nil {
		fr.buf.Free()
		fr.buf = nil
		fr.file.s.buffers.budget.release(fr.size)
	}
}

// uncut gives up the shards of a frame that is not sent any more. writer.mu is held.
func (fr *frame) uncut() {
	if fr.cut != nil {
		fr.cut.release()
		fr.cut = nil
	}
}

// payload returns the bytes in memory with a reference of the caller's own. writer.mu is held.
func (fr *frame) payload() mem.Buffer {
	fr.buf.Ref()
	return fr.buf
}

// generation is what was written to a file between two commits. Writes go to the last generation of a file; a commit
// freezes it. A generation has either positional writes or appends, whose offsets count from where it begins.
type generation struct {
	append  bool
	session uint64 // Meta.SessionGen when it began
	began   time.Time

	// Guarded by File.mu:
	builder   builder
	over      overlay
	frames    []*frame
	end       uint64 // where the last of its bytes ends
	sent      uint64 // bytes in frames
	mtime     int64  // nanoseconds, of the last write
	unset     bool   // its writer may not keep set-id bits
	frozen    bool
	inline    bool // small enough to be kept in the inode, as far as this client knows
	publishes bool // its commit is being made: what metadata says may hold it already
	dead      bool // its bytes are lost, and that has been reported

	durable atomic.Bool // somebody waits for it to be on disk
	fault   atomic.Pointer[error]
	done    chan struct{} // closed when it is committed or dead
}

func (g *generation) empty() bool { return len(g.builder.segs) == 0 && len(g.frames) == 0 }

// fail records why bytes were lost, for the file's next operation.
func (g *generation) fail(err error) { g.fault.CompareAndSwap(nil, &err) }
