package client

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/shoalfs/shoalfs/internal/fserr"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// ServerError is why something was not done to a chunk server. Its cause answers errors.Is(err, fs.ErrNotExist) where there
// is no such server, errors.Is(err, syscall.EBUSY) where it still holds data, and errors.Is(err, errors.ErrUnsupported) where
// the metaserver is too old to know how.
type ServerError struct {
	Op     string // drain, undrain or remove
	Server uint32
	Err    error
}

func (e *ServerError) Error() string {
	reason := e.Err.Error()
	if said := (*fserr.Error)(nil); errors.As(e.Err, &said) && said.Detail != "" {
		reason = said.Detail // which the metaserver wrote as a sentence
	}
	server := fmt.Sprintf("chunk server %d", e.Server)
	return e.Op + " " + server + ": " + strings.TrimPrefix(reason, server+" ")
}

func (e *ServerError) Unwrap() error { return e.Err }

// DrainServer has all that a chunk server holds moved to others, and nothing new put there. It returns when that is
// recorded, with the number of shards that the server still holds; Servers tells how it gets on (Draining, Shards, Progress).
// The server goes on serving what it holds. A drain ends only by UndrainServer or RemoveServer, and outlives metaservers.
func (f *FS) DrainServer(ctx context.Context, id uint32) (shards uint64, err error) {
	return f.manage(ctx, "drain", id, pb.ManageServerRequest_DRAIN, false)
}

// UndrainServer takes a drain back: the server gets new data again. What was moved away already stays where it is now.
func (f *FS) UndrainServer(ctx context.Context, id uint32) (shards uint64, err error) {
	return f.manage(ctx, "undrain", id, pb.ManageServerRequest_UNDRAIN, false)
}

// RemoveServer makes the cluster forget a chunk server. While the server holds something that is refused with EBUSY, unless
// force is given: that is for a server that will never come back, whose data is then made anew as far as other servers have
// what that takes.
func (f *FS) RemoveServer(ctx context.Context, id uint32, force bool) error {
	_, err := f.manage(ctx, "remove", id, pb.ManageServerRequest_REMOVE, force)
	return err
}

func (f *FS) manage(ctx context.Context, op string, id uint32, action pb.ManageServerRequest_Action, force bool) (uint64, error) {
	shards, err := f.meta.ManageServer(ctx, id, action, force)
	if err != nil {
		return 0, &ServerError{Op: op, Server: id, Err: err}
	}
	return shards, nil
}

// Scrub has every chunk server read and check all that it holds, when start is set, and says how far that is: asked again
// without start, it tells of the newest pass. A server's progress counts once its Pass is that of the reply. The pass goes on
// whether or not anybody asks. What is found bad is made anew from the other servers, without being asked for.
//
// The error is errors.ErrUnsupported where the metaserver is too old to know how.
func (f *FS) Scrub(ctx context.Context, start bool) (*pb.ScrubReply, error) {
	r, err := f.meta.Scrub(ctx, start)
	return r, pathError("scrub", "/", err)
}

// FsckProgress is what Fsck says while it works.
type FsckProgress struct {
	Phase       string   // what is being checked
	Done, Total uint64   // of that; Total is 0 while it is not known
	Problems    []string // found since the last time, a line each
	Repaired    []string // likewise, what was repaired
}

// FsckResult is what a check came to.
type FsckResult struct {
	Inodes, Chunks, Shards uint64 // checked
	Found, Repaired        int    // problems
	Left                   int    // problems that were not repaired
}

// Fsck checks the metadata, and what the chunk servers hold against it, while the cluster works, and repairs what it can if
// it is asked to. progress, unless nil, is called from this goroutine as the check gets on.
//
// Problems are no error: the result counts them. After an error the check is incomplete, whatever it found: the leading
// metaserver changed, say. The error is errors.ErrUnsupported where the metaserver is too old to know how.
func (f *FS) Fsck(ctx context.Context, repair bool, progress func(FsckProgress)) (FsckResult, error) {
	var r FsckResult
	left := map[string]int{}
	err := f.meta.Fsck(ctx, repair, func(m *pb.FsckReply) {
		for _, p := range m.Problems {
			left[p]++
		}
		r.Found += len(m.Problems)
		r.Repaired += len(m.Repaired)
		for _, p := range m.Repaired {
			if left[p] > 0 {
				left[p]--
			} else {
				r.Found++ // it was told of once, as repaired
			}
		}
		if m.End {
			r.Inodes, r.Chunks, r.Shards = m.Inodes, m.Chunks, m.Shards
		}
		if progress != nil {
			progress(FsckProgress{Phase: m.Phase, Done: m.Done, Total: m.Total, Problems: m.Problems, Repaired: m.Repaired})
		}
	})
	r.Left = r.Found - r.Repaired
	return r, pathError("fsck", "/", err)
}
