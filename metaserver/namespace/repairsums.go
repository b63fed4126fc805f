package namespace

import (
	"math"
	"syscall"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// fixInodeSum corrects a sum in an inode's record: by counting again, or by the difference that the check found.
func (x *tx) fixInodeSum(f *pb.StateFix, count *recount) bool {
	in, err := getInode(x, f.Id)
	if err != nil {
		return false
	}
	before := *in
	switch f.Sum {
	case pb.StateFix_NLINK:
		// A directory that was removed meanwhile has 0, whatever it had.
		if !in.isDir() || in.nlink > 0 || f.Seen == 0 {
			correct(&in.nlink, in, f, count)
		}
	case pb.StateFix_ENTRIES:
		if in.isDir() {
			correct(&in.size, in, f, count)
		}
	case pb.StateFix_ALLOCATED:
		correct(&in.allocated, in, f, count)
	case pb.StateFix_XATTR_BYTES:
		correct(&in.xattrBytes, in, f, count)
	}
	if in.nlink == before.nlink && in.size == before.size && in.allocated == before.allocated && in.xattrBytes == before.xattrBytes {
		return false
	}
	x.putFixed(in)
	return true
}

func correct[T uint32 | uint64](sum *T, in *inode, f *pb.StateFix, count *recount) {
	if n, ok := count.of(in, f.Sum); ok {
		if uint64(T(n)) == n {
			*sum = T(n)
		}
		return
	}
	// An inode that did not change since is wrong as it was seen, or is not wrong here: what damaged the disk of the leader need
	// not have damaged this one's.
	if in.version != f.Version || uint64(*sum) == f.Seen {
		add(sum, f.Delta)
	}
}

// add adds to a sum, unless it would not be one afterwards. Wrong ones may have been beyond all bounds before.
func add[T uint32 | uint64](sum *T, delta int64) bool {
	after := uint64(*sum) + uint64(delta)
	if after > math.MaxInt64 || uint64(T(after)) != after {
		return false
	}
	*sum = T(after)
	return true
}

// maxRecounted bounds the records that one command counts.
const maxRecounted = 32 << 10

// recount works out sums from the records that they are of, as long as these are not too many for a command.
type recount struct {
	x    *tx
	left int // records that may be read yet
}

// of is the sum as it should be. It is not known where the records are too many, all over the place, or cannot be read.
func (c *recount) of(in *inode, sum pb.StateFix_Sum) (n uint64, known bool) {
	known = true
	more := func(size uint64, err error) bool {
		n += size
		c.left--
		known = known && err == nil && c.left > 0
		return known
	}
	switch {
	case sum == pb.StateFix_ENTRIES:
		scan8(c.x, bDentry, in.num, func(_, _ []byte) bool { return more(1, nil) })
	case sum == pb.StateFix_NLINK && in.isDir():
		n = 2
		scan8(c.x, bDentry, in.num, func(_, v []byte) bool {
			_, typ, err := decodeDentry(v)
			if typ != syscall.S_IFDIR {
				return more(0, err)
			}
			return more(1, err)
		})
	case sum == pb.StateFix_XATTR_BYTES:
		scan8(c.x, bXattr, in.num, func(name, v []byte) bool {
			value, err := decodeXattr(v)
			return more(uint64(len(name)+len(value)), err)
		})
	case sum == pb.StateFix_ALLOCATED:
		n = in.inlineBytes()
		scan8(c.x, bExtent, in.num, func(number, v []byte) bool {
			size, extents, err := blockBytes(number, v)
			c.left -= extents
			return more(size, err)
		})
	default:
		return 0, false
	}
	return n, known
}

// blockBytes is how many bytes the extents of a stored block have.
func blockBytes(number, v []byte) (size uint64, extents int, err error) {
	if len(number) != 8 {
		return 0, 0, errDamaged
	}
	b, err := parseBlock(keyNumber(number), v)
	if err != nil {
		return 0, 0, err
	}
	list, err := b.pieces(0, b.count())
	for i := range list {
		size += list[i].len
	}
	return size, b.count(), err
}
