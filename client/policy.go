package client

import (
	"context"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// DefaultPolicy, given to SetPolicy, takes a policy away.
const DefaultPolicy = "default"

// Policy says how data that is written from now on is stored. The bytes of a chunk go to Data shards, of which with Parity
// more any Data give all bytes back; so many servers as Parity says may be lost. With one data shard each shard is a whole copy.
type Policy struct {
	// Own: it is recorded at the file or directory, which was given it, or was made in a directory that had it. Else the
	// cluster's default holds.
	Own          bool
	Data, Parity int
	MinCopies    int // shards that are written before a write counts
}

// String is the policy as SetPolicy takes it: "replicas=3", "ec=4+2", "ec=4+2,min-copies=6".
func (p Policy) String() string {
	return chunk.Layout{Data: p.Data, Parity: p.Parity, Min: p.MinCopies}.String()
}

// ParsePolicy reads a policy: "replicas=N" or "ec=K+M", and after a comma, where the default is not wanted, "min-copies=N".
// Own is set.
func ParsePolicy(s string) (Policy, error) {
	l, err := chunk.ParseLayout(s)
	if err != nil {
		return Policy{}, err
	}
	return policyOf(l, true), nil
}

func policyOf(l chunk.Layout, own bool) Policy {
	return Policy{Own: own, Data: l.Data, Parity: l.Parity, MinCopies: l.Min}
}

// Policy returns how data that is written from now on to the file at a path, or to files that are made in the directory
// there, is stored. A symlink at the end is followed. It is what every client sees: another client's SetPolicy that has
// returned is in it.
func (f *FS) Policy(ctx context.Context, name string) (Policy, error) {
	var p Policy
	err := f.at(ctx, name, true, func(a Attr) (err error) {
		p, err = f.policy(ctx, a.Ino)
		return err
	})
	return p, pathError("getpolicy", name, err)
}

func (f *FS) policy(ctx context.Context, ino Ino) (Policy, error) {
	a, _, err := f.meta.GetAttr(ctx, uint64(ino))
	if err != nil {
		return Policy{}, err
	}
	if l := chunk.LayoutOf(a.Layout); !l.IsZero() {
		return policyOf(l, true), nil
	}
	st, err := f.meta.Status(ctx)
	if err != nil {
		return Policy{}, err
	}
	return policyOf(chunk.LayoutOf(st.DefaultLayout), false), nil
}

// SetPolicy sets how data that is written from now on to the file at a path is stored, or to what is made in the directory
// there. A symlink at the end is followed. policy is as ParsePolicy reads it, or DefaultPolicy: the cluster's default again.
//
// What is there already stays as it is stored, and files and directories that a directory has keep the policies that they
// have: a new one gets that of its directory when it is made. Only the owner and root may set one: else the error is EPERM.
// It is EINVAL for a policy that makes no sense, one that needs more chunk servers than are healthy, and for what is neither a
// file nor a directory.
func (f *FS) SetPolicy(ctx context.Context, name, policy string) error {
	var layout *pb.Layout
	if policy != DefaultPolicy {
		l, err := chunk.ParseLayout(policy)
		if err != nil {
			return pathError("setpolicy", name, fserr.New(syscall.EINVAL, "%v", err))
		}
		layout = l.Proto()
	}
	return pathError("setpolicy", name, f.at(ctx, name, true, func(a Attr) error {
		_, err := f.meta.Mutate(ctx, f.cred, &pb.Op{Op: &pb.Op_SetLayout{SetLayout: &pb.SetLayout{Inode: uint64(a.Ino), Layout: layout}}})
		return err
	}))
}
