package chunk

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestChecksumsOfPiecesAreThoseOfTheWhole(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, ChecksumBlock - 1, ChecksumBlock, ChecksumBlock + 1, 5*ChecksumBlock + 17} {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		want := Checksums(nil, b)
		if len(want) != Blocks(n) {
			t.Errorf("%d bytes: %d checksums, Blocks says %d", n, len(want), Blocks(n))
		}
		var s Summer
		for rest := b; len(rest) > 0; {
			k := min(len(rest), 1+rnd.IntN(2*ChecksumBlock))
			_, _ = s.Write(rest[:k]) // never fails
			rest = rest[k:]
		}
		if !slices.Equal(s.Sums(), want) {
			t.Errorf("%d bytes in pieces: %x, at once: %x", n, s.Sums(), want)
		}
	}
}

// The value is the check value of CRC-32C in the catalogue of parametrised CRC algorithms.
func TestChecksumIsCRC32C(t *testing.T) {
	if got := Checksum([]byte("123456789")); got != 0xe3069283 {
		t.Errorf("got %#x", got)
	}
}

func TestParseID(t *testing.T) {
	for _, id := range []ID{0, 1, 0xabcdef, 1<<64 - 1} {
		if got, err := ParseID(id.String()); err != nil || got != id {
			t.Errorf("%v came back as %v, %v", id, got, err)
		}
	}
	for _, s := range []string{"", "1", "000000000000000G", "00000000000000AB", "0000000000000000 ", "+000000000000001"} {
		if _, err := ParseID(s); err == nil {
			t.Errorf("%q passed for an id", s)
		}
	}
}
