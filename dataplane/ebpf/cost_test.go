package ebpf

import (
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

const (
	costRounds = 9
	costRound  = 400 * time.Millisecond
)

// sink takes what it is sent on a port of Pod a and of the remote Pod.
func (n *testNet) sink(b *testing.B, port string) {
	for _, at := range []struct {
		ip string
		in func(func() error)
	}{
		{podA[0], func(f func() error) { in(b, n.podA, f) }},
		{podRemote[0], func(f func() error) { in(b, n.remote, f) }},
	} {
		var l net.Listener
		at.in(func() (err error) {
			l, err = net.Listen("tcp4", join(at.ip, port))
			return err
		})
		b.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { io.Copy(io.Discard, c); c.Close() }()
			}
		}()
	}
}

// connections makes connections one after another, and returns how many a second.
func (n *testNet) connections(b *testing.B, to string) (rate float64) {
	in(b, n.client, func() error {
		start := time.Now()
		made := 0
		for ; time.Since(start) < costRound; made++ {
			c, err := net.DialTimeout("tcp4", to, 2*time.Second)
			if err != nil {
				return err
			}
			c.(*net.TCPConn).SetLinger(0) // a reset: its ports are free at once
			c.Close()
		}
		rate = float64(made) / time.Since(start).Seconds()
		return nil
	})
	return rate
}

// stream sends as much as it can, and returns bits a second.
func (n *testNet) stream(b *testing.B, to string) (rate float64) {
	in(b, n.client, func() error {
		c, err := net.DialTimeout("tcp4", to, 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		buf := make([]byte, 128<<10)
		sent := 0
		start := time.Now()
		for time.Since(start) < costRound {
			size, err := c.Write(buf)
			if err != nil {
				return err
			}
			sent += size
		}
		rate = 8 * float64(sent) / time.Since(start).Seconds()
		return nil
	})
	return rate
}

// BenchmarkCost compares, in turns so that a noisy machine disturbs all alike,
// a node without programs with one that has them: what traffic of no Service
// pays, and what a node port does. Medians are reported as ratios to bare.
func BenchmarkCost(b *testing.B) {
	bare, n := newTestNet(b), newTestNet(b)
	for _, at := range []*testNet{bare, n} {
		at.sink(b, "8080")
		at.sink(b, "9000")
	}
	d := n.start(b, Options{Sizes: Sizes{Flows: 131072}})
	syncAll(b, d, n.table(svc{name: "local", backends: to(podA, "8080"), policy: service.PolicyCluster},
		svc{name: "remote", backends: to(podRemote, "8080"), port: 81, nodePort: 30081}))
	ways := []struct {
		name string
		net  *testNet
		to   string
		bare int // which one it is compared with
	}{
		{"bare", bare, join(podA[0], "9000"), 0},
		{"no service's", n, join(podA[0], "9000"), 0},
		{"no service's, port of a backend", n, join(podA[0], "8080"), 0},
		{"NodePort, Pod on the node", n, join(nodeIP[0], "30080"), 0},
		{"bare, Pod elsewhere", bare, join(podRemote[0], "9000"), 4},
		{"NodePort, Pod elsewhere", n, join(nodeIP[0], "30081"), 4},
	}
	for b.Loop() {
		for _, kind := range []string{"conn/s", "Mbit/s"} {
			results := make([][]float64, len(ways))
			ratios := make([][]float64, len(ways))
			for round := range costRounds {
				got := make([]float64, len(ways))
				for i := range ways {
					at := (i + round) % len(ways)
					if kind == "conn/s" {
						got[at] = ways[at].net.connections(b, ways[at].to)
					} else {
						got[at] = ways[at].net.stream(b, ways[at].to) / 1e6
					}
				}
				for i := range ways {
					results[i] = append(results[i], got[i])
					ratios[i] = append(ratios[i], got[i]/got[ways[i].bare])
				}
			}
			for i, w := range ways {
				slices.Sort(results[i])
				slices.Sort(ratios[i])
				b.Logf("%-32s %9.0f %s, %.3f of bare", w.name, results[i][costRounds/2], kind, ratios[i][costRounds/2])
			}
		}
	}
}

// BenchmarkNoService asks what traffic that is no Service's pays. All is in one
// network, without the agent, with it and without it again in each round: between
// two networks, alike as they are, speed differs by more than that. The ratio of
// the two measurements without it says how much is noise.
func BenchmarkNoService(b *testing.B) {
	n := newTestNet(b)
	n.sink(b, "9000")
	o := Options{PinRoot: bpffs(b) + "/nodeproxy", CgroupPath: cgroup(b), Sizes: Sizes{Flows: 131072}}
	serving := func(measure func() float64) float64 {
		var d *Dataplane
		in(b, n.node, func() (err error) {
			d, err = New(o)
			return err
		})
		syncAll(b, d, n.table(svc{name: "s", backends: to(podA, "8080"), policy: service.PolicyCluster}))
		defer func() {
			d.Close()
			in(b, n.node, func() error { return Cleanup(o) })
		}()
		measure() // the start's own work is over after that
		return measure()
	}
	to := join(podA[0], "9000")
	for b.Loop() {
		for kind, measure := range map[string]func() float64{
			"conn/s": func() float64 { return n.connections(b, to) },
			"bit/s":  func() float64 { return n.stream(b, to) },
		} {
			var with, again []float64
			for range 4 * costRounds {
				before, during, after := measure(), serving(measure), measure()
				with = append(with, 2*during/(before+after))
				again = append(again, after/before)
			}
			slices.Sort(with)
			slices.Sort(again)
			at := func(s []float64, part int) float64 { return s[len(s)*part/4] }
			b.Logf("%-6s with the programs: %.3f of bare (quartiles %.3f to %.3f); bare against bare: %.3f (%.3f to %.3f)",
				kind, at(with, 2), at(with, 1), at(with, 3), at(again, 2), at(again, 1), at(again, 3))
		}
	}
}
