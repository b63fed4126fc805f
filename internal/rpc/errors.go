package rpc

import (
	"errors"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/fserr"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Kinds of errors that callers act on. Aliases, so that few packages need the generated names.
const (
	NotLeader     = pb.ErrorDetail_NOT_LEADER
	SessionEnded  = pb.ErrorDetail_SESSION_ENDED
	ChunkNotFound = pb.ErrorDetail_CHUNK_NOT_FOUND
	ChunkCorrupt  = pb.ErrorDetail_CHUNK_CORRUPT
	WrongCluster  = pb.ErrorDetail_WRONG_CLUSTER
	DiskFull      = pb.ErrorDetail_DISK_FULL
	TooLarge      = pb.ErrorDetail_TOO_LARGE
	Removed       = pb.ErrorDetail_REMOVED
)

// Error makes an error of that kind for a handler to return; the caller finds the kind with Kind.
func Error(kind pb.ErrorDetail_Kind, msg string) error {
	return detailed(codeOf(kind), msg, &pb.ErrorDetail{Kind: kind})
}

// ErrNotLeader sends the caller to the leader; an empty address means that none is known.
func ErrNotLeader(leader string) error {
	return detailed(codes.Unavailable, "this metaserver does not lead", &pb.ErrorDetail{Kind: NotLeader, Leader: leader})
}

// ToStatus turns an error of a file-system operation into one that crosses the wire with its errno. Errors that are gRPC
// statuses already pass unchanged.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return status.FromContextError(err).Err() // codes.Unknown for what is no context's error
	}
	return detailed(codes.FailedPrecondition, err.Error(), &pb.ErrorDetail{Kind: pb.ErrorDetail_ERRNO, Errno: uint32(errno)})
}

// FromStatus is the inverse of ToStatus: it returns a *fserr.Error where the status carries an errno, and err itself
// otherwise.
func FromStatus(err error) error {
	if d := Detail(err); d != nil && d.Kind == pb.ErrorDetail_ERRNO {
		return &fserr.Error{Errno: syscall.Errno(d.Errno)}
	}
	return err
}

// Detail returns what a status says beside code and message, or nil.
func Detail(err error) *pb.ErrorDetail {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok {
		return nil
	}
	for _, d := range s.Details() {
		if d, ok := d.(*pb.ErrorDetail); ok {
			return d
		}
	}
	return nil
}

// Kind returns the kind of an error, KIND_UNKNOWN when it has none.
func Kind(err error) pb.ErrorDetail_Kind { return Detail(err).GetKind() }

// detailed makes a status. Messages name paths, which may be any bytes; what is not UTF-8 would not arrive.
func detailed(code codes.Code, msg string, d *pb.ErrorDetail) error {
	msg = strings.ToValidUTF8(msg, "\uFFFD")
	s, err := status.New(code, msg).WithDetails(d)
	if err != nil {
		return status.Error(code, msg)
	}
	return s.Err()
}

func codeOf(kind pb.ErrorDetail_Kind) codes.Code {
	switch kind {
	case NotLeader:
		return codes.Unavailable
	case SessionEnded, WrongCluster, Removed:
		return codes.FailedPrecondition
	case ChunkNotFound:
		return codes.NotFound
	case ChunkCorrupt:
		return codes.DataLoss
	case DiskFull:
		return codes.ResourceExhausted
	case TooLarge:
		return codes.InvalidArgument
	}
	return codes.Unknown
}
