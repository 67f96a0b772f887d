package ebpf

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/service"
)

// BenchmarkPrograms is what the programs cost per packet, without anything that
// the kernel does around them.
func BenchmarkPrograms(b *testing.B) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	k := newBench(b, Options{Sizes: Sizes{Flows: 131072}})
	for f := range 2 {
		p := makePair(f, service.TCP, "outside", "NodePort", "local", service.PolicyCluster)
		syncAll(b, k.d, k.n.table(p.services...))
		data := p.request
		data.flags = ack
		k.send(b, p.request, clientPort, "eth0")
		for _, c := range []struct {
			name   string
			prog   *ebpf.Program
			dev    string
			packet frame
		}{
			{"established, forward", k.d.objs.Ingress, "eth0", data},
			{"established, reply", k.d.objs.Ingress, "poda", p.reply},
			{"no service's", k.d.objs.Ingress, "eth0", data.to(clientIP[f], 40000, podA[f], 5432)},
			{"no service's, to a port that one has", k.d.objs.Ingress, "eth0", data.to(clientIP[f], 40000, podA[f], 80)},
			{"forwarded, at egress", k.d.objs.Egress, "forwarded", data},
		} {
			b.Run(famNames[f]+" "+c.name, func(b *testing.B) {
				ctx := make([]byte, 192)
				binary.NativeEndian.PutUint32(ctx[40:], uint32(k.ifindex[c.dev]))
				if c.dev == "forwarded" {
					binary.NativeEndian.PutUint32(ctx[40:], uint32(k.ifindex["eth0"]))
					binary.NativeEndian.PutUint32(ctx[36:], uint32(k.ifindex["poda"])) // ingress_ifindex
				}
				const runs = 20000 // each of a fresh packet
				before := runTime(b, c.prog)
				in(b, k.n.node, func() error {
					o := &ebpf.RunOptions{Data: c.packet.bytes(), Context: ctx}
					for range runs {
						if _, err := c.prog.Run(o); err != nil {
							return err
						}
					}
					return nil
				})
				total := runTime(b, c.prog) - before
				b.ReportMetric(float64(total.Nanoseconds())/runs, "ns/packet")
			})
		}
	}
}

func runTime(b *testing.B, p *ebpf.Program) time.Duration {
	s, err := p.Stats()
	if err != nil {
		b.Fatal(err)
	}
	return s.Runtime
}

// BenchmarkSync measures full syncs into the kernel, and one changed endpoint
// beside them.
func BenchmarkSync(b *testing.B) {
	for _, size := range [][2]int{{10_000, 5}, {50_000, 1}, {50_000, 5}} {
		b.Run(fmt.Sprintf("%dx%d", size[0], size[1]), func(b *testing.B) { benchmarkSync(b, size[0], size[1]) })
	}
}

func benchmarkSync(b *testing.B, services, endpoints int) {
	n := newTestNet(b)
	var specs []serviceSpec
	for i := range services {
		s := serviceSpec{name: fmt.Sprint("s", i), vip: fmt.Sprintf("10.96.%d.%d", i/250, i%250)}
		for e := range endpoints {
			s.cluster = append(s.cluster, fmt.Sprintf("10.%d.%d.%d:8080", 100+e, i/250, i%250))
		}
		specs = append(specs, s)
	}
	table := tableOf(specs...)
	o := Options{PacketsOnly: true, PinRoot: bpffs(b) + "/nodeproxy"}
	var d *Dataplane
	in(b, n.node, func() (err error) {
		d, err = New(o)
		return err
	})
	b.Cleanup(func() {
		d.Close()
		in(b, n.node, func() error { return Cleanup(o) })
	})
	start := time.Now()
	syncAll(b, d, table)
	b.Logf("full sync from empty: %v", time.Since(start))
	start = time.Now()
	syncAll(b, d, table)
	b.Logf("full sync that changes nothing: %v", time.Since(start))
	b.ResetTimer()
	for i := range b.N {
		s := specs[i%len(specs)]
		s.cluster = s.cluster[:max(0, endpoints-1)+i%2]
		r := s.resolve()
		table.Services[r.Name] = r
		if err := d.Sync(b.Context(), table, []service.Name{r.Name}); err != nil {
			b.Fatal(err)
		}
	}
}
