package rpc

import (
	"encoding/binary"
	"fmt"

	"google.golang.org/grpc/encoding"
	encproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Frame is a message with a payload that is handed over without being copied: on the wire it is the length of the header
// (4 bytes, little-endian), the header in protobuf, and the payload to the end of the message.
//
// Sending takes a reference of its own on the payload, which must not change until that is released. A received payload
// belongs to the receiver, who calls Free when done with it.
type Frame struct {
	Header  proto.Message
	Payload mem.BufferSlice
}

// Free gives the payload back.
func (f *Frame) Free() {
	f.Payload.Free()
	f.Payload = nil
}

// maxHeader bounds a frame's header, in bytes.
const maxHeader = 64 << 10

// codec sends Frames as described there and leaves every other message to gRPC's own protobuf codec.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(encproto.Name)} }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	var f *Frame
	switch v := v.(type) {
	case *Frame:
		f = v
	case *sentFrame:
		f = &v.Frame
		defer f.Free()
	default:
		return c.CodecV2.Marshal(v)
	}
	size := proto.Size(f.Header)
	if size > maxHeader {
		return nil, fmt.Errorf("rpc: a frame header of %d bytes, at most %d", size, maxHeader)
	}
	head := make([]byte, 4, 4+size)
	binary.LittleEndian.PutUint32(head, uint32(size))
	head, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(head, f.Header)
	if err != nil {
		return nil, err
	}
	out := make(mem.BufferSlice, 0, 1+len(f.Payload))
	out = append(out, mem.SliceBuffer(head))
	f.Payload.Ref()
	return append(out, f.Payload...), nil
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*Frame)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	var prefix [4]byte
	if data.CopyTo(prefix[:]) < len(prefix) {
		return fmt.Errorf("rpc: a frame of %d bytes has no header length", data.Len())
	}
	size := int(binary.LittleEndian.Uint32(prefix[:]))
	if size > maxHeader || size > data.Len()-len(prefix) {
		return fmt.Errorf("rpc: a frame of %d bytes claims a header of %d", data.Len(), size)
	}
	// A header almost always lies within the first buffer.
	var head []byte
	if first := data[0].ReadOnlyData(); len(first) >= 4+size {
		head = first[4 : 4+size]
	} else {
		b := make([]byte, 4+size)
		data.CopyTo(b)
		head = b[4:]
	}
	if err := proto.Unmarshal(head, f.Header); err != nil {
		return fmt.Errorf("rpc: frame header: %w", err)
	}
	f.Payload = nil
	skip := 4 + size
	for _, b := range data {
		if n := b.Len(); skip >= n {
			skip -= n
			continue
		}
		b = b.Slice(skip, b.Len()) // takes a reference
		skip = 0
		f.Payload = append(f.Payload, b)
	}
	return nil
}

func (codec) Name() string { return encproto.Name }
