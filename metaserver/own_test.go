package metaserver

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// leaderFields is the first number of the fields that only the leader sets, in the messages that have such.
const leaderFields = 10

// TestOwnKeepsWhatClientsSay: in every operation with fields for the leader, all others are taken over, those are not, and the
// request stays as it was.
func TestOwnKeepsWhatClientsSay(t *testing.T) {
	for _, op := range []*pb.Op{
		{Op: &pb.Op_Unlink{Unlink: &pb.Unlink{}}},
		{Op: &pb.Op_Rename{Rename: &pb.Rename{}}},
		{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{}}},
	} {
		inner := func(op *pb.Op) protoreflect.Message {
			m := op.ProtoReflect()
			return m.Get(m.WhichOneof(m.Descriptor().Oneofs().ByName("op"))).Message()
		}
		m := inner(op)
		fields := m.Descriptor().Fields()
		for i := range fields.Len() {
			set(m, fields.Get(i))
		}
		before := proto.Clone(op)
		got := inner(own(op))
		for i := range fields.Len() {
			f := fields.Get(i)
			if want := f.Number() < leaderFields; got.Has(f) != want || want && !got.Get(f).Equal(m.Get(f)) {
				t.Errorf("%s: kept %v, want %v", f.FullName(), got.Has(f), want)
			}
		}
		if inner(own(op)).Interface() == m.Interface() || !proto.Equal(op, before) {
			t.Errorf("%s: the request changed, or is shared", m.Descriptor().Name())
		}
	}
}

func set(m protoreflect.Message, f protoreflect.FieldDescriptor) {
	value := func() protoreflect.Value {
		switch f.Kind() {
		case protoreflect.BoolKind:
			return protoreflect.ValueOfBool(true)
		case protoreflect.BytesKind:
			return protoreflect.ValueOfBytes([]byte("x"))
		case protoreflect.Uint32Kind:
			return protoreflect.ValueOfUint32(7)
		case protoreflect.MessageKind:
			return m.NewField(f)
		}
		return protoreflect.ValueOfUint64(7)
	}
	if !f.IsList() {
		m.Set(f, value())
		return
	}
	list := m.Mutable(f).List()
	if f.Kind() == protoreflect.MessageKind {
		list.AppendMutable()
		return
	}
	list.Append(value())
}
