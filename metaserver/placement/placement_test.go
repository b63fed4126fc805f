package placement

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func servers(weights ...uint64) []*pb.Candidate {
	var out []*pb.Candidate
	for i, w := range weights {
		out = append(out, &pb.Candidate{Server: uint32(i + 1), Weight: w, Domain: []string{"zone", "", fmt.Sprint("host", i)}})
	}
	return out
}

// What an independent computation in floating point gives, too.
var stable = []chunk.ServerID{2, 5, 1, 1, 4, 5, 3, 4, 5, 5, 2, 4, 4, 2, 3, 3, 5, 2, 5, 4, 3, 4, 3, 5}

const stableHash = 0xe2809e6d756fa962

// TestStable pins where some chunks go: replicas of different builds have to agree.
func TestStable(t *testing.T) {
	var got []chunk.ServerID
	for id := range chunk.ID(8) {
		got = append(got, Pick(id+1, servers(100, 200, 300, 400, 500), 3)...)
	}
	if want := stable; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if h := Hash(1, 1); h != stableHash {
		t.Errorf("hash %#x, want %#x", h, uint64(stableHash))
	}
}

func TestNegLog2(t *testing.T) {
	check := func(h uint64) {
		t.Helper()
		want := 64 - math.Log2(float64(h)+1)
		if h > 1<<63 { // float64 has no digits left for 1-h/2^64
			want = -math.Log1p(-float64(^h)/(1<<64)) / math.Ln2
		}
		got := float64(negLog2(h)) / (1 << logFraction)
		if diff := math.Abs(got - want); diff > 1e-12*max(want, 1) {
			t.Errorf("-log2 of %#x: %.17g, want %.17g", h, got, want)
		}
	}
	for shift := range 64 {
		check(1 << shift)
		check(1<<shift - 1)
		check(1<<shift + 1)
		check(^uint64(0) >> shift)
	}
	r := rand.New(rand.NewPCG(1, 2))
	last := uint64(math.MaxUint64)
	var hashes []uint64
	for range 10000 {
		hashes = append(hashes, r.Uint64())
	}
	slices.Sort(hashes)
	for _, h := range hashes {
		check(h)
		if l := negLog2(h); l > last || l == 0 {
			t.Fatalf("not falling at %#x", h)
		} else {
			last = l
		}
	}
	for _, h := range []uint64{0, 1, math.MaxUint64 - 1, math.MaxUint64} {
		if l := negLog2(h); l == 0 || l > 64<<logFraction {
			t.Errorf("-log2 of %#x is %d", h, l)
		}
	}
}

// TestDistribution: the first choice falls on servers as their weights say.
func TestDistribution(t *testing.T) {
	weights := []uint64{1 << 40, 2 << 40, 3 << 40, 4 << 40}
	count := map[chunk.ServerID]float64{}
	const n = 100000
	for id := range chunk.ID(n) {
		count[Pick(id, servers(weights...), 1)[0]]++
	}
	for i, w := range weights {
		want := n * float64(w) / (10 << 40)
		if got := count[chunk.ServerID(i+1)]; math.Abs(got-want) > 5*math.Sqrt(want) {
			t.Errorf("server %d has %v, want about %v", i+1, got, want)
		}
	}
}

// TestMovement: a new server takes its share, and nothing moves between the others.
func TestMovement(t *testing.T) {
	old := servers(5, 5, 5, 5, 5, 5, 5)
	grown := append(slices.Clone(old), servers(5, 5, 5, 5, 5, 5, 5, 5)[7])
	const n, copies = 20000, 3
	moved := 0.0
	for id := range chunk.ID(n) {
		before, after := Pick(id, old, copies), Pick(id, grown, copies)
		came := 0
		for _, s := range after {
			if !slices.Contains(before, s) {
				if s != 8 {
					t.Fatalf("chunk %v moved from %v to %v", id, before, after)
				}
				came++
			}
		}
		moved += float64(came)
	}
	if want := float64(n) * copies / 8; math.Abs(moved-want) > 0.05*want {
		t.Errorf("%v copies moved, want about %v", moved, want)
	}
}

func TestDomains(t *testing.T) {
	at := func(server uint32, weight uint64, domain ...string) *pb.Candidate {
		return &pb.Candidate{Server: server, Weight: weight, Domain: domain}
	}
	// Zone a is much bigger than b; in a, rack 1 has two hosts.
	candidates := []*pb.Candidate{at(1, 1000, "a", "1", "x"), at(2, 1000, "a", "1", "y"), at(3, 1000, "a", "2", "z"), at(4, 1, "b", "1", "w")}
	for id := range chunk.ID(1000) {
		got := Pick(id, candidates, 3)
		if !slices.Contains(got, 4) || !slices.Contains(got, 3) {
			t.Fatalf("chunk %v goes to %v: not to both zones and, in a, to both racks", id, got)
		}
		if all := Pick(id, candidates, 9); len(all) != 4 {
			t.Fatalf("chunk %v goes to %v of four servers", id, all)
		}
	}
	// Racks of the same name in different zones are different racks, and unknown domains nobody's.
	candidates = []*pb.Candidate{at(1, 1, "", "r"), at(2, 1, "", "r"), at(3, 1), at(4, 0)}
	for id := range chunk.ID(1000) {
		got := Pick(id, candidates, 2)
		if slices.Contains(got, 4) || slices.Contains(got, 1) && slices.Contains(got, 2) {
			t.Fatalf("chunk %v goes to %v", id, got)
		}
	}
	// A full server is better than none.
	if got := Pick(1, []*pb.Candidate{at(1, 0), at(2, 5)}, 2); !slices.Equal(got, []chunk.ServerID{2, 1}) {
		t.Errorf("with a full server: %v", got)
	}
}

func TestPickIsAFunctionOfTheSet(t *testing.T) {
	if Pick(1, nil, 3) != nil || Pick(1, servers(1), 0) != nil || len(Pick(1, []*pb.Candidate{nil, {}}, 3)) != 0 {
		t.Error("servers out of nothing")
	}
	rapid.Check(t, func(t *rapid.T) {
		var candidates []*pb.Candidate
		for i := range rapid.IntRange(1, 12).Draw(t, "servers") {
			candidates = append(candidates, &pb.Candidate{Server: uint32(i + 1), Weight: rapid.Uint64().Draw(t, "weight"),
				Domain: rapid.SliceOfN(rapid.SampledFrom([]string{"", "a", "b"}), 0, 3).Draw(t, "domain")})
		}
		id, n := chunk.ID(rapid.Uint64().Draw(t, "id")), rapid.IntRange(1, 14).Draw(t, "n")
		want := Pick(id, candidates, n)
		if len(want) != min(n, len(candidates)) || len(slices.Compact(slices.Sorted(slices.Values(want)))) != len(want) {
			t.Fatalf("picked %v of %d, wanted %d", want, len(candidates), n)
		}
		shuffled := append(rapid.Permutation(candidates).Draw(t, "order"), candidates[0]) // and one twice
		if got := Pick(id, shuffled, n); !slices.Equal(got, want) {
			t.Fatalf("picked %v, in another order %v", want, got)
		}
	})
}

func BenchmarkPick(b *testing.B) {
	var weights []uint64
	for i := range 100 {
		weights = append(weights, uint64(i+1)<<30)
	}
	candidates := servers(weights...)
	for i := 0; b.Loop(); i++ {
		Pick(chunk.ID(i), candidates, 3)
	}
}
