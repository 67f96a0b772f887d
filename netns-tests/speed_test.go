package netnstests

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
	"github.com/nodeproxy/nodeproxy/lab/manifest"
)

const (
	speedRounds = 7
	speedRound  = time.Second
)

// speedCase is one way through a lab, and what it is compared with.
type speedCase struct {
	name, from string
	to, bare   netip.AddrPort
}

var speedCases = []speedCase{
	{"ClusterIP from a Pod", "pod-a1", netip.MustParseAddrPort("10.96.0.99:7000"), netip.MustParseAddrPort("10.244.2.11:7000")},
	{"NodePort, Pod on the node", "client", netip.MustParseAddrPort("192.168.77.12:31700"), netip.MustParseAddrPort("10.244.2.11:7000")},
	{"NodePort, Pod elsewhere", "client", netip.MustParseAddrPort("192.168.77.11:31700"), netip.MustParseAddrPort("10.244.2.11:7000")},
}

// speedLab is a lab with so many Services besides the one that is measured; of
// none, it has no agent.
func speedLab(b *testing.B, c column, services int) *lab.Lab {
	b.Helper()
	args := append([]string{"--cluster-cidr", "10.244.0.0/16", "--sync-period", "10m"}, c.AgentArgs...)
	l := labtest.Up(b, lab.Options{Mode: c.Mode, AgentArgs: args})
	if services == 0 {
		return l
	}
	if err := l.Clear(); err != nil {
		b.Fatal(err)
	}
	svc := manifest.Service("measured", "10.96.0.99", manifest.WithNodePort(manifest.TCP("echo", 7000, 7000), 31700),
		manifest.WithNodePort(manifest.TCP("iperf", 5201, 5201), 31701))
	objects := append(manifest.WithEndpoints(svc, lab.Endpoint("pod-b1")), synth.Manifests(services, 5)...)
	data, err := manifest.EncodeJSON(objects...)
	if err != nil {
		b.Fatal(err)
	}
	if err := manifest.WriteAtomic(filepath.Join(l.ManifestDir(), "all.json"), data); err != nil {
		b.Fatal(err)
	}
	if err := l.StartAgents(b.Context()); err != nil {
		b.Fatal(err)
	}
	return l
}

// BenchmarkSpeed measures, for each column, what can be done through few and
// through many Services, beside the same without an agent. All labs take turns,
// so that a noisy machine disturbs them alike; medians are reported as ratios.
func BenchmarkSpeed(b *testing.B) {
	labtest.RequireRoot(b)
	for _, c := range columns {
		b.Run(c.Name, func(b *testing.B) {
			labs := map[string]*lab.Lab{"bare": speedLab(b, c, 0), "10": speedLab(b, c, 10), "10000": speedLab(b, c, 10000)}
			for b.Loop() {
				for _, sc := range speedCases {
					for _, kind := range []string{string(echo.Connections), string(echo.Requests), "iperf3"} {
						report(b, sc, kind, measure(b, labs, sc, kind))
					}
				}
			}
		})
	}
}

// measure returns the median of each lab.
func measure(b *testing.B, labs map[string]*lab.Lab, sc speedCase, kind string) map[string]float64 {
	b.Helper()
	all := map[string][]float64{}
	for range speedRounds {
		for _, name := range []string{"bare", "10", "10000"} {
			to := sc.to
			if name == "bare" {
				to = sc.bare
			}
			rate, err := oneRate(b, labs[name], sc.from, kind, to)
			if err != nil {
				b.Fatal(err)
			}
			all[name] = append(all[name], rate)
		}
	}
	out := map[string]float64{}
	for name, rates := range all {
		slices.Sort(rates)
		out[name] = rates[len(rates)/2]
	}
	return out
}

func oneRate(b *testing.B, l *lab.Lab, from, kind string, to netip.AddrPort) (float64, error) {
	if kind != "iperf3" {
		return l.Load(b.Context(), from, echo.LoadKind(kind), to, speedRound)
	}
	port := uint16(5201)
	if to.Port() > 30000 {
		port = 31701
	}
	r, err := l.IPerf(b.Context(), from, netip.AddrPortFrom(to.Addr(), port), speedRound)
	return r.BitsPerSecond / 1e9, err
}

func report(b *testing.B, sc speedCase, kind string, median map[string]float64) {
	b.Helper()
	name := strings.NewReplacer(" ", "_", ",", "").Replace(sc.name + " " + kind)
	b.ReportMetric(median["10"]/median["bare"], name+"/of-bare")
	b.ReportMetric(median["10000"]/median["10"], name+"/10000-of-10")
	fmt.Printf("%-16s %-28s %-12s bare %10.2f   10 Services %10.2f (%.3f of bare)   10,000 %10.2f (%.3f of bare)\n",
		strings.TrimPrefix(b.Name(), "BenchmarkSpeed/"), sc.name, kind, median["bare"],
		median["10"], median["10"]/median["bare"], median["10000"], median["10000"]/median["bare"])
}
