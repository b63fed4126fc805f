package data

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	// A file with so many uncommitted extents or bytes is committed without being asked, to bound what is remembered of it.
	maxUncommitted      = 8192
	maxUncommittedBytes = 16 << 30
	// maxGenerations bounds the commits of a file that wait for each other; writes that begin one more wait.
	maxGenerations = 16
	// streaming is how much a file has sent when its buffers are made full-sized at once, in bytes.
	streaming = 64 << 10
)

// File is the data of one inode as this client sees it. All handles of the client share it. It is safe for concurrent use.
type File struct {
	s     *Store
	inode uint64
	refs  int // guarded by Store.mu

	writing chan struct{} // held by the one write, append or truncation that runs

	// Guarded by writer.mu:
	own      *openChunk // nobody else places frames there
	streamed uint64     // bytes sent

	mu         sync.Mutex
	attr       *pb.Attr      // newest seen
	later      *pb.Attr      // newer still, not to be used before the commit of an append under way is answered
	gens       []*generation // oldest first; only the last may not be frozen
	err        error         // for the next operation
	losses     int           // how often written data was lost
	loss       error         // why it was last
	committing bool          // a goroutine commits what is frozen
	current    *generation   // what it is at
	unsent     []*frame      // cut, not shipped yet
	unset      bool          // who writes next may not keep set-id bits
	appending  bool          // an append that is longer than a buffer runs: nothing in the background splits it between two commits
	ahead      readahead
}

func newFile(s *Store, inode uint64) *File {
	return &File{s: s, inode: inode, attr: &pb.Attr{Inode: inode}, writing: make(chan struct{}, 1)}
}

// Inode returns the inode.
func (f *File) Inode() uint64 { return f.inode }

// policyOf returns how new data of an inode is to be stored, zero if it is for the cluster to say.
func policyOf(attr *pb.Attr) chunk.Layout {
	l := chunk.LayoutOf(attr.GetLayout())
	if l.Cell = 0; l.IsZero() || l.Check(false) != nil {
		return chunk.Layout{}
	}
	return l
}

// Observe takes attributes that the metaserver sent; older ones than are known are ignored.
func (f *File) Observe(attr *pb.Attr) {
	if attr == nil || attr.Inode != f.inode {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.observe(attr)
}

func (f *File) observe(attr *pb.Attr) {
	for _, g := range f.gens {
		if g.publishes && g.append {
			// The size may count its bytes already, which the view adds.
			if f.later == nil || attr.Version >= f.later.Version {
				f.later = attr
			}
			return
		}
	}
	if attr.Version >= f.attr.Version {
		f.attr = attr
	}
}

// View is a file as this client sees it at one moment.
type View struct {
	Attr  *pb.Attr  // as the metaserver has it, the newest known; not to be changed
	Dirty bool      // there are uncommitted writes
	Size  uint64    // with them
	Mtime time.Time // of the last of them; zero if there is none
}

// Merge is Observe, and returns what is known then.
func (f *File) Merge(attr *pb.Attr) View {
	f.mu.Lock()
	defer f.mu.Unlock()
	if attr.Inode == f.inode {
		f.observe(attr)
	}
	return View{Attr: f.attr, Dirty: f.dirty(), Size: f.size(), Mtime: f.mtime()}
}

// Attr returns the newest attributes that are known to be the metaserver's. They must not be changed.
func (f *File) Attr() *pb.Attr {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.attr
}

// Size returns the size in bytes, uncommitted writes included.
func (f *File) Size() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size()
}

func (f *File) size() uint64 { return f.sizeBefore(nil) }

// sizeBefore returns the size that the file has once everything before a generation is committed; nil: everything.
func (f *File) sizeBefore(stop *generation) uint64 {
	size := f.attr.Size
	for _, g := range f.gens {
		if g == stop {
			break
		}
		if g.append {
			size += g.end
		} else {
			size = max(size, g.end)
		}
	}
	return size
}

// mtime returns when the last uncommitted write was, the zero time if there is none.
func (f *File) mtime() time.Time {
	var last int64
	for _, g := range f.gens {
		last = max(last, g.mtime)
	}
	if last == 0 {
		return time.Time{}
	}
	return time.Unix(0, last)
}

// Dirty tells whether there are uncommitted writes.
func (f *File) Dirty() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dirty()
}

func (f *File) dirty() bool {
	for _, g := range f.gens {
		if !g.empty() {
			return true
		}
	}
	return false
}

// lock makes the caller the one who writes.
func (f *File) lock(ctx context.Context) error {
	select {
	case f.writing <- struct{}{}:
		return nil
	default:
	}
	select {
	case f.writing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *File) unlock() { <-f.writing }

// WriteAt writes p at offset off. It returns once the bytes are buffered; what did not fit when ctx ended was not written.
// An error may be that of an earlier write.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fserr.New(syscall.EINVAL, "a write at offset %d", off)
	}
	if uint64(off)+uint64(len(p)) > posix.MaxSize {
		return 0, fserr.New(syscall.EFBIG, "a write of %d bytes at %d", len(p), off)
	}
	return f.write(ctx, p, uint64(off), false)
}

// Append writes p at the end of the file, wherever that is when it is committed: appends of several clients do not overwrite
// each other. Until then this client sees the bytes at what it takes for the end.
func (f *File) Append(ctx context.Context, p []byte) (int, error) {
	if f.Size()+uint64(len(p)) > posix.MaxSize {
		return 0, fserr.New(syscall.EFBIG, "an append of %d bytes", len(p))
	}
	return f.write(ctx, p, 0, true)
}

func (f *File) write(ctx context.Context, p []byte, off uint64, app bool) (int, error) {
	if err := f.lock(ctx); err != nil {
		return 0, err
	}
	defer f.unlock()
	if f.s.closed.Load() {
		return 0, fserr.New(syscall.EIO, "write inode %d: the file system is closed", f.inode)
	}
	if app && len(p) > largestBuffer {
		f.commitOlder(time.Now().Add(-f.s.cfg.CommitAfter)) // it was perhaps put off for the append before
		f.setAppending(true)
		defer f.setAppending(false)
	}
	done := 0
	for first := true; first || done < len(p); first = false {
		n, want, err := f.buffer(p[done:], off+uint64(done), app)
		done += n
		if err == nil && want.ready() {
			err = want.wait(ctx, f)
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func (f *File) setAppending(is bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.appending = is
}

// need is what a write waits for before it can go on.
type need struct {
	buffer int             // bytes
	gen    *generation     // for which a buffer is needed
	commit <-chan struct{} // a generation that must be committed first
}

func (n need) ready() bool { return n.buffer > 0 || n.commit != nil }

func (n need) wait(ctx context.Context, f *File) error {
	if n.commit != nil {
		select {
		case <-n.commit:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	b, err := f.s.buffers.get(ctx, n.buffer)
	if err != nil {
		return err
	}
	f.mu.Lock()
	switch g := n.gen; {
	case g.frozen || g.dead || g.builder.buf != nil && cap(*b) <= cap(*g.builder.buf): // overtaken
	case g.builder.buf != nil:
		b = g.builder.grow(b)
	default:
		g.builder.buf, b = b, nil
	}
	f.mu.Unlock()
	if b != nil {
		f.s.buffers.Put(b)
	}
	return nil
}

// buffer takes as much of p as there is room for, and returns what the rest needs.
func (f *File) buffer(p []byte, off uint64, app bool) (int, need, error) {
	f.mu.Lock()
	if err := f.takeError(); err != nil {
		f.mu.Unlock()
		return 0, need{}, err
	}
	if len(p) == 0 {
		f.mu.Unlock()
		return 0, need{}, nil
	}
	g, wait := f.open(app)
	if g == nil {
		f.mu.Unlock()
		f.ship()
		return 0, need{commit: wait}, nil
	}
	b := &g.builder
	if b.buf == nil {
		size := len(p)
		if g.sent >= streaming {
			size = largestBuffer
		}
		f.mu.Unlock()
		f.ship()
		return 0, need{buffer: min(size, largestBuffer), gen: g}, nil
	}
	if room := cap(*b.buf) - b.fill; app && room < len(p) && len(p) <= largestBuffer {
		// It must not end up in two generations, between whose commits others could append.
		if b.fill+len(p) <= largestBuffer {
			f.mu.Unlock()
			return 0, need{buffer: b.fill + len(p), gen: g}, nil
		}
		f.cut(g)
		f.mu.Unlock()
		f.ship()
		return 0, need{}, nil
	}
	if app {
		off = g.end
	}
	n := b.write(p, off)
	if n > 0 {
		g.end = max(g.end, off+uint64(n))
		g.mtime = time.Now().UnixNano()
	}
	var want need
	switch {
	case n < len(p) && b.canGrow():
		want = need{buffer: min(largestBuffer, 4*cap(*b.buf)), gen: g}
	case n < len(p) || b.fill == largestBuffer:
		f.cut(g)
		if len(g.over) >= maxUncommitted || g.sent >= maxUncommittedBytes {
			f.freeze(false)
			f.startCommitter()
		}
	}
	f.mu.Unlock()
	f.ship()
	return n, want, nil
}

// open returns the generation that takes writes of that kind. nil: too many wait, the channel is closed when one is done.
func (f *File) open(app bool) (*generation, <-chan struct{}) {
	if k := len(f.gens); k > 0 {
		g := f.gens[k-1]
		if !g.frozen && (g.append == app || g.empty()) {
			if g.empty() { // nothing of it belongs to a session yet
				g.append, g.session, g.began = app, f.s.meta.SessionGen(), time.Now()
			}
			return g, nil
		}
		f.freeze(false)
		if k >= maxGenerations {
			f.startCommitter()
			return nil, f.gens[0].done
		}
	}
	g := &generation{append: app, session: f.s.meta.SessionGen(), began: time.Now(), unset: f.unset, done: make(chan struct{})}
	f.unset = false
	f.gens = append(f.gens, g)
	return g, nil
}

// cut makes a frame of what is buffered, for ship to send once File.mu is not held any more.
func (f *File) cut(g *generation) {
	b := &g.builder
	if len(b.segs) == 0 {
		return
	}
	if !b.sorted() {
		sorted := f.s.buffers.force(b.fill)
		b.sortInto(*sorted)
		f.s.buffers.Put(b.buf)
		b.buf = sorted
	}
	*b.buf = (*b.buf)[:b.fill]
	fr := &frame{file: f, gen: g, n: b.fill, sync: g.durable.Load(), policy: policyOf(f.attr)}
	fr.keep(b.buf)
	g.over.put(fr, b.segs)
	g.frames = append(g.frames, fr)
	g.sent += uint64(fr.n)
	g.builder = builder{segs: b.segs[:0]}
	f.unsent = append(f.unsent, fr)
}

// ship sends what was cut. No lock is held: this is where the checksums are computed.
func (f *File) ship() {
	f.mu.Lock()
	frames := f.unsent
	f.unsent = nil
	f.mu.Unlock()
	w := f.s.writer
	for _, fr := range frames {
		w.mu.Lock()
		if fr.buf == nil { // given up meanwhile
			w.mu.Unlock()
			continue
		}
		b := fr.payload()
		w.mu.Unlock()
		fr.sums = chunk.Checksums(make([]uint32, 0, chunk.Blocks(fr.n)), b.ReadOnlyData())
		b.Free()
		w.send(fr)
	}
}

// buffered returns how many bytes of buffers could be had by sending what is in them.
func (f *File) buffered() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := len(f.gens); k > 0 && f.gens[k-1].builder.buf != nil && !f.gens[k-1].frozen {
		return cap(*f.gens[k-1].builder.buf)
	}
	return 0
}

// flush sends what is buffered, without publishing it.
func (f *File) flush() {
	f.mu.Lock()
	if k := len(f.gens); k > 0 && !f.gens[k-1].frozen {
		g := f.gens[k-1]
		f.cut(g)
		if g.builder.buf != nil { // it was empty
			f.s.buffers.Put(g.builder.buf)
			g.builder.buf = nil
		}
	}
	f.mu.Unlock()
	f.ship()
}

// KillPrivileges says that whoever writes next may not leave set-user-id and set-group-id bits in place.
func (f *File) KillPrivileges() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := len(f.gens); k > 0 && !f.gens[k-1].frozen {
		f.gens[k-1].unset = true
		return
	}
	f.unset = true
}

// Losses returns how often written data of the file was lost so far.
func (f *File) Losses() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.losses
}

// Lost returns how often written data of the file was lost so far, and, if that was more often than the caller knows of, why
// it was last. Who shares a File with others asks it beside every operation: errors are returned to the first who comes,
// and another's having heard of a loss does not make one's own data safe.
func (f *File) Lost(known int) (losses int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.notice()
	if f.losses != known {
		f.err, err = nil, f.loss
	}
	return f.losses, err
}

// takeError returns an error that a background task left, once.
func (f *File) takeError() error {
	f.notice()
	err := f.err
	f.err = nil
	return err
}

// owes tells whether there is an error that nobody has heard of yet.
func (f *File) owes() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err != nil
}

// notice looks whether bytes were lost.
func (f *File) notice() {
	session := f.s.meta.SessionGen()
	for _, g := range f.gens {
		if g.session != session && !g.empty() && !g.publishes {
			f.fail(errSessionLost)
			break
		}
		if err := g.fault.Load(); err != nil {
			f.fail(*err)
			break
		}
	}
}

// fail drops everything that is not committed. err is for the next operation to return.
func (f *File) fail(err error) {
	f.s.log.Error("written data was lost", "inode", f.inode, "error", err)
	for _, g := range f.gens {
		g.dead = true
		if g != f.current { // else the committer drops it
			f.bury(g)
		}
	}
	f.gens = nil
	f.lose(err)
}

// lose records that written data was lost, for the next operation to say and for all commits under way.
func (f *File) lose(err error) {
	f.losses++
	f.loss = err
	if f.err == nil {
		f.err = err
	}
}

// bury drops the bytes of a generation.
func (f *File) bury(g *generation) {
	if g.builder.buf != nil {
		f.s.buffers.Put(g.builder.buf)
	}
	g.builder = builder{}
	f.s.writer.discard(g.frames)
	g.frames, g.over = nil, nil
	close(g.done)
}

// Truncate sets the size to what change, which asks the metaserver, sets it to; change returns what the metaserver answered. It
// publishes first what was written before; writes that arrive meanwhile wait.
func (f *File) Truncate(ctx context.Context, change func(context.Context) (*pb.Attr, error)) error {
	if err := f.lock(ctx); err != nil {
		return err
	}
	defer f.unlock()
	if err := f.Commit(ctx, false); err != nil {
		return err
	}
	attr, err := change(ctx)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ahead = readahead{}
	if attr != nil && attr.Inode == f.inode {
		f.observe(attr)
	}
	return nil
}

// finish publishes everything, what was written since earlier data was lost included.
func (f *File) finish(ctx context.Context) error {
	err := f.Commit(ctx, false)
	if err != nil && ctx.Err() == nil && f.Dirty() {
		err = errors.Join(err, f.Commit(ctx, false))
	}
	return err
}

// Close gives the caller's reference back. What is dirty is published as by Commit; should ctx end before, that goes on in
// the background.
func (f *File) Close(ctx context.Context) error {
	err := f.finish(ctx)
	f.s.mu.Lock()
	f.refs--
	last := f.refs == 0
	f.s.mu.Unlock()
	if last {
		f.flush() // a write that failed may have left an empty buffer
		f.s.writer.release(f)
		f.s.drop(f)
	}
	return err
}
