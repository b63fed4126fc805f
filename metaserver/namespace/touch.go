package namespace

import (
	"slices"

	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Touch says what a mutation will change.
type Touch struct {
	Inodes []uint64 // whose attributes, data or names change: sorted, each once
	Victim uint64   // the inode that may lose its last name; 0: none
}

// Touched says what an operation will change in the state that r reads, and fills in the inodes that the operation expects
// under its names: where another command has got in between when it is applied, its result is a mismatch and it has to be
// prepared again. For operations that will fail it may name more than will change.
func Touched(r kv.Reader, op *pb.Op) Touch {
	var t Touch
	switch op := op.GetOp().(type) {
	case *pb.Op_MakeNode:
		t.add(op.MakeNode.Parent)
	case *pb.Op_Link:
		t.add(op.Link.Parent, op.Link.Inode)
	case *pb.Op_Unlink:
		u := op.Unlink
		in, _ := child(r, u.Parent, u.Name) // what is damaged is reported when the command is applied
		u.Expect = numOf(in)
		t.add(u.Parent, u.Expect)
		t.mayLose(in)
	case *pb.Op_Rename:
		t.rename(r, op.Rename)
	case *pb.Op_SetAttr:
		t.add(op.SetAttr.Inode)
	case *pb.Op_SetXattr:
		t.add(op.SetXattr.Inode)
	case *pb.Op_RemoveXattr:
		t.add(op.RemoveXattr.Inode)
	case *pb.Op_Commit:
		t.add(op.Commit.Inode)
	case *pb.Op_SetLayout:
		t.add(op.SetLayout.Inode)
	case *pb.Op_Relocate:
		t.add(op.Relocate.Inode)
	case *pb.Op_RepairState:
		t.repairs(r, op.RepairState.Fixes)
	}
	return t
}

func (t *Touch) rename(r kv.Reader, op *pb.Rename) {
	src, _ := child(r, op.Parent, op.Name)
	dst, _ := child(r, op.NewParent, op.NewName)
	op.Expect, op.ExpectReplaced = numOf(src), numOf(dst)
	t.add(op.Parent, op.NewParent, op.Expect, op.ExpectReplaced)
	if !op.Exchange && !op.NoReplace && op.Expect != op.ExpectReplaced {
		t.mayLose(dst)
	}
}

func (t *Touch) repairs(r kv.Reader, fixes []*pb.StateFix) {
	for _, f := range fixes {
		switch f.Kind {
		case pb.StateFix_ADD:
			if f.Sum < pb.StateFix_NLINK || f.Sum > pb.StateFix_XATTR_BYTES {
				continue
			}
		case pb.StateFix_INODE, pb.StateFix_PARENT, pb.StateFix_NAME:
		case pb.StateFix_REMAKE, pb.StateFix_ATTACH:
			lost, _, _ := getDentry(r, posix.RootInode, []byte(lostFound)) // 0 while there is none
			t.add(posix.RootInode, lost)
		default:
			continue
		}
		t.add(f.Id)
		if len(f.Key) > 8 {
			parent, _ := nameOf(f.Key)
			num, _, _ := decodeDentry(r.Get(bDentry, f.Key)) // 0 where it is damaged
			t.add(parent, num)
		}
	}
}

func (t *Touch) mayLose(in *inode) {
	if in != nil && (in.isDir() || in.nlink <= 1) {
		t.Victim = in.num
	}
}

func (t *Touch) add(inodes ...uint64) {
	for _, num := range inodes {
		if i, found := slices.BinarySearch(t.Inodes, num); !found && num != 0 {
			t.Inodes = slices.Insert(t.Inodes, i, num)
		}
	}
}
