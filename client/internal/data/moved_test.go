package data

import (
	"context"
	"slices"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// leased is a metadata service whose extents are cached, and out of date as soon as chunks move.
type leased struct {
	*fakeMeta
	answered func() // after each answer

	mu     sync.Mutex
	cached map[uint64]*pb.ExtentsReply
}

func (l *leased) Extents(ctx context.Context, inode, off, length uint64, fresh bool) (*pb.ExtentsReply, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.cached[inode]
	if r == nil || fresh {
		var err error
		if r, err = l.fakeMeta.Extents(ctx, inode, off, length, fresh); err != nil {
			return nil, err
		}
		l.cached[inode] = r
	}
	if l.answered != nil {
		l.answered()
	}
	return proto.CloneOf(r), nil
}

func newLeasedFixture(t *testing.T, servers int, policy string) (*fixture, *leased) {
	l := &leased{cached: map[uint64]*pb.ExtentsReply{}}
	x := newCodedFixture(t, servers, policy, func(c *StoreConfig) {
		l.fakeMeta, c.Meta, c.CacheBytes = c.Meta.(*fakeMeta), l, -1
	})
	return x, l
}

// rewrite has all chunks of a file be others, as compaction does, and deletes the old ones.
func (x *fixture) rewrite(inode uint64) {
	x.meta.with(func(m *fakeMeta) {
		to := map[uint64]uint64{}
		for _, e := range m.files[inode].extents {
			if to[e.Chunk] == 0 {
				to[e.Chunk] = uint64(m.next)
				rec := *m.chunks[chunk.ID(e.Chunk)]
				rec.owner = 0
				m.chunks[m.next] = &rec
				for shard := range rec.layout.Width() {
					for _, s := range x.servers {
						s.set(func(s *fakeServer) {
							old, now := chunk.ID(e.Chunk).Stored(rec.layout, shard), m.next.Stored(rec.layout, shard)
							if b, there := s.chunks[old]; there {
								s.chunks[now], s.synced[now] = b, len(b)
								delete(s.chunks, old)
							}
						})
					}
				}
				m.next++
			}
			e.Chunk = to[e.Chunk]
		}
	})
}

// TestReadOfWhatIsRewritten: as long as the metaserver says something else each time, that chunks are not there is no damage.
func TestReadOfWhatIsRewritten(t *testing.T) {
	for _, policy := range []string{"replicas=3", "ec=4+2"} {
		t.Run(policy, func(t *testing.T) {
			x, l := newLeasedFixture(t, 6, policy)
			want := pattern(300_000, 1)
			f := x.committed(want)
			left := 6
			l.answered = func() {
				if left--; left > 0 {
					x.rewrite(f.inode)
				}
			}
			checkContent(t, f, want)
			if left > 0 {
				t.Errorf("it was not rewritten %d times", left)
			}
			mustClose(t, f)
		})
	}
}

// TestReadOfMovedShards: where a shard is now is found out, though it is not needed for a read to succeed.
func TestReadOfMovedShards(t *testing.T) {
	for _, policy := range []string{"replicas=3", "ec=4+2"} {
		t.Run(policy, func(t *testing.T) {
			x, _ := newLeasedFixture(t, 7, policy)
			want := pattern(300_000, 1)
			f := x.committed(want)
			checkContent(t, f, want)
			var to *fakeServer
			x.meta.with(func(m *fakeMeta) {
				id := chunk.ID(m.files[f.inode].extents[0].Chunk)
				rec := m.chunks[id]
				rec.servers = slices.Clone(rec.servers)
				for _, s := range x.servers {
					if !slices.Contains(rec.servers, uint32(s.id)) {
						to = s
					}
				}
				shard := 0
				if !rec.layout.Coded() { // the one that is asked first
					shard = (3 - int(id)%3) % 3
				}
				from, stored := x.servers[rec.servers[shard]-1], id.Stored(rec.layout, shard)
				var b []byte
				from.set(func(s *fakeServer) {
					b = s.chunks[stored]
					delete(s.chunks, stored)
				})
				to.set(func(s *fakeServer) { s.chunks[stored], s.synced[stored] = b, len(b) })
				rec.servers[shard] = uint32(to.id)
			})
			eventually(t, "the server that has it now is asked", func() (asked bool) {
				checkContent(t, f, want)
				to.set(func(s *fakeServer) { asked = s.reads > 0 })
				return asked
			})
			mustClose(t, f)
		})
	}
}
