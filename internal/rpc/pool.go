package rpc

import (
	"math/bits"
	"sync"

	"google.golang.org/grpc/mem"
)

// bufferPool keeps buffers of 2^8 to 2^20 bytes for gRPC. Unlike gRPC's own it does not zero them when they are taken,
// which costs an eighth of all CPU time of a stream of large frames; every user of a buffer overwrites it.
type bufferPool struct {
	classes [maxClass - minClass + 1]sync.Pool
}

const (
	minClass = 8
	maxClass = 20
)

var buffers mem.BufferPool = &bufferPool{}

func (p *bufferPool) Get(size int) *[]byte {
	class := max(bits.Len(uint(max(size, 1)-1)), minClass)
	if class > maxClass {
		b := make([]byte, size)
		return &b
	}
	b, ok := p.classes[class-minClass].Get().(*[]byte)
	if !ok {
		s := make([]byte, 1<<class)
		b = &s
	}
	*b = (*b)[:size]
	return b
}

func (p *bufferPool) Put(b *[]byte) {
	class := bits.Len(uint(cap(*b))) - 1
	if class < minClass || class > maxClass || cap(*b) != 1<<class {
		return // not one of these
	}
	*b = (*b)[:cap(*b)]
	p.classes[class-minClass].Put(b)
}
