package ebpf

import (
	"hash/fnv"

	"github.com/nodeproxy/nodeproxy/service"
)

// maglevSlots is the length of a Maglev table, a prime: with 40 backends the
// load of any two differs by one percent. Each list of a ServicePort has one.
const maglevSlots = 4093

// slotsOf lays a list of backends out: at random each backend has as many slots
// as its weight, and a hash chooses from a Maglev table.
func slotsOf(a service.Algorithm, backends []service.Backend) []bpfBackend {
	if a == service.Maglev {
		table := maglevTable(backends)
		out := make([]bpfBackend, len(table))
		for i, b := range table {
			out[i] = backendOf(backends[b])
		}
		return out
	}
	out := make([]bpfBackend, 0, len(backends))
	for _, b := range backends {
		for range b.Shares() {
			out = append(out, backendOf(b))
		}
	}
	return out
}

// maglevTable gives each slot a backend, by its index, as section 3.4 of
// Eisenbud et al. (NSDI 2016) says: in turns, each backend takes the first free
// slot in an order of its own. Turns come in proportion to weights, and end
// when a backend has its exact share. It depends on nothing but addresses and
// weights, so every node makes the same table.
func maglevTable(backends []service.Backend) []int {
	if len(backends) == 0 {
		return nil
	}
	table := make([]int, maglevSlots)
	for i := range table {
		table[i] = -1
	}
	turns := make([]maglevTurns, len(backends))
	heaviest := 0
	quota := maglevQuota(backends)
	for i, b := range backends {
		turns[i] = newMaglevTurns(b, quota[i])
		heaviest = max(heaviest, b.Shares())
	}
	for left := maglevSlots; left > 0; {
		for i := range turns {
			t := &turns[i]
			if t.credit += backends[i].Shares(); t.credit < heaviest || t.quota == 0 {
				continue
			}
			t.credit -= heaviest
			for table[t.at] >= 0 {
				t.at = (t.at + t.skip) % maglevSlots
			}
			table[t.at] = i
			t.quota--
			left--
		}
	}
	return table
}

// maglevTurns is how far a backend is in its order of slots.
type maglevTurns struct {
	at, skip int
	quota    int // slots still due
	credit   int // towards its next turn
}

func newMaglevTurns(b service.Backend, quota int) maglevTurns {
	h := fnv.New64a()
	h.Write([]byte(b.AddrPort.String())) // never fails
	// FNV mixes the last bytes little: two rounds of a finalizer make up for it.
	a := mix(h.Sum64())
	return maglevTurns{at: int(a % maglevSlots), skip: 1 + int(mix(a)%(maglevSlots-1)), quota: quota}
}

// mix is the finalizer of MurmurHash3, 64 bits.
func mix(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// maglevQuota splits the slots by weight; what does not come out even goes to
// the first backends.
func maglevQuota(backends []service.Backend) []int {
	sum, left := service.Shares(backends), maglevSlots
	out := make([]int, len(backends))
	for i, b := range backends {
		out[i] = maglevSlots * b.Shares() / sum
		left -= out[i]
	}
	for i := 0; left > 0; i = (i + 1) % len(out) {
		out[i]++
		left--
	}
	return out
}
