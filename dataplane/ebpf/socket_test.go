package ebpf

import (
	"bufio"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/nodeproxy/nodeproxy/service"
)

// socketCase is who dials what, and who must answer.
type socketCase struct {
	name string
	from string // a, b, node
	dst  func(f int) string
}

func TestSocketPath(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	cg := cgroup(t)
	d := n.start(t, Options{CgroupPath: cg})
	ask := func(from string, network, addr string, how ...string) (answer, error) {
		ns := n.node
		switch from {
		case "a":
			ns = n.podA
		case "b":
			ns = n.podB
		}
		return askInCgroup(t, ns, cg, network, addr, how...)
	}
	translated := func() uint64 { return d.metric(t, bpfReasonREASON_SOCKET_TRANSLATED) }
	syncAll(t, d, n.table(both(svc{name: "s", backends: to(podA, "8080")})...))

	t.Run("translated", func(t *testing.T) {
		loop := [2]string{"127.0.0.1", "::1"}
		for _, c := range []socketCase{
			{"ClusterIP from Pod", "b", func(f int) string { return join(vip[f], "80") }},
			{"ClusterIP from its own backend", "a", func(f int) string { return join(vip[f], "80") }},
			{"ClusterIP from node", "node", func(f int) string { return join(vip[f], "80") }},
			{"LB from node", "node", func(f int) string { return join(lbIP[f], "80") }},
			{"NodePort from node", "node", func(f int) string { return join(nodeIP[f], "30080") }},
			{"NodePort on loopback", "node", func(f int) string { return join(loop[f], "30080") }},
		} {
			t.Run(c.name, func(t *testing.T) {
				eachFlow(t, func(t *testing.T, f int, network string, _ service.Protocol) {
					before := translated()
					a, err := ask(c.from, network, c.dst(f))
					wantAnswer(t, a, err, "a", "")
					if a.peer != c.dst(f) {
						t.Errorf("peer %s, want %s", a.peer, c.dst(f))
					}
					if translated() == before {
						t.Error("not translated by the socket path")
					}
					if strings.HasPrefix(network, "udp") {
						a, err := ask(c.from, network, c.dst(f), "unconnected")
						wantAnswer(t, a, err, "a", "")
						if a.peer != c.dst(f) {
							t.Errorf("unconnected: answer comes from %s, want %s", a.peer, c.dst(f))
						}
					}
				})
			})
		}
	})
	t.Run("mapped", func(t *testing.T) {
		// A socket of IPv6 that dials an IPv4 address.
		before := translated()
		a, err := ask("b", "udp", "[::ffff:10.96.0.1]:80", "unconnected")
		wantAnswer(t, a, err, "a", podB[0])
		if translated() == before {
			t.Error("not translated by the socket path")
		}
	})
	t.Run("loopback of a Pod is not the node's", func(t *testing.T) {
		_, err := ask("b", "tcp4", "127.0.0.1:30080")
		wantRefused(t, func() error { return err })
	})
	t.Run("aside", func(t *testing.T) {
		// What depends on the source goes by packets, and comes out right.
		eachFlow(t, func(t *testing.T, f int, network string, _ service.Protocol) {
			before := d.metric(t, bpfReasonREASON_SOCKET_ASIDE)
			a, err := ask("b", network, join(nodeIP[f], "30080"))
			wantAnswer(t, a, err, "a", nodeIP[f])
			if d.metric(t, bpfReasonREASON_SOCKET_ASIDE) == before {
				t.Error("not left to the packet path")
			}
		})
	})
	t.Run("no endpoints", func(t *testing.T) {
		syncAll(t, d, n.table(both(svc{name: "s"})...))
		eachFlow(t, func(t *testing.T, f int, network string, _ service.Protocol) {
			for _, from := range []string{"b", "node"} {
				for _, dst := range []string{join(vip[f], "80"), join(nodeIP[f], "30080")} {
					_, err := ask(from, network, dst)
					wantRefused(t, func() error { return err })
				}
			}
		})
	})
	t.Run("affinity", func(t *testing.T) {
		syncAll(t, d, n.table(both(svc{name: "s", affinity: time.Minute,
			backends: append(append(to(podA, "8080"), to(podB, "8080")...), to(podRemote, "8080")...)})...))
		eachFlow(t, func(t *testing.T, f int, network string, _ service.Protocol) {
			for _, from := range []string{"b", "node"} {
				first, err := ask(from, network, join(vip[f], "80"))
				if err != nil {
					t.Fatal(err)
				}
				for range 6 {
					a, err := ask(from, network, join(vip[f], "80"))
					wantAnswer(t, a, err, first.name, "")
				}
				if from == "b" { // and by the packet path, to the same
					a, err := ask(from, network, join(nodeIP[f], "30080"))
					wantAnswer(t, a, err, first.name, "")
				}
			}
		})
	})
	t.Run("source ranges", func(t *testing.T) {
		syncAll(t, d, n.table(both(svc{name: "s", backends: to(podA, "8080"),
			ranges: []string{podB[0] + "/32", podB[1] + "/128"}})...))
		eachFlow(t, func(t *testing.T, f int, network string, _ service.Protocol) {
			a, err := ask("b", network, join(lbIP[f], "80"))
			wantAnswer(t, a, err, "a", nodeIP[f])
			if _, err := ask("a", network, join(lbIP[f], "80")); err == nil {
				t.Error("Pod a is outside the ranges, and got in")
			}
			if _, err := askFrom(n.client, network, join(lbIP[f], "80"), "", 0); err == nil {
				t.Error("the client is outside the ranges, and got in")
			}
		})
	})
}

// TestSocketsOfStrangers has a socket's network namespace have an address outside of
// the Pods' network beside one inside, and then alone. What a socket call cannot
// know is left to the packet path, which masquerades what no Pod sends.
func TestSocketsOfStrangers(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	cg := cgroup(t)
	d := n.start(t, Options{CgroupPath: cg})
	syncAll(t, d, n.table(both(svc{name: "s", backends: to(podA, "8080")})...))
	strange := [2]string{"172.17.0.3", "fd00:17::3"}
	sees := func(source [2]string, counted bpfReason) {
		t.Helper()
		eachFlow(t, func(t *testing.T, f int, network string, _ service.Protocol) {
			for _, how := range [][]string{nil, {"unconnected"}} {
				if how != nil && !strings.HasPrefix(network, "udp") {
					continue
				}
				before := d.metric(t, counted)
				a, err := askInCgroup(t, n.podB, cg, network, join(vip[f], "80"), how...)
				wantAnswer(t, a, err, "a", source[f])
				if d.metric(t, counted) == before {
					t.Errorf("not counted: reason %d", counted)
				}
			}
		})
	}
	sees(podB, bpfReasonREASON_SOCKET_TRANSLATED)
	for f := range 2 {
		in(t, n.node, func() error { return addRoute("podb", strange[f]+bits[f], "") })
		in(t, n.podB, func() error { return addAddr("lo", strange[f]+bits[f], 0) })
	}
	sees(podB, bpfReasonREASON_SOCKET_ASIDE)
	for f := range 2 {
		in(t, n.podB, func() error { // addresses go with their routes
			return errors.Join(delAddr("lo", strange[f]+bits[f]), delAddr("eth0", podB[f]+bits[f]),
				addAddr("eth0", strange[f]+bits[f], 0), addRoute("eth0", anyNet[f], gateway[f]))
		})
	}
	sees(nodeIP, bpfReasonREASON_SOCKET_ASIDE)
	for f := range 2 {
		in(t, n.podB, func() error {
			return errors.Join(delAddr("eth0", strange[f]+bits[f]), addAddr("eth0", podB[f]+bits[f], 0), addRoute("eth0", anyNet[f], gateway[f]))
		})
	}
	// What is on no way out counts for nothing.
	in(t, n.podB, func() error { return addAddr("lo", "127.0.0.2/8", 254) })
	sees(podB, bpfReasonREASON_SOCKET_TRANSLATED)
	in(t, n.podB, func() error { // more interfaces than are looked at
		for i := range 100 {
			if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprint("more", i)}}); err != nil {
				return err
			}
		}
		return nil
	})
	sees(podB, bpfReasonREASON_SOCKET_ASIDE)
}

func (d *Dataplane) metric(t testing.TB, r bpfReason) uint64 {
	t.Helper()
	m, err := d.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	return m[r].Packets
}

// TestP1P2P3Terminate holds connections in a process of its own, takes their
// backend away, and wants an error for those that were translated to it and for
// no other.
func TestP1P2P3Terminate(t *testing.T) {
	for _, kind := range []Terminate{TerminateUDP, TerminateAll, TerminateNone} {
		t.Run(string(kind), func(t *testing.T) {
			n := newTestNet(t)
			n.serveAll(t)
			cg := cgroup(t)
			d := n.start(t, Options{CgroupPath: cg, Terminate: kind})
			staying := both(svc{name: "staying", backends: to(podRemote, "8080"), port: 81, nodePort: 30081})
			going := both(svc{name: "going", backends: to(podA, "8080")})
			syncAll(t, d, n.table(append(staying, going...)...))
			eachFlow(t, func(t *testing.T, f int, network string, proto service.Protocol) {
				syncAll(t, d, n.table(append(staying, going...)...))
				hold := func(addr string) <-chan string { return n.hold(t, cg, network, addr) }
				gone := hold(join(vip[f], "80"))
				stays := hold(join(vip[f], "81"))
				direct := hold(join(podA[f], "8080"))
				for _, c := range []<-chan string{gone, stays, direct} {
					if said := <-c; said != "connected" {
						t.Fatal(said)
					}
				}
				syncAll(t, d, n.table(append(staying, both(svc{name: "going", backends: to(podB, "8080")})...)...))
				if kind == TerminateAll || kind == TerminateUDP && proto == service.UDP {
					select {
					case said := <-gone:
						if !strings.Contains(said, "connection abort") {
							t.Errorf("the socket of the backend that is gone: %s", said)
						}
					case <-time.After(slowness * time.Second):
						t.Error("the socket of the backend that is gone was not ended")
					}
					gone = nil
				}
				time.Sleep(50 * time.Millisecond)
				select {
				case said := <-gone:
					t.Errorf("this kind is to be left alone: %s", said)
				case said := <-stays:
					t.Errorf("socket of another backend: %s", said)
				case said := <-direct:
					t.Errorf("socket that was not translated: %s", said)
				default:
				}
			})
		})
	}
}

// hold connects in a process in the cgroup, in Pod b, and says "connected", and
// then how the connection ended.
func (n *testNet) hold(t testing.TB, cgroup, network, addr string) <-chan string {
	t.Helper()
	return n.saying(t, cgroup, network, addr, "hold")
}

// saying starts a client process in Pod b and returns the lines that it writes.
func (n *testNet) saying(t testing.TB, cgroup, network, addr, action string) <-chan string {
	t.Helper()
	cmd := clientProcess(t, cgroup, network, addr, action)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in(t, n.podB, cmd.Start)
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	said := make(chan string, 2)
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			said <- s.Text()
		}
	}()
	return said
}
