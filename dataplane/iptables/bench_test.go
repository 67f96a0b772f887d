package iptables

import (
	"context"
	"fmt"
	"testing"

	"github.com/nodeproxy/nodeproxy/internal/nettest"
	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

// BenchmarkFullSync writes a whole cluster into a namespace without rules.
func BenchmarkFullSync(b *testing.B) {
	for _, backend := range []Backend{BackendNFT, BackendLegacy} {
		for _, n := range []int{1000, 4000, 10000} {
			b.Run(fmt.Sprintf("%s/%dx5", backend, n), func(b *testing.B) {
				r := service.NewResolver(synth.Config())
				r.Apply(synth.Cluster(n, 5))
				for b.Loop() {
					b.StopTimer()
					nettest.Enter(b)
					d := mustNew(b, backend)
					b.StartTimer()
					if err := d.Sync(context.Background(), r.Table(), nil); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkChange changes one endpoint beside many Services.
func BenchmarkChange(b *testing.B) {
	for _, backend := range []Backend{BackendNFT, BackendLegacy} {
		for _, n := range []int{100, 10000} {
			b.Run(fmt.Sprintf("%s/%dx5", backend, n), func(b *testing.B) {
				nettest.Enter(b)
				r := service.NewResolver(synth.Config())
				r.Apply(synth.Cluster(n, 5))
				d := mustNew(b, backend)
				if err := d.Sync(context.Background(), r.Table(), nil); err != nil {
					b.Fatal(err)
				}
				svc, _ := synth.Service(n/2, 5)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					changed, _ := r.Apply(service.Changes{EndpointSlices: []*service.EndpointSlice{synth.Slice(svc, n+i, 5)}})
					if err := d.Sync(context.Background(), r.Table(), changed); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func mustNew(tb testing.TB, backend Backend) *Dataplane {
	tb.Helper()
	d, err := New(context.Background(), Options{Backend: backend, MasqueradeBit: DefaultMasqueradeBit, Instance: "nodeproxy"})
	if err != nil {
		tb.Fatal(err)
	}
	return d
}
