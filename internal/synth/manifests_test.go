package synth_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
	"github.com/nodeproxy/nodeproxy/source"
)

// What a failing seed prints must be the state that failed.
func TestManifestsSayEverything(t *testing.T) {
	for seed := range uint64(30) {
		c := synth.NewRandom(seed).Cluster(10)
		got, warnings, err := source.Decode([]byte(synth.YAML(c)))
		warnings = slices.DeleteFunc(warnings, func(w string) bool { // which the state may have
			return strings.Contains(w, "has no meaning") || strings.Contains(w, "served, but spec.type is") || strings.Contains(w, "no API server is here to choose one") || strings.Contains(w, " too")
		})
		if err != nil || len(warnings) > 0 {
			t.Fatalf("seed %d: %v, %v", seed, err, warnings)
		}
		opts := cmp.Options{cmpopts.EquateEmpty(), cmpopts.SortSlices(func(a, b *service.EndpointSlice) bool { return a.Name.Compare(b.Name) < 0 }),
			cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
		if diff := cmp.Diff(c, got, opts); diff != "" {
			t.Fatalf("seed %d (-state +manifest):\n%s", seed, diff)
		}
	}
}

func TestShrinkKeepsWhatFails(t *testing.T) {
	c := synth.NewRandom(1).Cluster(12)
	culprit := c.EndpointSlices[len(c.EndpointSlices)/2]
	fails := func(c service.Changes) bool {
		for _, s := range c.EndpointSlices {
			if s.Name == culprit.Name {
				return true
			}
		}
		return false
	}
	small := synth.Shrink(c, fails)
	if len(small.Services) != 0 || len(small.EndpointSlices) != 1 || len(small.EndpointSlices[0].Endpoints) != 0 {
		t.Errorf("%d Services, %d slices are left", len(small.Services), len(small.EndpointSlices))
	}
}
