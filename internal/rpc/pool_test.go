package rpc

import "testing"

func TestBufferPoolKeepsSizes(t *testing.T) {
	p := &bufferPool{}
	for _, size := range []int{0, 1, 255, 256, 257, 16 << 10, 16<<10 + 1, 1 << 20, 1<<20 + 1} {
		b := p.Get(size)
		if len(*b) != size {
			t.Fatalf("asked for %d bytes, got %d", size, len(*b))
		}
		p.Put(b)
		if again := p.Get(size); len(*again) != size {
			t.Fatalf("asked for %d bytes again, got %d", size, len(*again))
		}
	}
	foreign := make([]byte, 100, 300)
	p.Put(&foreign)
	if b := p.Get(300); cap(*b) == 300 {
		t.Fatal("a buffer of a foreign size came back")
	}
}
