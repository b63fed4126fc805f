package namespace

import (
	"encoding/binary"

	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// BaseCommands is the command set that every metaserver knows.
const BaseCommands = 3

// wordless is the command set from which on the records of results have no messages.
const wordless = 4

// Commands is the newest command set that the log may hold: all metaservers knew it when the cluster began to use it.
func Commands(r kv.Reader) (uint32, error) {
	v := r.Get(bState, commandsKey)
	if v == nil {
		return BaseCommands, nil
	}
	d := decoder{b: v}
	d.version()
	set := d.u32()
	if d.end() != nil {
		return 0, damaged(bState, commandsKey)
	}
	return set, nil
}

func (x *tx) raiseCommands(op *pb.RaiseCommands) (*pb.Result, error) {
	set, err := Commands(x)
	if err != nil {
		return nil, err
	}
	if op.Version > set {
		x.Put(bState, commandsKey, binary.BigEndian.AppendUint32([]byte{formatVersion}, op.Version))
	}
	return &pb.Result{}, nil
}
