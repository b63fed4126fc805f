package chunk

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

func TestParseLayout(t *testing.T) {
	for s, want := range map[string]Layout{
		"replicas=3":              {Data: 1, Parity: 2, Min: 2},
		"replicas=1":              {Data: 1, Min: 1},
		"replicas=2":              {Data: 1, Parity: 1, Min: 2},
		"ec=4+2":                  {Data: 4, Parity: 2, Min: 5},
		"ec=2+1":                  {Data: 2, Parity: 1, Min: 3},
		"ec=1+2":                  {Data: 1, Parity: 2, Min: 2},
		"ec=28+4,min-copies=28":   {Data: 28, Parity: 4, Min: 28},
		"min-copies=1 replicas=2": {Data: 1, Parity: 1, Min: 1},
	} {
		got, err := ParseLayout(s)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", s, got, err, want)
		}
		if again, err := ParseLayout(got.String()); err != nil || again != got {
			t.Errorf("%s is written as %s, which is read as %+v, %v", s, got, again, err)
		}
		if l := LayoutOf(got.Proto()); l != got {
			t.Errorf("%s on the wire: %+v", s, l)
		}
	}
	for _, s := range []string{"", "replicas", "replicas=0", "replicas=33", "replicas=-1", "ec=4", "ec=4+0", "ec=0+2", "ec=30+3", "ec=4+2,min-copies=3",
		"ec=4+2,min-copies=7", "ec=4+2 replicas=3", "replicas=3,replicas=3", "copies=3", "replicas=2+1", "ec=4+2+1", "min-copies=2", "replicas=3,min-copies=x",
		"replicas=99999999999999999999"} {
		if l, err := ParseLayout(s); err == nil {
			t.Errorf("%q is read as %+v", s, l)
		}
	}
}

func TestStoredIDs(t *testing.T) {
	l := Layout{Data: 4, Parity: 2, Min: 5, Cell: PackedCell}
	seen := map[ID]bool{}
	for _, id := range []ID{1, 2, MaxID - 1} {
		if id.Stored(Copies(3), 2) != id || id.Shard() != -1 || id.Chunk() != id {
			t.Errorf("copies of %v have ids of their own", id)
		}
		for shard := range l.Width() {
			s := id.Stored(l, shard)
			if seen[s] || s.Chunk() != id || s.Shard() != shard {
				t.Errorf("shard %d of %v is %v", shard, id, s)
			}
			seen[s] = true
		}
	}
}

// TestCode: what is dealt out and coded comes back from any Data of the shards, and Runs and Window find every byte of it.
func TestCode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.IntRange(1, 20).Draw(t, "data")
		l := Layout{Data: k, Parity: rapid.IntRange(min(k-1, 1), MaxShards-k).Draw(t, "parity")}.WithMin(0)
		if l.Coded() {
			l.Cell = MinCell * rapid.IntRange(1, 8).Draw(t, "cell")
		}
		if err := l.Check(true); err != nil {
			t.Fatal(err)
		}
		n := l.Padded(rapid.IntRange(1, 200_000).Draw(t, "bytes"))
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		src := make([]byte, n)
		for i := range src {
			src[i] = byte(rng.Uint32())
		}
		shards := make([][]byte, l.Width())
		for i := range shards {
			shards[i] = make([]byte, l.ShardLength(uint64(n)))
		}
		if l.Coded() {
			l.Scatter(shards[:l.Data], src)
			if err := l.Encode(shards); err != nil {
				t.Fatal(err)
			}
		} else {
			for i := range shards {
				copy(shards[i], src)
			}
		}
		from := uint64(rng.IntN(n))
		to := from + 1 + uint64(rng.IntN(n-int(from)))
		lo, hi := l.Window(from, to)
		at := from
		l.Runs(from, to, func(r Run) {
			if r.Chunk != at || r.Offset < lo || r.Offset+uint64(r.Len) > hi || hi > l.ShardLength(uint64(n)) {
				t.Fatalf("%+v of [%d, %d), window [%d, %d)", r, from, to, lo, hi)
			}
			if !bytes.Equal(src[at:at+uint64(r.Len)], shards[r.Shard][r.Offset:][:r.Len]) {
				t.Fatalf("other bytes at %+v", r)
			}
			at += uint64(r.Len)
		})
		if at != to {
			t.Fatalf("the runs of [%d, %d) end at %d", from, to, at)
		}
		// A window of all shards but those lost gives the same window of the lost ones.
		lost := rng.Perm(l.Width())[:rng.IntN(l.Parity+1)]
		part, wanted := make([][]byte, l.Width()), make([]bool, l.Width())
		for i := range part {
			part[i] = shards[i][lo:hi]
		}
		for _, i := range lost {
			part[i], wanted[i] = nil, true
		}
		if err := l.Rebuild(part, wanted); err != nil {
			t.Fatal(err)
		}
		for _, i := range lost {
			if !bytes.Equal(part[i], shards[i][lo:hi]) {
				t.Fatalf("shard %d of %v came back different", i, l)
			}
		}
		for _, i := range rng.Perm(l.Width())[:l.Parity+1] {
			part[i], wanted[i] = nil, true
		}
		if err := l.Rebuild(part, wanted); err == nil {
			t.Fatal("rebuilt from too few shards")
		}
	})
}
