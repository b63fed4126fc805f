package chunk

import (
	"fmt"
	"sync"

	"github.com/klauspost/reedsolomon"
)

// codecs are made once: the tables of each are a few KiB and take a while.
var codecs sync.Map // [2]int{data, parity} -> reedsolomon.Encoder

// codec returns the coder of a layout that Check finds nothing wrong with.
func (l Layout) codec() (reedsolomon.Encoder, error) {
	key := [2]int{l.Data, l.Parity}
	if c, ok := codecs.Load(key); ok {
		return c.(reedsolomon.Encoder), nil
	}
	// One goroutine each: callers work on many frames at once.
	c, err := reedsolomon.New(l.Data, l.Parity, reedsolomon.WithMaxGoroutines(1))
	if err != nil {
		return nil, fmt.Errorf("code %v: %w", l, err)
	}
	codecs.Store(key, c)
	return c, nil
}

// Encode fills the parity shards, which follow the data shards; all have the same length.
func (l Layout) Encode(shards [][]byte) error {
	if l.Parity == 0 {
		return nil
	}
	c, err := l.codec()
	if err != nil {
		return err
	}
	return c.Encode(shards)
}

// Rebuild computes the wanted shards among those that are nil or empty, from any Data others. What is wanted gets new memory
// unless its slice has the capacity.
func (l Layout) Rebuild(shards [][]byte, wanted []bool) error {
	if !l.Coded() {
		return l.copyShard(shards, wanted)
	}
	c, err := l.codec()
	if err != nil {
		return err
	}
	return c.ReconstructSome(shards, wanted)
}

func (l Layout) copyShard(shards [][]byte, wanted []bool) error {
	for _, s := range shards {
		if len(s) == 0 {
			continue
		}
		for i := range shards {
			if wanted[i] && len(shards[i]) == 0 {
				shards[i] = append(shards[i][:0], s...)
			}
		}
		return nil
	}
	return reedsolomon.ErrTooFewShards
}

// Scatter deals bytes of the chunk that begin at a row out to the data shards: dst[i] gets what belongs to shard i, and has
// len(src)/Data bytes. len(src) is a multiple of a row.
func (l Layout) Scatter(dst [][]byte, src []byte) {
	at := 0
	for row := 0; at < len(src); row += l.Cell {
		for i := range l.Data {
			copy(dst[i][row:row+l.Cell], src[at:])
			at += l.Cell
		}
	}
}
