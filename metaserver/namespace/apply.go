package namespace

import (
	"errors"
	"syscall"

	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// CommandVersion is the newest command set that Apply knows.
const CommandVersion = 4

// VersionOf is the command set that an operation belongs to. A metaserver that does not know a command stops, as it would
// else go on with another state than its peers: so a command says no higher number than it needs.
func VersionOf(op *pb.Op) uint32 {
	switch op := op.GetOp().(type) {
	case *pb.Op_StartRewrite, *pb.Op_FinishRewrite, *pb.Op_DropRewrites:
		return 2
	case *pb.Op_RepairState:
		if op.RepairState.GetSpare() {
			return 3
		}
		return 2
	case *pb.Op_StartMoves:
		if op.StartMoves.GetKeep() {
			return 3
		}
	case *pb.Op_LoseShards:
		if op.LoseShards.GetDamaged() {
			return 3
		}
	case *pb.Op_RaiseCommands:
		return max(4, op.RaiseCommands.GetVersion()) // whoever does not know what is to come stops here
	case *pb.Op_MarkState:
		return 4
	}
	return 1
}

// tx is one command being applied.
type tx struct {
	kv.Txn
	index   uint64
	now     int64 // the command's time, never before that of an earlier one; ns
	session uint64
	cred    posix.Cred
	c       counters
	ended   bool // the command ended its own session: there is nowhere to record its result
}

// Apply applies the command at a log index and returns its result. t must hold no other writes: a command that fails
// leaves nothing but the record of its result. The same commands in the same order give the same state, byte for byte.
//
// A command of a session is applied once: when its (session, sequence) has a recorded result, that is returned.
// IsSessionEnded tells the result for a session that does not exist.
func Apply(t kv.Txn, index uint64, cmd *pb.Command) *pb.Result {
	x := &tx{Txn: t, index: index, session: cmd.GetSession(), cred: credOf(cmd.GetCred())}
	if v := cmd.GetVersion(); v > CommandVersion || max(v, 1) < VersionOf(cmd.GetOp()) || cmd.GetShard() != 0 {
		return x.failed(fserr.New(syscall.EOPNOTSUPP, "a command of version %d for shard %d", cmd.GetVersion(), cmd.GetShard()))
	}
	made, err := x.loadCounters()
	if err != nil {
		return x.failed(err)
	}
	x.now = max(cmd.GetTime(), x.c.clock)
	x.c.clock = x.now
	op := cmd.GetOp()
	if _, init := op.GetOp().(*pb.Op_InitCluster); !made && !init {
		return x.failed(fserr.New(syscall.EAGAIN, "the cluster has not been initialised"))
	}
	if x.session == 0 {
		res, err := x.applyOwn(op)
		return x.finish(res, err)
	}
	return x.applyOnce(cmd)
}

// applyOnce applies a client's command unless it has been applied already, and records the result.
func (x *tx) applyOnce(cmd *pb.Command) *pb.Result {
	w, ok, err := getWindow(x, x.session)
	switch {
	case err != nil:
		return x.failed(err)
	case !ok:
		return &pb.Result{Index: x.index, Errno: uint32(syscall.ESTALE), Message: sessionEnded}
	}
	key := key16(x.session, cmd.Sequence)
	if v := x.Get(bResult, key); v != nil && cmd.Sequence != 0 {
		res := new(pb.Result)
		if err := proto.Unmarshal(v, res); err != nil {
			return x.failed(damaged(bResult, key))
		}
		return res
	}
	if err := w.admit(cmd); err != nil {
		return x.failed(err)
	}
	res, err := x.applyClient(cmd.Op)
	res = x.finish(res, err)
	if res.Mismatch || x.ended {
		return res
	}
	v, err := x.encodeResult(res)
	if err != nil {
		return x.failed(fserr.New(syscall.EIO, "record a result: %v", err))
	}
	x.Put(bResult, key, v)
	x.moveWindow(w, cmd.Unanswered)
	return res
}

// encodeResult makes the record of a result. Its message is left out, for another version might have other words, and other bytes of the
// state with them: a retry gets the errno.
func (x *tx) encodeResult(res *pb.Result) ([]byte, error) {
	if res.Message == "" {
		return proto.Marshal(res)
	}
	set, err := Commands(x)
	if err != nil {
		return nil, err
	}
	v, err := proto.Marshal(res)
	if err == nil && set < wordless {
		return v, nil
	}
	message := res.Message
	res.Message = ""
	v, bad := proto.Marshal(res)
	if err == nil { // else it is not valid UTF-8, and cannot be sent either
		res.Message = message
	}
	return v, bad
}

// finish completes a result; when the command failed, its writes are dropped.
func (x *tx) finish(res *pb.Result, err error) *pb.Result {
	if err != nil {
		return x.failed(err)
	}
	if res.Mismatch {
		x.Reset()
	} else {
		x.Put(bState, countersKey, x.c.encode())
	}
	res.Index = x.index
	return res
}

// failed drops what was written and turns an error into a result.
func (x *tx) failed(err error) *pb.Result {
	x.Reset()
	res := &pb.Result{Index: x.index, Errno: uint32(fserr.Errno(err))}
	if e := (*fserr.Error)(nil); errors.As(err, &e) {
		res.Message = e.Detail
	}
	return res
}

func (x *tx) loadCounters() (made bool, err error) {
	v := x.Get(bState, countersKey)
	if v == nil {
		return false, nil
	}
	if x.c, err = decodeCounters(v); err != nil {
		return false, damaged(bState, countersKey)
	}
	return true, nil
}

// applyClient applies an operation that a client may ask for within its session.
func (x *tx) applyClient(op *pb.Op) (*pb.Result, error) {
	switch op := op.GetOp().(type) {
	case *pb.Op_MakeNode:
		return x.makeNode(op.MakeNode)
	case *pb.Op_Link:
		return x.link(op.Link)
	case *pb.Op_Unlink:
		return x.unlink(op.Unlink)
	case *pb.Op_Rename:
		return x.rename(op.Rename)
	case *pb.Op_SetAttr:
		return x.setAttr(op.SetAttr)
	case *pb.Op_SetXattr:
		return x.setXattr(op.SetXattr)
	case *pb.Op_RemoveXattr:
		return x.removeXattr(op.RemoveXattr)
	case *pb.Op_Commit:
		return x.commit(op.Commit)
	case *pb.Op_AllocChunks:
		return x.allocChunks(op.AllocChunks)
	case *pb.Op_SealChunks:
		return x.sealChunks(op.SealChunks)
	case *pb.Op_ReleaseInodes:
		return x.releaseInodes(op.ReleaseInodes)
	case *pb.Op_CloseSession:
		return x.closeSession()
	case *pb.Op_SetLayout:
		return x.setLayout(op.SetLayout)
	case *pb.Op_Relocate:
		return x.relocate(op.Relocate)
	}
	return nil, fserr.New(syscall.EINVAL, "an operation that no session may ask for: %T", op.GetOp())
}

// applyOwn applies an operation that the leader asks for outside of any session.
func (x *tx) applyOwn(op *pb.Op) (*pb.Result, error) {
	switch op := op.GetOp().(type) {
	case *pb.Op_OpenSession:
		return x.openSession(op.OpenSession)
	case *pb.Op_ExpireSessions:
		return x.expireSessions(op.ExpireSessions)
	case *pb.Op_InitCluster:
		return x.initCluster(op.InitCluster)
	case *pb.Op_RegisterServer:
		return x.registerServer(op.RegisterServer)
	case *pb.Op_FinishDeletions:
		return x.finishDeletions(op.FinishDeletions)
	case *pb.Op_StartMoves:
		return x.startMoves(op.StartMoves)
	case *pb.Op_FinishMoves:
		return x.finishMoves(op.FinishMoves)
	case *pb.Op_LoseShards:
		return x.loseShards(op.LoseShards)
	case *pb.Op_SetServer:
		return x.setServer(op.SetServer)
	case *pb.Op_RemoveServer:
		return x.removeServer(op.RemoveServer)
	case *pb.Op_StartRewrite:
		return x.startRewrite(op.StartRewrite)
	case *pb.Op_FinishRewrite:
		return x.finishRewrite(op.FinishRewrite)
	case *pb.Op_DropRewrites:
		return x.dropRewrites(op.DropRewrites)
	case *pb.Op_RepairState:
		return x.repairState(op.RepairState)
	case *pb.Op_MarkState:
		return &pb.Result{}, nil
	case *pb.Op_RaiseCommands:
		return x.raiseCommands(op.RaiseCommands)
	}
	return nil, fserr.New(syscall.EINVAL, "an operation that needs a session: %T", op.GetOp())
}

func credOf(c *pb.Cred) posix.Cred {
	return posix.Cred{UID: c.GetUid(), GID: c.GetGid(), Groups: c.GetGroups()}
}

func (x *tx) putInode(in *inode) { x.Put(bInode, key8(in.num), in.encode()) }

// changed marks an inode as changed by this command; ctime never runs backwards.
func (x *tx) changed(in *inode) {
	in.version = x.index
	in.ctime = max(in.ctime, x.now)
}

// modified marks a directory's entries as changed.
func (x *tx) modified(dir *inode) {
	x.changed(dir)
	dir.mtime = max(dir.mtime, x.now)
}
