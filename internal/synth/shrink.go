package synth

import (
	"math/rand/v2"
	"slices"

	"github.com/nodeproxy/nodeproxy/service"
)

// Sample returns n of all packets, the same ones for the same seed.
func Sample(seed uint64, all []service.Packet, n int) []service.Packet {
	all = slices.Clone(all)
	rng := rand.New(rand.NewPCG(seed, 4))
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:min(n, len(all))]
}

// Shrink takes away from a cluster whatever it can without fails becoming
// false: Services first, then slices, then endpoints.
func Shrink(c service.Changes, fails func(service.Changes) bool) service.Changes {
	for again := true; again; {
		again = false
		for i := len(c.Services) - 1; i >= 0; i-- {
			less := c
			less.Services = slices.Delete(slices.Clone(c.Services), i, i+1)
			if fails(less) {
				c, again = less, true
			}
		}
		for i := len(c.EndpointSlices) - 1; i >= 0; i-- {
			less := c
			less.EndpointSlices = slices.Delete(slices.Clone(c.EndpointSlices), i, i+1)
			if fails(less) {
				c, again = less, true
			}
		}
	}
	for i := range c.EndpointSlices {
		for j := len(c.EndpointSlices[i].Endpoints) - 1; j >= 0; j-- {
			slice := *c.EndpointSlices[i]
			slice.Endpoints = slices.Delete(slices.Clone(slice.Endpoints), j, j+1)
			less := c
			less.EndpointSlices = slices.Clone(c.EndpointSlices)
			less.EndpointSlices[i] = &slice
			if fails(less) {
				c = less
			}
		}
	}
	return c
}
