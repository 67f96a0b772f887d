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
