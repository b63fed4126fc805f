package meta

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// What operators ask of the leader. It may refuse, and says why in words that are kept.

// ManageServer drains a chunk server, takes that back, or removes it, and returns how many shards it holds still. A removal
// whose answer was lost, of a server that then is not there, was done.
func (c *Client) ManageServer(ctx context.Context, server uint32, action pb.ManageServerRequest_Action, force bool) (uint64, error) {
	var r *pb.ManageServerReply
	tried := 0
	err := c.order(ctx, "ManageServer", &tried, func(ctx context.Context, api pb.MetaClient) (err error) {
		r, err = api.ManageServer(ctx, &pb.ManageServerRequest{Server: server, Action: action, Force: force})
		return err
	})
	if tried > 0 && action == pb.ManageServerRequest_REMOVE && isErrno(err, syscall.ENOENT) {
		return 0, nil
	}
	return r.GetShards(), err
}

// Scrub says how far the newest pass of all servers is, after it started another one if asked to.
func (c *Client) Scrub(ctx context.Context, start bool) (r *pb.ScrubReply, err error) {
	err = c.order(ctx, "Scrub", nil, func(ctx context.Context, api pb.MetaClient) (err error) {
		r, err = api.Scrub(ctx, &pb.ScrubRequest{Start: start})
		return err
	})
	return r, err
}

// order calls the leader until it does what is asked of it or refuses.
func (c *Client) order(ctx context.Context, method string, tried *int, f func(context.Context, pb.MetaClient) error) error {
	var refused error
	err := c.conn.call(ctx, method, tried, func(ctx context.Context, api pb.MetaClient) error {
		err := f(ctx, api)
		if refused = refusal(err); refused != nil {
			return nil // it was answered
		}
		return err
	})
	if refused != nil {
		return refused
	}
	return err
}

// refusal is why a metaserver that leads will not do what it was asked; nil for what is no such answer.
func refusal(err error) error {
	if err == nil {
		return nil
	}
	s, d := status.Convert(err), rpc.Detail(err)
	if s.Code() == codes.Unimplemented {
		return fserr.New(syscall.EOPNOTSUPP, "the metaserver does not know how to; its shoal is older than this one")
	}
	errno := syscall.Errno(0)
	switch {
	case d.GetKind() == pb.ErrorDetail_ERRNO:
		errno = syscall.Errno(d.Errno)
	case d.GetKind() != pb.ErrorDetail_KIND_UNKNOWN:
		return nil
	case s.Code() == codes.FailedPrecondition:
		errno = syscall.EBUSY
	case s.Code() == codes.NotFound:
		errno = syscall.ENOENT
	case s.Code() == codes.InvalidArgument:
		errno = syscall.EINVAL
	default:
		return nil
	}
	text := strings.TrimSuffix(s.Message(), errno.Error())
	return &fserr.Error{Errno: errno, Detail: strings.TrimSuffix(text, ": ")}
}

// Fsck has the leader check the cluster, and calls each with what it says until it is done. A check that was cut off after it
// said something fails: what it would still have found is not known.
func (c *Client) Fsck(ctx context.Context, repair bool, each func(*pb.FsckReply)) error {
	for {
		t, err := c.conn.current(ctx)
		if err != nil {
			return err
		}
		began, err := c.fsckAt(ctx, t, repair, each)
		refused := refusal(err)
		switch code := status.Code(err); {
		case err == nil || refused != nil:
			c.conn.works(t)
			return refused
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case began || errors.Is(err, io.EOF):
			return fmt.Errorf("the check was cut off (%s): start it again", cutBy(t, err))
		case code == codes.Internal, rpc.Kind(err) == rpc.WrongCluster, code == codes.PermissionDenied, code == codes.Unauthenticated, code == codes.ResourceExhausted:
			return err
		}
		c.conn.leave(t, err)
	}
}

func cutBy(t *target, err error) string {
	switch {
	case t.ctx.Err() != nil:
		return "the metaserver at " + t.address + " does not answer or does not lead any more"
	case errors.Is(err, io.EOF):
		return "the metaserver at " + t.address + " ended it early"
	}
	return reasonOf(err)
}

// fsckAt runs a check at one metaserver; began says that it has said something.
func (c *Client) fsckAt(ctx context.Context, t *target, repair bool, each func(*pb.FsckReply)) (began bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	t.calls.Add(1)
	defer t.calls.Add(-1)
	t.sign()
	c.metrics.rpcs.WithLabelValues("Fsck").Inc()
	stream, err := t.api.Fsck(ctx, &pb.FsckRequest{Repair: repair})
	if err != nil {
		return false, err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return began, err
		}
		t.sign()
		began = true
		each(m)
		if m.End {
			return true, nil
		}
	}
}

// ApplyPolicy has files stored as their policies say and tells how far each is. It goes on as long as it is asked for again.
func (c *Client) ApplyPolicy(ctx context.Context, cred posix.Cred, inodes []uint64, keep bool) (*pb.ApplyPolicyReply, error) {
	var r *pb.ApplyPolicyReply
	err := c.order(ctx, "ApplyPolicy", nil, func(ctx context.Context, api pb.MetaClient) (err error) {
		r, err = api.ApplyPolicy(ctx, &pb.ApplyPolicyRequest{Cred: credOf(cred), Inodes: inodes, Keep: keep})
		return err
	})
	if err == nil && len(r.GetFiles()) != len(inodes) {
		return nil, fserr.New(syscall.EIO, "the metaserver's answer is about %d of %d files", len(r.GetFiles()), len(inodes))
	}
	return r, err
}
