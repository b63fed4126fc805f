package chunk

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	// MaxShards bounds the shards of a chunk, data and parity together.
	MaxShards = 32
	// PackedCell is the cell of chunks that small writes share: little is wasted when each ends its row.
	PackedCell = 1 << 10
	// MinCell and MaxCell bound the cell of a coded chunk, in bytes; a cell is a multiple of MinCell.
	MinCell = 512
	MaxCell = MaxFrame

	// shardShift is where in a stored id the number of the shard is. Below it is the counter of chunks, above it the shard of
	// the metadata.
	shardShift = 40
	// MaxID bounds the counter of chunks.
	MaxID     = 1 << shardShift
	shardMask = 0xff << shardShift
)

// Stored returns the id under which a chunk server keeps a shard of the chunk: the chunk's own id for whole copies, which are
// all the same; for shards of a code an id that no other shard has, so that one can never be taken for another.
func (id ID) Stored(l Layout, shard int) ID {
	if !l.Coded() {
		return id
	}
	return id | ID(shard+1)<<shardShift
}

// Chunk returns the chunk that a stored id belongs to.
func (id ID) Chunk() ID { return id &^ shardMask }

// Shard returns the number of the shard that a stored id names, -1 for a whole copy.
func (id ID) Shard() int { return int(id&shardMask>>shardShift) - 1 }

// Layout says how the bytes of a chunk lie on servers. They are cut into cells, dealt out to Data shards one after the
// other; a row is a cell of each. Parity more shards hold what Reed-Solomon coding makes of the cells of each row, so that any
// Data of the shards give all bytes back. With one data shard all shards are copies, and cells do not matter.
//
// The coding is that of github.com/klauspost/reedsolomon with its default (Vandermonde-based) matrix, which is systematic.
type Layout struct {
	Data   int
	Parity int
	Min    int // shards that hold bytes before a write counts
	Cell   int // bytes; 0 for copies, or where it is not said yet
}

// Copies is a layout of n whole copies with the default minimum.
func Copies(n int) Layout { return Layout{Data: 1, Parity: n - 1}.WithMin(0) }

// Coded tells whether the shards differ from each other.
func (l Layout) Coded() bool { return l.Data > 1 }

// IsZero tells whether this is no layout but stands for the cluster's default.
func (l Layout) IsZero() bool { return l.Data == 0 }

// Width is the number of shards.
func (l Layout) Width() int { return l.Data + l.Parity }

// WithMin sets the minimum; 0 stands for the default: all shards but one, and as many as survive one loss.
func (l Layout) WithMin(n int) Layout {
	if n == 0 {
		n = min(max(l.Width()-1, l.Data+1), l.Width())
	}
	l.Min = n
	return l
}

// WideCell is the cell of chunks for files that are written in one go: about as much as makes a frame of MaxFrame bytes
// one row, so that such a frame is cut into few pieces.
func (l Layout) WideCell() int {
	if !l.Coded() {
		return 0
	}
	const page = 4 << 10
	return (MaxFrame/l.Data + page - 1) / page * page
}

// Row is how many bytes of the chunk a row has; 1 for copies, which need not be filled up.
func (l Layout) Row() int {
	if !l.Coded() {
		return 1
	}
	return l.Data * l.Cell
}

// Padded is the smallest multiple of a row that n bytes fit in.
func (l Layout) Padded(n int) int {
	row := l.Row()
	return (n + row - 1) / row * row
}

// ShardLength is how long each shard of a chunk of a padded length is.
func (l Layout) ShardLength(length uint64) uint64 { return length / uint64(max(l.Data, 1)) }

// ChunkLength is the opposite of ShardLength.
func (l Layout) ChunkLength(shard uint64) uint64 { return shard * uint64(max(l.Data, 1)) }

// Check says what is wrong with a policy or, with cells, a layout.
func (l Layout) Check(cells bool) error {
	switch {
	case l.Data < 1 || l.Parity < 0 || l.Data > MaxShards || l.Parity > MaxShards || l.Width() > MaxShards:
		return fmt.Errorf("%d data and %d parity shards; there are 1 to %d, of which at least one is data", l.Data, l.Parity, MaxShards)
	case l.Coded() && l.Parity == 0:
		return errors.New("a code without parity does not survive the loss of any server: ask for ec=K+M with M of at least 1")
	case l.Min < l.Data || l.Min > l.Width():
		return fmt.Errorf("min-copies=%d: a write counts with %d to %d of its shards", l.Min, l.Data, l.Width())
	case !cells && l.Cell != 0 || !l.Coded() && l.Cell != 0:
		return fmt.Errorf("cells of %d bytes where there are none", l.Cell)
	case cells && l.Coded() && (l.Cell < MinCell || l.Cell > MaxCell || l.Cell%MinCell != 0):
		return fmt.Errorf("cells of %d bytes; they have %d to %d, in multiples of %d", l.Cell, MinCell, MaxCell, MinCell)
	}
	return nil
}

// String is the layout as ParseLayout reads it.
func (l Layout) String() string {
	s := fmt.Sprintf("replicas=%d", l.Width())
	if l.Coded() {
		s = fmt.Sprintf("ec=%d+%d", l.Data, l.Parity)
	}
	if l.Min != l.WithMin(0).Min {
		s += fmt.Sprintf(",min-copies=%d", l.Min)
	}
	return s
}

// ParseLayout reads a policy: replicas=N or ec=K+M, and after a comma or a space, where the default is not wanted,
// min-copies=N (of a code: shards).
func ParseLayout(s string) (Layout, error) {
	var l Layout
	least := 0
	fields := strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
	for _, f := range fields {
		key, value, _ := strings.Cut(f, "=")
		data, parity, coded := strings.Cut(value, "+")
		n, err := strconv.Atoi(data)
		m := 0
		if err == nil && coded {
			m, err = strconv.Atoi(parity)
		}
		switch {
		case err != nil || n < 1 || m < 0 || n > MaxShards || coded != (key == "ec"):
			return Layout{}, fmt.Errorf("policy %q: cannot make sense of %q; want replicas=N or ec=K+M, and perhaps min-copies=N", s, f)
		case key == "replicas" && l.IsZero():
			l = Layout{Data: 1, Parity: n - 1}
		case key == "ec" && l.IsZero() && n == 1:
			l = Layout{Data: 1, Parity: m} // which is what it is
		case key == "ec" && l.IsZero():
			l = Layout{Data: n, Parity: m}
		case key == "min-copies" && least == 0:
			least = n
		default:
			return Layout{}, fmt.Errorf("policy %q: %q is unknown or there twice; want replicas=N or ec=K+M, and perhaps min-copies=N", s, f)
		}
	}
	if l.IsZero() {
		return Layout{}, fmt.Errorf("policy %q: want replicas=N or ec=K+M", s)
	}
	l = l.WithMin(least)
	if err := l.Check(false); err != nil {
		return Layout{}, fmt.Errorf("policy %q: %w", s, err)
	}
	return l, nil
}

// LayoutOf reads a layout from the wire; nil is the zero Layout. It checks nothing.
func LayoutOf(l *pb.Layout) Layout {
	if l.GetData() == 0 {
		return Layout{}
	}
	out := Layout{Data: small(l.Data), Parity: small(l.Parity), Cell: int(min(l.Cell, 1<<30))}
	return out.WithMin(small(l.MinShards))
}

// small keeps numbers from a peer from overflowing when they are added up.
func small(n uint32) int { return int(min(n, 1<<10)) }

// Proto is the layout on the wire; nil for the zero Layout.
func (l Layout) Proto() *pb.Layout {
	if l.IsZero() {
		return nil
	}
	return &pb.Layout{MinShards: uint32(l.Min), Data: uint32(l.Data), Parity: uint32(l.Parity), Cell: uint32(l.Cell)}
}

// Run is a range of a shard that holds a range of the chunk without a gap.
type Run struct {
	Shard  int
	Offset uint64 // in the shard
	Chunk  uint64 // in the chunk
	Len    int
}

// Runs calls fn for the runs that hold the chunk's bytes [from, to), in the order of the chunk: one for each cell that is
// touched. Of copies there is one, of shard 0.
func (l Layout) Runs(from, to uint64, fn func(Run)) {
	if !l.Coded() {
		fn(Run{0, from, from, int(to - from)})
		return
	}
	cell := uint64(l.Cell)
	for at := from; at < to; {
		number, in := at/cell, at%cell
		n := min(cell-in, to-at)
		fn(Run{int(number % uint64(l.Data)), number/uint64(l.Data)*cell + in, at, int(n)})
		at += n
	}
}

// Window returns the smallest range of a shard that, taken of all data shards, holds the chunk's bytes [from, to). It is
// exact for a range within one cell.
func (l Layout) Window(from, to uint64) (lo, hi uint64) {
	lo = ^uint64(0)
	cell, row := uint64(l.Cell), uint64(l.Row())
	if !l.Coded() {
		return from, to
	}
	first, last := from/row, (to-1)/row
	if first != last || from/cell != (to-1)/cell {
		return first * cell, (last + 1) * cell
	}
	l.Runs(from, to, func(r Run) { lo, hi = min(lo, r.Offset), max(hi, r.Offset+uint64(r.Len)) })
	return lo, hi
}
