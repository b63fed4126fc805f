package client

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/metafake"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func dialFake(t *testing.T, m *metafake.Server) *FS {
	t.Helper()
	f, err := Dial(t.Context(), m.Address(), WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func TestManageServers(t *testing.T) {
	m := metafake.Start(t)
	var asked []string
	m.OnManage = func(r *pb.ManageServerRequest) (*pb.ManageServerReply, error) {
		asked = append(asked, r.Action.String())
		switch {
		case r.Server == 9:
			return nil, rpc.ToStatus(fserr.New(syscall.ENOENT, "there is no chunk server 9"))
		case r.Server == 8: // as plain gRPC has it
			return nil, status.Error(codes.FailedPrecondition, "chunk server 8 is the last one")
		case r.Action == pb.ManageServerRequest_REMOVE && !r.Force:
			return nil, rpc.ToStatus(fserr.New(syscall.EBUSY, "chunk server 3 holds 12 shards"))
		}
		return &pb.ManageServerReply{Shards: 12}, nil
	}
	f := dialFake(t, m)
	ctx := t.Context()
	for _, do := range []func() (uint64, error){
		func() (uint64, error) { return f.DrainServer(ctx, 3) },
		func() (uint64, error) { return f.UndrainServer(ctx, 3) },
		func() (uint64, error) { return 12, f.RemoveServer(ctx, 3, true) },
	} {
		if n, err := do(); err != nil || n != 12 {
			t.Error(n, err)
		}
	}
	if want := []string{"DRAIN", "UNDRAIN", "REMOVE"}; !slices.Equal(asked, want) {
		t.Errorf("%v, want %v", asked, want)
	}
	err := f.RemoveServer(ctx, 3, false)
	var se *ServerError
	if !errors.As(err, &se) || se.Server != 3 || !errors.Is(err, syscall.EBUSY) || err.Error() != "remove chunk server 3: holds 12 shards" {
		t.Error(err)
	}
	if _, err = f.DrainServer(ctx, 9); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err = f.DrainServer(ctx, 8); err == nil || err.Error() != "drain chunk server 8: is the last one" {
		t.Error(err)
	}
}

// A removal whose answer was lost was done if the server is not there any more.
func TestRemoveAskedAgain(t *testing.T) {
	m := metafake.Start(t)
	var calls atomic.Int32
	m.OnManage = func(*pb.ManageServerRequest) (*pb.ManageServerReply, error) {
		if calls.Add(1) == 1 {
			return nil, status.Error(codes.Unavailable, "the connection broke")
		}
		return nil, rpc.ToStatus(fserr.New(syscall.ENOENT, "there is no chunk server 3"))
	}
	f := dialFake(t, m)
	if err := f.RemoveServer(t.Context(), 3, false); err != nil {
		t.Error(err)
	}
	if err := f.RemoveServer(t.Context(), 3, false); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestScrub(t *testing.T) {
	m := metafake.Start(t)
	pass := uint64(0)
	m.OnScrub = func(r *pb.ScrubRequest) (*pb.ScrubReply, error) {
		if r.Start {
			pass++
		}
		return &pb.ScrubReply{Pass: pass}, nil
	}
	f := dialFake(t, m)
	for _, start := range []bool{true, false} {
		if r, err := f.Scrub(t.Context(), start); err != nil || r.Pass != 1 {
			t.Error(r, err)
		}
	}
}

func TestFsck(t *testing.T) {
	m := metafake.Start(t)
	m.OnFsck = func(r *pb.FsckRequest, s grpc.ServerStreamingServer[pb.FsckReply]) error {
		for _, reply := range []*pb.FsckReply{
			{Phase: "inodes", Done: 1, Total: 2},
			{Phase: "chunks", Problems: []string{"a", "b"}},
			{Phase: "chunks", Problems: []string{"c"}},
			{End: true, Inodes: 5, Chunks: 6, Shards: 7},
		} {
			if r.Repair {
				reply.Repaired = map[string][]string{"chunks": {"b"}, "": {"d"}}[reply.Phase]
				if len(reply.Problems) == 1 {
					reply.Repaired = nil
				}
			}
			if err := s.Send(reply); err != nil {
				return err
			}
		}
		return nil
	}
	f := dialFake(t, m)
	var seen []FsckProgress
	r, err := f.Fsck(t.Context(), false, func(p FsckProgress) { seen = append(seen, p) })
	if err != nil || r != (FsckResult{5, 6, 7, 3, 0, 3}) || len(seen) != 4 || seen[0].Total != 2 || seen[1].Problems[1] != "b" {
		t.Errorf("%+v, %+v, %v", r, seen, err)
	}
	// What was repaired is no problem any more, whether it was told of before or not.
	if r, err = f.Fsck(t.Context(), true, nil); err != nil || r != (FsckResult{5, 6, 7, 4, 2, 2}) {
		t.Errorf("%+v, %v", r, err)
	}
}

// A check that was cut off is begun again by itself only while it had said nothing.
func TestFsckCutOff(t *testing.T) {
	m := metafake.Start(t)
	var calls atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	m.OnFsck = func(_ *pb.FsckRequest, s grpc.ServerStreamingServer[pb.FsckReply]) error {
		switch calls.Add(1) {
		case 1:
			return rpc.ErrNotLeader("")
		case 3:
			return rpc.ToStatus(fserr.New(syscall.EBUSY, "another check runs"))
		case 4:
			cancel()
			<-s.Context().Done()
			return s.Context().Err()
		}
		if err := s.Send(&pb.FsckReply{Phase: "inodes"}); err != nil {
			return err
		}
		return rpc.ErrNotLeader("")
	}
	f := dialFake(t, m)
	if _, err := f.Fsck(t.Context(), false, nil); err == nil || !strings.Contains(err.Error(), "cut off") || calls.Load() != 2 {
		t.Error(calls.Load(), err)
	}
	if _, err := f.Fsck(t.Context(), false, nil); !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), "another check runs") {
		t.Error(err)
	}
	if _, err := f.Fsck(ctx, false, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestMetaserverTooOld(t *testing.T) {
	f := dialFake(t, metafake.Start(t))
	_, drain := f.DrainServer(t.Context(), 1)
	_, scrub := f.Scrub(t.Context(), true)
	_, fsck := f.Fsck(t.Context(), false, nil)
	for _, err := range []error{drain, scrub, fsck} {
		if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "older") || strings.Contains(err.Error(), "rpc") {
			t.Error(err)
		}
	}
}
