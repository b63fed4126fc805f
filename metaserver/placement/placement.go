// Package placement says which servers a new chunk goes to. It is pure: every metaserver that applies the same command
// picks the same servers, on every architecture, so it uses integer arithmetic only.
package placement

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// ranked is a candidate with what rendezvous hashing says of it for one chunk.
type ranked struct {
	*pb.Candidate
	hash uint64
	log  uint64 // -log2 of the hash taken as a fraction of 1, see negLog2
}

// before tells whether a comes before b in the order of preference: the greater weight/-log(hash) wins. A candidate
// without weight (no free space) comes after all that have some.
func (a *ranked) before(b *ranked) int {
	if (a.Weight == 0) != (b.Weight == 0) {
		if b.Weight == 0 {
			return -1
		}
		return 1
	}
	if a.Weight != 0 {
		// a.w/a.log > b.w/b.log, without division: the 128-bit products compared.
		ahi, alo := bits.Mul64(a.Weight, b.log)
		bhi, blo := bits.Mul64(b.Weight, a.log)
		if c := cmp.Or(cmp.Compare(bhi, ahi), cmp.Compare(blo, alo)); c != 0 {
			return c
		}
	}
	return cmp.Or(cmp.Compare(b.hash, a.hash), cmp.Compare(a.Server, b.Server))
}

// Pick returns the n servers, fewer if there are not that many, that chunk id goes to: weighted rendezvous hashing by the
// candidates' weights (free bytes), no two in one failure domain as long as there is another, the widest domain counting
// most. The order of the candidates does not matter. The first of the answer is the most preferred.
func Pick(id chunk.ID, candidates []*pb.Candidate, n int) []chunk.ServerID {
	return spread(rank(id, candidates), nil, n)
}

// rank sorts the candidates by how much the chunk prefers them, each server once.
func rank(id chunk.ID, candidates []*pb.Candidate) []ranked {
	all := make([]ranked, 0, len(candidates))
	for _, c := range candidates {
		if c != nil && c.Server != 0 {
			h := Hash(id, chunk.ServerID(c.Server))
			all = append(all, ranked{c, h, negLog2(h)})
		}
	}
	slices.SortFunc(all, func(a, b ranked) int { return a.before(&b) })
	all = slices.CompactFunc(all, func(a, b ranked) bool { return a.Server == b.Server })
	return all
}

// Add returns n more servers, fewer if there are not that many, for a chunk that has shards on others already (which are not
// among the candidates): those that Pick would prefer of them, no two of all in one failure domain as long as that can be.
func Add(id chunk.ID, has, candidates []*pb.Candidate, n int) []chunk.ServerID {
	there := make([]ranked, 0, len(has)+n)
	for _, c := range has {
		there = append(there, ranked{Candidate: c})
	}
	return spread(rank(id, candidates), there, n)
}

// spread takes n of those that are left, one after the other as they share least with the ones taken.
func spread(all, picked []ranked, n int) []chunk.ServerID {
	n = min(n, len(all))
	if n <= 0 {
		return nil
	}
	servers := make([]chunk.ServerID, n)
	for i := range servers {
		best := nextSpread(all, picked)
		servers[i] = chunk.ServerID(all[best].Server)
		picked = append(picked, all[best])
		all = slices.Delete(all, best, best+1)
	}
	return servers
}

// Prefers tells whether a chunk belongs on server a rather than on b, as far as their weights say.
func Prefers(id chunk.ID, a, b *pb.Candidate) bool {
	r := rank(id, []*pb.Candidate{a, b})
	return len(r) > 0 && r[0].Candidate == a
}

// nextSpread returns the index of the first candidate that shares the least with those picked already.
func nextSpread(all, picked []ranked) int {
	best := 0
	for i := range all {
		if i > 0 && compareSharing(all[i].Domain, all[best].Domain, picked) < 0 {
			best = i
		}
		if i == best && alone(all[i].Domain, picked) {
			break // it cannot get better, and those that follow are less preferred
		}
	}
	return best
}

// alone tells whether a place shares nothing with those picked.
func alone(domain []string, picked []ranked) bool {
	for level := range domain {
		if sharing(domain, level, picked) > 0 {
			return false
		}
	}
	return true
}

// compareSharing compares how crowded two places are, level by level from the widest: the number of picked servers that
// stand in the same domain.
func compareSharing(a, b []string, picked []ranked) int {
	for level := range max(len(a), len(b)) {
		if c := cmp.Compare(sharing(a, level, picked), sharing(b, level, picked)); c != 0 {
			return c
		}
	}
	return 0
}

// Shares is how many levels, from the widest, two places have in common. A level without a name is shared with nobody.
func Shares(a, b []string) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	for n > 0 && a[n-1] == "" {
		n--
	}
	return n
}

// sharing counts the picked servers in the same domain at a level. An unknown domain is shared with nobody.
func sharing(domain []string, level int, picked []ranked) int {
	if level >= len(domain) || domain[level] == "" {
		return 0
	}
	n := 0
	for i := range picked {
		if other := picked[i].Domain; level < len(other) && slices.Equal(other[:level+1], domain[:level+1]) {
			n++
		}
	}
	return n
}

// Hash mixes a chunk and a server into 64 bits that look random: two rounds of the finalizer of splitmix64. It may never
// change: where a chunk ideally lies would change with it.
func Hash(id chunk.ID, server chunk.ServerID) uint64 {
	return mix(mix(uint64(id)+0x9e3779b97f4a7c15) ^ uint64(server)*0xd1342543de82ef95)
}

func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// logFraction is how many bits of negLog2's result are behind the point.
const logFraction = 48

// negLog2 is -log2((h+1)/2^64) as a fixed-point number, 0 < result <= 64<<logFraction, its absolute error below 2^-44.
// The logarithm's base does not matter for the order of weight/-log(h). It never is 0, so that the best hash of all does
// not win whatever its weight.
func negLog2(h uint64) uint64 {
	if h == ^uint64(0) {
		return 1
	}
	h++
	zeros := bits.LeadingZeros64(h)
	whole := uint64(63 - zeros)
	m := h << zeros // 1 <= m < 2, 63 bits behind the point
	var fraction uint64
	for range logFraction {
		// Squaring doubles the logarithm: its next binary digit is whether the square reaches 2. (Without branches: they
		// would be guessed wrong half of the time.)
		hi, lo := bits.Mul64(m, m)
		digit := hi >> 63
		fraction = fraction<<1 | digit
		m = hi<<(digit^1) | lo>>63&(digit^1)
	}
	return max(64<<logFraction-(whole<<logFraction+fraction), 1)
}
