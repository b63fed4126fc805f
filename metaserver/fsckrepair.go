package metaserver

import (
	"fmt"
	"slices"

	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/lease"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	// fsckFixes is how many things one command puts right. Applying it takes some milliseconds at most.
	fsckFixes = 256
	// fsckIdle is how many repairs in a row may leave as many problems as there were: what they did is not what was wrong.
	fsckIdle = 2
)

// repair puts right what can be, and checks again, until nothing is left that it can do something about. It tells which
// problems are gone, and which came to light.
func (f *fsck) repair(found inspection) (inspection, error) {
	least, idle := found.Found, 0
	for len(found.Fixes)+len(found.Ends) > 0 && idle < fsckIdle {
		changed, err := f.apply(found)
		if err != nil {
			return found, err
		}
		next, err := f.inspect(nil)
		if err != nil {
			return found, err
		}
		for _, line := range without(found.Problems, next.Problems) {
			f.out.repair(line)
		}
		for _, line := range without(next.Problems, found.Problems) {
			f.out.problem(line)
		}
		found = next
		if idle++; !changed {
			break
		}
		if found.Found < least {
			least, idle = found.Found, 0
		}
	}
	return found, nil
}

// without returns the lines of a that b has not, in their order.
func without(a, b []string) []string {
	b = slices.Sorted(slices.Values(b))
	return slices.DeleteFunc(slices.Clone(a), func(line string) bool {
		_, there := slices.BinarySearch(b, line)
		return there
	})
}

// apply has a check's fixes applied, some in each command so that others get in between.
func (f *fsck) apply(found inspection) (changed bool, err error) {
	const phase = "repairing"
	after := uint64(0)
	for i := 0; i < len(found.Fixes); i += fsckFixes {
		f.out.progress(phase, uint64(i), uint64(len(found.Fixes)))
		part := found.Fixes[i:min(i+fsckFixes, len(found.Fixes))]
		res, err := f.propose(&pb.Op{Op: &pb.Op_RepairState{RepairState: repairOf(found.index, after, part)}})
		if err != nil {
			return changed, fmt.Errorf("the repair was not finished: %w", err)
		}
		if !res.Mismatch {
			changed, after = true, res.Index
		}
	}
	if len(found.Ends) > 0 {
		if _, err := f.propose(&pb.Op{Op: &pb.Op_ExpireSessions{ExpireSessions: &pb.ExpireSessions{Sessions: found.Ends[:min(len(found.Ends), maxExpired)]}}}); err != nil {
			return changed, fmt.Errorf("the repair was not finished: %w", err)
		}
		changed = true
	}
	if changed {
		f.l.log.Warn("a check of the cluster repaired the metadata", "problems", found.Found, "repairs", len(found.Fixes)+len(found.Ends), "first", found.Problems[0])
		f.l.repair.Changed()
	}
	return changed, nil
}

// repairOf makes a command of a check's fixes.
func repairOf(checked, after uint64, fixes []*pb.StateFix) *pb.RepairState {
	return &pb.RepairState{Checked: checked, After: after, Fixes: fixes,
		Spare: slices.ContainsFunc(fixes, func(f *pb.StateFix) bool { return f.Kind == pb.StateFix_CHUNK })}
}

// propose has a command applied once no client can use a value that it makes old.
func (f *fsck) propose(op *pb.Op) (*pb.Result, error) {
	l := f.l
	var inodes []uint64
	if err := l.s.db.ViewContext(f.ctx, func(r kv.Reader) error {
		inodes = namespace.Touched(r, op).Inodes
		return nil
	}); err != nil {
		return nil, err
	}
	change, err := l.table.Begin(f.ctx, lease.Intent{Inodes: inodes})
	if err != nil {
		return nil, l.fromTable(err)
	}
	defer change.End()
	if l.s.node.Term() != l.term {
		return nil, l.s.notLeader() // or does again: leases that another granted meanwhile were not taken back
	}
	return l.own(op)
}
