package iptables

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
	"github.com/nodeproxy/nodeproxy/service"
)

func TestMain(m *testing.M) { labtest.Main(m) }

const (
	rateRounds   = 9
	rateRound    = 300 * time.Millisecond
	rateServices = 10000
)

// rateTable is a table of n Services x 5, the last of which leads to pod-b1.
func rateTable(n int) (*service.Table, netip.AddrPort) {
	cfg := synth.Config()
	cfg.Facts.Pods[service.IPv4].CIDR = netip.MustParsePrefix("10.244.0.0/16")
	r := service.NewResolver(cfg)
	c := synth.Cluster(n, 5)
	last := c.Services[n-1]
	slice := c.EndpointSlices[n-1]
	slice.Ports[0].Number = 7000
	slice.Endpoints = []service.Endpoint{{Addr: netip.MustParseAddr("10.244.2.11"), Ready: true, Serving: true}}
	r.Apply(c)
	return r.Table(), netip.AddrPortFrom(last.ClusterIPs[0], 80)
}

// connectionRate counts the connections that can be made one after the other,
// each until the server has answered, per second.
func connectionRate(l *lab.Lab, place string, to netip.AddrPort, d time.Duration) (float64, error) {
	n := 0
	start := time.Now()
	err := l.Do(place, func() error {
		answer := make([]byte, 1)
		for time.Since(start) < d {
			conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
			if err != nil {
				return err
			}
			_, err = conn.Read(answer)
			conn.SetLinger(0) // no TIME_WAIT, or the ports run out
			conn.Close()
			if err != nil {
				return err
			}
			n++
		}
		return nil
	})
	return float64(n) / time.Since(start).Seconds(), err
}

// medianRates measures the rate through the last of few and of many Services,
// in turns, and straight to the Pod. The two are labs of their own, alike in
// everything but the number of Services.
func medianRates(tb testing.TB, b Backend) (direct, few, many float64) {
	tb.Helper()
	var labs []*lab.Lab
	var to []netip.AddrPort
	for _, n := range []int{10, rateServices} {
		l := labtest.Up(tb, lab.Options{})
		table, addr := rateTable(n)
		err := l.Do("node-a", func() error { return mustNew(tb, b).Sync(context.Background(), table, nil) })
		if err != nil {
			tb.Fatal(err)
		}
		labs, to = append(labs, l), append(to, addr)
	}
	var rates [3][]float64
	measure := func(i int, l *lab.Lab, addr netip.AddrPort) {
		rate, err := connectionRate(l, "pod-a1", addr, rateRound)
		if err != nil {
			tb.Fatal(err)
		}
		rates[i] = append(rates[i], rate)
	}
	for range rateRounds {
		measure(0, labs[0], netip.MustParseAddrPort("10.244.2.11:7000"))
		measure(1, labs[0], to[0])
		measure(2, labs[1], to[1])
	}
	for i := range rates {
		slices.Sort(rates[i])
	}
	return rates[0][rateRounds/2], rates[1][rateRounds/2], rates[2][rateRounds/2]
}

// BenchmarkConnections reports connections per second through the last of 10
// and of 10,000 Services, and straight to a Pod.
func BenchmarkConnections(b *testing.B) {
	for _, backend := range backends {
		b.Run(string(backend), func(b *testing.B) {
			for b.Loop() {
				direct, few, many := medianRates(b, backend)
				b.ReportMetric(direct, "direct/s")
				b.ReportMetric(few, "of-10/s")
				b.ReportMetric(many, "of-10000/s")
				b.ReportMetric(many/few, "ratio")
			}
		})
	}
}

// minRatio leaves room for a noisy machine; BenchmarkConnections gives the figure.
const minRatio = 0.85

// rateTries is how often the rates are measured before they count as unequal: a
// noisy machine can make one of them slower, but not a slope disappear.
const rateTries = 3

// The last of 10,000 Services must be as fast to reach as the last of 10.
func TestConnectionRateDoesNotFallWithServices(t *testing.T) {
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			for range rateTries {
				direct, few, many := medianRates(t, backend)
				t.Logf("connections/s: %.0f direct, %.0f through the last of 10 Services, %.0f through the last of 10,000 (%.3f)",
					direct, few, many, many/few)
				if many/few >= minRatio {
					return
				}
			}
			t.Errorf("in %d measurements, the ratio was under %.2f", rateTries, minRatio)
		})
	}
}
