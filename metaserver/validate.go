package metaserver

import (
	"errors"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Bounds on what one request may hold, beside the size of a message.
const (
	maxExtents      = 16384 // of a Commit
	maxChunkCommits = 1024
	maxCopies       = 64 // servers of one ChunkCommit
	maxAvoid        = 1024
	maxReleased     = 64 << 10
	maxClientName   = 1024 // bytes
	nonceSize       = 16   // bytes
	maxXattrName    = 255  // bytes
)

// refusal makes the Result of a request that is refused before it is proposed.
func refusal(err error) *pb.Result {
	res := &pb.Result{Errno: uint32(fserr.Errno(err))}
	if e := (*fserr.Error)(nil); errors.As(err, &e) {
		res.Message = e.Detail
	}
	return res
}

// validate checks what can be checked of a mutation without the state. An error carries the errno.
func validate(req *pb.MutateRequest) error {
	if n := len(req.GetCred().GetGroups()); n > posix.MaxGroups {
		return fserr.New(syscall.EINVAL, "a caller in %d groups, at most %d", n, posix.MaxGroups)
	}
	_, opening := req.GetOp().GetOp().(*pb.Op_OpenSession)
	switch {
	case opening && (req.Session != 0 || req.Sequence != 0):
		return fserr.New(syscall.EINVAL, "a session opened within session %d", req.Session)
	case !opening && req.GetSession() == 0:
		return fserr.New(syscall.EINVAL, "a mutation without a session")
	case !opening && (req.Sequence == 0 || req.Sequence < req.Unanswered):
		return fserr.New(syscall.EINVAL, "sequence %d below the unanswered %d", req.Sequence, req.Unanswered)
	}
	return validateOp(req.GetOp())
}

func validateOp(op *pb.Op) error {
	switch op := op.GetOp().(type) {
	case *pb.Op_MakeNode:
		if n := len(op.MakeNode.Symlink); n > posix.MaxSymlink {
			return fserr.New(syscall.ENAMETOOLONG, "a symlink of %d bytes, at most %d", n, posix.MaxSymlink)
		}
		return posix.CheckName(op.MakeNode.Name)
	case *pb.Op_Link:
		return posix.CheckName(op.Link.Name)
	case *pb.Op_Unlink:
		return posix.CheckName(op.Unlink.Name)
	case *pb.Op_Rename:
		if err := posix.CheckName(op.Rename.Name); err != nil {
			return err
		}
		return posix.CheckName(op.Rename.NewName)
	case *pb.Op_SetXattr:
		return validateXattr(op.SetXattr.Name, len(op.SetXattr.Value))
	case *pb.Op_RemoveXattr:
		return validateXattr(op.RemoveXattr.Name, 0)
	case *pb.Op_Commit:
		return validateCommit(op.Commit)
	case *pb.Op_AllocChunks:
		if n := len(op.AllocChunks.Avoid); n > maxAvoid {
			return fserr.New(syscall.EINVAL, "%d servers to avoid, at most %d", n, maxAvoid)
		}
	case *pb.Op_Relocate:
		if r, b := len(op.Relocate.Ranges), len(op.Relocate.Blocks); r > namespace.MaxRelocateRanges || b > namespace.MaxRelocateBlocks {
			return fserr.New(syscall.EINVAL, "%d ranges and %d blocks to relocate, at most %d and %d", r, b, namespace.MaxRelocateRanges, namespace.MaxRelocateBlocks)
		}
		return validateChunks(op.Relocate.Chunks)
	case *pb.Op_SealChunks:
		return validateChunks(op.SealChunks.Chunks)
	case *pb.Op_ReleaseInodes:
		if n := len(op.ReleaseInodes.Inodes); n > maxReleased {
			return fserr.New(syscall.EINVAL, "%d inodes to release, at most %d", n, maxReleased)
		}
	case *pb.Op_OpenSession:
		if len(op.OpenSession.Nonce) != nonceSize || len(op.OpenSession.Client) > maxClientName {
			return fserr.New(syscall.EINVAL, "a session with a nonce of %d bytes and a name of %d", len(op.OpenSession.Nonce), len(op.OpenSession.Client))
		}
	case *pb.Op_SetLayout:
		if layout := chunk.LayoutOf(op.SetLayout.Layout); !layout.IsZero() {
			if err := layout.Check(false); err != nil {
				return fserr.New(syscall.EINVAL, "%v", err)
			}
		}
	case *pb.Op_SetAttr, *pb.Op_CloseSession:
	default:
		return fserr.New(syscall.EOPNOTSUPP, "an operation that clients cannot ask for: %T", op)
	}
	return nil
}

func validateXattr(name string, size int) error {
	switch {
	case name == "" || len(name) > maxXattrName:
		return fserr.New(syscall.ERANGE, "an xattr's name of %d bytes, 1 to %d", len(name), maxXattrName)
	case size > posix.MaxXattr:
		return fserr.New(syscall.E2BIG, "an xattr of %d bytes, at most %d", size, posix.MaxXattr)
	}
	return nil
}

func validateCommit(op *pb.Commit) error {
	if n := len(op.Extents); n > maxExtents {
		return fserr.New(syscall.EINVAL, "%d extents in a commit, at most %d", n, maxExtents)
	}
	inline := 0
	for _, e := range op.Extents {
		if e.GetChunk() != 0 && len(e.Data) > 0 {
			return fserr.New(syscall.EINVAL, "an extent with inline data and a chunk")
		}
		if inline += len(e.GetData()); inline > posix.MaxInline {
			return fserr.New(syscall.E2BIG, "more than %d bytes of inline data", posix.MaxInline)
		}
	}
	return validateChunks(op.Chunks)
}

func validateChunks(chunks []*pb.ChunkCommit) error {
	if n := len(chunks); n > maxChunkCommits {
		return fserr.New(syscall.EINVAL, "%d chunks in a command, at most %d", n, maxChunkCommits)
	}
	for _, c := range chunks {
		if n := len(c.GetServers()); n > maxCopies {
			return fserr.New(syscall.EINVAL, "a chunk on %d servers, at most %d", n, maxCopies)
		}
	}
	return nil
}

// own returns an operation whose fields that only the leader may set are clear, and can be set: the request's stays as it is.
func own(op *pb.Op) *pb.Op {
	switch op := op.GetOp().(type) {
	case *pb.Op_Unlink:
		u := op.Unlink
		return &pb.Op{Op: &pb.Op_Unlink{Unlink: &pb.Unlink{
			Parent: u.Parent, Name: u.Name, Directory: u.Directory, Opened: u.Opened, Hint: u.Hint,
		}}}
	case *pb.Op_Rename:
		m := op.Rename
		return &pb.Op{Op: &pb.Op_Rename{Rename: &pb.Rename{
			Parent: m.Parent, Name: m.Name, NewParent: m.NewParent, NewName: m.NewName,
			NoReplace: m.NoReplace, Exchange: m.Exchange, Opened: m.Opened, Hint: m.Hint,
		}}}
	case *pb.Op_AllocChunks:
		a := op.AllocChunks
		return &pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: a.Count, Want: a.Want, Avoid: a.Avoid}}}
	}
	return op
}
