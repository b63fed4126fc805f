package data

import (
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// stripe is a frame cut into the shards of the chunk that it was placed in. Whichever target needs it first makes it; it is
// kept until the frame is settled or leaves the chunk.
//
// Its memory counts beside that of the frame, but is never waited for: a frame that cannot be sent never gives its own back.
type stripe struct {
	layout  chunk.Layout
	buffers *buffers
	whole   mem.Buffer // the frame's bytes
	sums    []uint32   // and their checksums
	refs    atomic.Int32

	once   sync.Once
	err    error
	shards []mem.Buffer
	checks [][]uint32
	size   int64 // bytes of its own, as they count
}

// newStripe returns a stripe with one reference. writer.mu is held.
func newStripe(fr *frame, layout chunk.Layout) *stripe {
	s := &stripe{layout: layout, buffers: fr.file.s.buffers, whole: fr.payload(), sums: fr.sums}
	s.refs.Store(1)
	return s
}

func (s *stripe) release() {
	if s.refs.Add(-1) > 0 {
		return
	}
	for _, b := range s.shards {
		b.Free()
	}
	s.whole.Free()
	s.buffers.budget.release(s.size)
}

// encode cuts the frame up and computes parity and checksums.
func (s *stripe) encode() {
	l, whole := s.layout, s.whole.ReadOnlyData()
	length := int(l.ShardLength(uint64(l.Padded(len(whole)))))
	data := make([][]byte, l.Width())
	s.shards = make([]mem.Buffer, 0, l.Width())
	s.checks = make([][]uint32, l.Width())
	if length == l.Cell { // a single row: the cells that the frame fills lie in it as they are
		for at := 0; at+length <= len(whole); at += length {
			i := len(s.shards)
			data[i] = whole[at : at+length]
			s.shards = append(s.shards, s.whole.Slice(at, at+length))
			if length%chunk.ChecksumBlock == 0 {
				s.checks[i] = s.sums[at/chunk.ChecksumBlock:][:length/chunk.ChecksumBlock]
			}
		}
	}
	s.allocate(data, length)
	s.deal(data, length)
	s.err = l.Encode(data)
	for i, d := range data {
		if s.checks[i] == nil {
			s.checks[i] = chunk.Checksums(make([]uint32, 0, chunk.Blocks(length)), d)
		}
	}
}

// allocate gives the shards that are no part of the frame memory, several of them in one buffer.
func (s *stripe) allocate(data [][]byte, length int) {
	for len(s.shards) < len(data) {
		n := min(len(data)-len(s.shards), chunk.MaxFrame/length)
		b := s.buffers.force(n * length)
		s.size += int64(cap(*b))
		own := mem.NewBuffer(b, &s.buffers.pools)
		for at := 0; at < n*length; at += length {
			data[len(s.shards)] = (*b)[at : at+length : at+length]
			s.shards = append(s.shards, own.Slice(at, at+length))
		}
		own.Free()
	}
}

// deal copies what is not in its shard yet, and fills the last row up with zeros.
func (s *stripe) deal(data [][]byte, length int) {
	l, whole := s.layout, s.whole.ReadOnlyData()
	rows := 0
	if length > l.Cell {
		rows = len(whole) / l.Row()
		l.Scatter(data[:l.Data], whole[:rows*l.Row()])
	}
	at, last := rows*l.Row(), length-l.Cell
	if rows*l.Cell == length {
		return
	}
	for i := range l.Data {
		if length > l.Cell || at+l.Cell > len(whole) {
			cell := data[i][last:]
			clear(cell[copy(cell, whole[min(at, len(whole)):]):])
		}
		at += l.Cell
	}
}

// load is what one append carries: a frame, or the shard of one that belongs on the target.
type load struct {
	whole mem.Buffer
	cut   *stripe
	shard int
}

// open returns the payload and completes its header. It may take a while: no lock is to be held.
func (d load) open(head *pb.AppendHeader) (mem.BufferSlice, error) {
	switch {
	case d.whole != nil:
		return mem.BufferSlice{d.whole}, nil
	case d.cut == nil:
		return nil, nil
	}
	d.cut.once.Do(d.cut.encode)
	if d.cut.err != nil {
		return nil, d.cut.err
	}
	head.Checksums = d.cut.checks[d.shard]
	return mem.BufferSlice{d.cut.shards[d.shard]}, nil
}

// close ends the use of what open returned.
func (d load) close() {
	switch {
	case d.whole != nil:
		d.whole.Free()
	case d.cut != nil:
		d.cut.release()
	}
}
