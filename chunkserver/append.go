package chunkserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/chunkserver/disk"
	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	// queueDepth is how many frames of a stream wait to be written, at most 1 MiB each, beside those that gRPC's window holds.
	queueDepth = 8
	// ackBytes is how much may be written before a waiting client hears of it, while more frames are queued.
	ackBytes = 1 << 20
	// maxQueued bounds the payload that waits to be written in the queues of all streams together, in bytes, and as much again of
	// first frames, which wait until a disk is chosen.
	maxQueued = 256 << 20
	// earlyAck is how much must have been written for its receipt to be acknowledged before a sync that may take long.
	earlyAck = 256 << 10
)

// incoming is a frame that was received and checked, or why none follows.
type incoming struct {
	head    *pb.AppendHeader
	payload mem.BufferSlice
	size    int64 // taken from budget
	budget  *semaphore.Weighted
	err     error
}

// free gives back what the frame holds.
func (in *incoming) free() {
	in.payload.Free()
	if in.size > 0 {
		in.budget.Release(in.size)
	}
}

// Append implements rpc.ChunkHandler. Frames are received and checked by one goroutine and written by another, so that
// network and disk overlap.
func (s *Server) Append(stream rpc.AppendStream) error {
	if n := s.streams.Add(1); n > maxStreams {
		s.streams.Add(-1)
		return status.Errorf(codes.ResourceExhausted, "this server has %d chunks open for appends already", maxStreams)
	}
	defer s.streams.Add(-1)
	a := &appender{s: s, stream: stream, queue: make(chan incoming, queueDepth), placed: make(chan struct{}), done: make(chan struct{})}
	s.receivers.Go(a.receive)
	err := a.run()
	close(a.done)
	a.discard()
	if a.w != nil {
		s.finish(a.w)
	}
	s.metrics.count("append", err)
	return toStatus(err)
}

// appender is one Append call.
type appender struct {
	s      *Server
	stream rpc.AppendStream
	queue  chan incoming
	placed chan struct{} // closed when a disk was chosen
	done   chan struct{} // closed when the call ends

	w       *disk.Writer // nil before the first byte
	id      chunk.ID
	acked   uint64 // length last told to the client
	durable uint64 // likewise
}

// receive takes frames off the stream until it ends.
func (a *appender) receive() {
	reserve := a.reserveFirst
	for first := true; ; first = false {
		head, payload, err := a.stream.Recv()
		in := incoming{head: head, payload: payload}
		if err == nil {
			err = a.check(head, payload, first)
		}
		if err == nil && payload.Len() > 0 {
			err = reserve(&in)
			reserve = a.reserve
			a.s.copyPass.client()
		}
		if err != nil {
			in.free()
			in = incoming{err: err}
		}
		select {
		case a.queue <- in:
		case <-a.done:
			in.free()
			return
		}
		select {
		case <-a.done: // the writer may have left before it saw this one
			a.discard()
			return
		default:
		}
		if err != nil {
			return
		}
	}
}

// reserveFirst waits until the first frame may be queued. It is not known yet which disk it waits for.
func (a *appender) reserveFirst(in *incoming) error { return a.take(in, a.s.unplaced) }

// reserve waits until a later frame may be queued for the disk that has the chunk.
func (a *appender) reserve(in *incoming) error {
	select {
	case <-a.placed:
		return a.take(in, a.s.shares[a.w.Disk()].queued)
	case <-a.done:
		return context.Canceled // and nobody asks
	case <-a.stream.Context().Done():
		return a.stream.Context().Err()
	}
}

func (a *appender) take(in *incoming, budget *semaphore.Weighted) error {
	n := int64(in.payload.Len())
	if err := budget.Acquire(a.stream.Context(), n); err != nil {
		return err
	}
	in.size, in.budget = n, budget
	return nil
}

// discard frees what is queued when nobody will write it.
func (a *appender) discard() {
	for {
		select {
		case in := <-a.queue:
			in.free()
		default:
			return
		}
	}
}

// check looks at everything about a frame that does not depend on what was written before. a.id is the receiver's.
func (a *appender) check(head *pb.AppendHeader, payload mem.BufferSlice, first bool) error {
	if first {
		if err := a.s.meant(head.Cluster, head.Server); err != nil {
			return err
		}
		if head.Chunk == 0 {
			return fmt.Errorf("append to chunk 0: %w", disk.ErrInvalid)
		}
		a.id = chunk.ID(head.Chunk)
	}
	if chunk.ID(head.Chunk) != a.id {
		return fmt.Errorf("a frame of chunk %v in the stream of chunk %v: %w", chunk.ID(head.Chunk), a.id, disk.ErrInvalid)
	}
	n := payload.Len()
	if n > chunk.MaxFrame {
		return fmt.Errorf("chunk %v: a frame of %d bytes, at most %d: %w", a.id, n, chunk.MaxFrame, disk.ErrTooLarge)
	}
	if i := rpc.Mismatch(payload, head.Checksums); i >= 0 {
		a.s.metrics.mismatches.WithLabelValues("arrival").Inc()
		return status.Errorf(codes.Aborted, "chunk %v: the frame at %d arrived damaged: wrong checksum of its block %d", a.id, head.Offset, i)
	}
	return nil
}

// run writes and acknowledges until the client ends the stream or something fails.
func (a *appender) run() error {
	for {
		sealed, err := a.batch()
		if err != nil || sealed {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// batch waits for a frame, writes it and those that are queued behind it, and acknowledges all at once.
func (a *appender) batch() (sealed bool, err error) {
	sync := false
	for n := 0; ; n++ {
		in, ok := a.next(n == 0)
		if !ok {
			break
		}
		if in.err != nil && n == 0 {
			return false, in.err
		}
		if in.err != nil {
			return false, errors.Join(a.ack(sync), in.err)
		}
		if err := a.write(in); err != nil {
			return false, errors.Join(a.ack(false), err)
		}
		sync = sync || in.head.Durable
		sealed = in.head.Seal
		if sealed || n+1 == queueDepth || !sync && a.length()-a.acked >= ackBytes {
			break
		}
	}
	return sealed, a.ack(sync)
}

// next returns the next frame; if it need not wait, only one that is there already.
func (a *appender) next(wait bool) (incoming, bool) {
	if !wait {
		select {
		case in := <-a.queue:
			return in, true
		default:
			return incoming{}, false
		}
	}
	var stopped <-chan struct{}
	if a.w != nil {
		stopped = a.w.Stopped()
	}
	select {
	case in := <-a.queue:
		return in, true
	case <-stopped: // the client should go on elsewhere, the sooner the better
		return incoming{err: a.w.Err()}, true
	case <-a.stream.Context().Done():
		return incoming{err: a.stream.Context().Err()}, true
	}
}

// write appends a frame. One without payload only asks for durability, or seals.
func (a *appender) write(in incoming) error {
	defer in.free()
	n := in.payload.Len()
	if in.head.Offset != a.length() {
		return fmt.Errorf("chunk %v: append at %d, its length is %d: %w", chunk.ID(in.head.Chunk), in.head.Offset, a.length(), disk.ErrInvalid)
	}
	if n == 0 {
		return nil
	}
	start := time.Now()
	if a.w == nil {
		w, err := a.s.store.create(chunk.ID(in.head.Chunk))
		if err != nil {
			return err
		}
		a.w = w
		close(a.placed)
	}
	if err := a.w.Append(in.head.Offset, in.head.Checksums, in.payload); err != nil {
		return err
	}
	a.s.metrics.appended(n, time.Since(start))
	return nil
}

func (a *appender) length() uint64 {
	if a.w == nil {
		return 0
	}
	return a.w.Length()
}

// ack tells the client how far it got, after making it durable if sync is set.
func (a *appender) ack(sync bool) error {
	if a.w == nil {
		return a.stream.Send(&pb.AppendReply{}) // to a frame without payload before all others
	}
	length := a.w.Length()
	if sync {
		if length-a.acked >= earlyAck {
			if err := a.send(length, a.durable); err != nil {
				return err
			}
		}
		if err := a.w.Sync(); err != nil {
			return err
		}
	}
	if durable := a.w.Durable(); sync || length != a.acked || durable != a.durable {
		return a.send(length, durable)
	}
	return nil
}

func (a *appender) send(length, durable uint64) error {
	a.acked, a.durable = length, durable
	return a.stream.Send(&pb.AppendReply{Length: length, Durable: durable})
}

// finish seals a chunk beside the stream that wrote it: the client need not wait for that.
func (s *Server) finish(w *disk.Writer) {
	seal := func() {
		err := w.Finish()
		known := errors.Is(err, disk.ErrFailed) || errors.Is(err, disk.ErrFull) || errors.Is(err, disk.ErrNotFound) || errors.Is(err, disk.ErrCorrupt)
		if err != nil && !known {
			s.log.Warn("a chunk was not sealed; it will be read record by record", "err", err)
		}
	}
	select {
	case s.sealing <- struct{}{}:
		s.sealers.Go(func() {
			defer func() { <-s.sealing }()
			seal()
		})
	default:
		seal() // too many at once: this stream waits
	}
}

// Read implements rpc.ChunkHandler.
func (s *Server) Read(ctx context.Context, req *pb.ReadRequest) (*pb.ReadHeader, mem.BufferSlice, error) {
	start := time.Now()
	if req.Session != 0 {
		s.copyPass.client()
	}
	sums, payload, err := s.read(ctx, req)
	s.metrics.count("read", err)
	if err != nil {
		return nil, nil, toStatus(err)
	}
	s.metrics.wasRead(payload.Len(), time.Since(start))
	return &pb.ReadHeader{Checksums: sums}, payload, nil
}

func (s *Server) read(ctx context.Context, req *pb.ReadRequest) ([]uint32, mem.BufferSlice, error) {
	if err := s.meant(req.Cluster, req.Server); err != nil {
		return nil, nil, err
	}
	id := chunk.ID(req.Chunk)
	d := s.store.find(id)
	if d == nil {
		return nil, nil, fmt.Errorf("chunk %v: %w", id, disk.ErrNotFound)
	}
	for {
		sums, payload, err := s.readFrom(ctx, d, req)
		if !errors.Is(err, disk.ErrCorrupt) {
			return sums, payload, err
		}
		s.metrics.mismatches.WithLabelValues("disk").Inc()
		other := s.store.find(id)
		if other == nil || other == d || !s.store.good(id) {
			return nil, nil, err
		}
		d = other // it was made anew there, and the old one came back with its disk
	}
}

// readFrom reads from one disk, once that is not too busy.
func (s *Server) readFrom(ctx context.Context, d *disk.Disk, req *pb.ReadRequest) ([]uint32, mem.BufferSlice, error) {
	reading := s.shares[d].reading
	select {
	case reading <- struct{}{}:
		defer func() { <-reading }()
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	return d.Read(ctx, s.memoryFor(ctx, d), chunk.ID(req.Chunk), req.Offset, int(req.Length))
}

// meant says whether a call is for this server: an address may have been given to another since the caller learned it.
func (s *Server) meant(cluster []byte, server uint32) error {
	id := s.store.identity()
	if id.Cluster.IsZero() {
		return status.Error(codes.Unavailable, "this chunk server has not joined a cluster yet")
	}
	if string(cluster) != string(id.Cluster[:]) || chunk.ServerID(server) != id.Server {
		return rpc.Error(rpc.WrongCluster, fmt.Sprintf("this is chunk server %d of cluster %v, the call is for server %d of cluster %x", id.Server, id.Cluster, server, cluster))
	}
	return nil
}

// toStatus gives errors of the disk their kinds.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	var st interface{ GRPCStatus() *status.Status }
	switch {
	case errors.As(err, &st):
		return st.GRPCStatus().Err()
	case errors.Is(err, disk.ErrNotFound):
		return rpc.Error(rpc.ChunkNotFound, err.Error())
	case errors.Is(err, disk.ErrCorrupt), errors.Is(err, disk.ErrRange):
		return rpc.Error(rpc.ChunkCorrupt, err.Error())
	case errors.Is(err, disk.ErrFull):
		return rpc.Error(rpc.DiskFull, err.Error())
	case errors.Is(err, disk.ErrTooLarge):
		return rpc.Error(rpc.TooLarge, err.Error())
	case errors.Is(err, disk.ErrInvalid):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, disk.ErrExists):
		return status.Error(codes.AlreadyExists, err.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Unavailable, err.Error())
}
