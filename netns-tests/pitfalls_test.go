package netnstests

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// TestP8OneSourcePort opens connections from one source port to two Services
// with one endpoint: both complete, and their data is not crossed.
func TestP8OneSourcePort(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("single"), find("deny")) // both have pod-a1
		startAgents(t, l)
		port := uint16(21000)
		for _, from := range []string{"pod-a2", "pod-b1", "node-a", "client"} {
			remote, err := l.Dialer(from)
			if err != nil {
				t.Fatal(err)
			}
			at := "cluster"
			if from == "client" {
				at = "external"
			}
			for _, v6 := range []bool{false, true} {
				port++
				var flows []heldFlow
				for _, s := range []svc{find("single"), find("deny")} {
					to := s.addr(at, 80, v6)
					f := heldFlow{text: fmt.Sprintf("%s:%d -> %s", from, port, to)}
					f.conn, err = remote.Open(t.Context(), echo.Request{Network: echo.TCP, To: to,
						From: netip.AddrPortFrom(lab.MustPlace(from).Addr(v6), port)})
					if err == nil {
						f.answer, err = f.conn.Ping(t.Context())
					}
					if err != nil {
						t.Errorf("%s: %v", f.text, err)
						continue
					}
					flows = append(flows, f)
				}
				if len(flows) == 2 && flows[0].answer.Source == flows[1].answer.Source {
					t.Errorf("%s: both have source %s", flows[0].text, flows[0].answer.Source)
				}
				for range 3 {
					pingAll(t, flows)
				}
			}
		}
	})
}

// TestP31SourcePortOfANodePort has processes of the node use a node port's
// number: as source port towards outside it works, and a socket bound to it
// does not get what is the Service's.
// Node ports on loopback are off: where the agent itself listens for them, a
// bind to every address fails with EADDRINUSE.
func TestP31SourcePortOfANodePort(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false, "--iptables-localhost-nodeports=false")
		apply(t, l, find("web"))
		startAgents(t, l)
		serve(t, l, "client", echo.PortEcho, "client")
		remote, err := l.Dialer("node-a")
		if err != nil {
			t.Fatal(err)
		}
		for _, v6 := range []bool{false, true} {
			for _, network := range []echo.Network{echo.TCP, echo.UDP} {
				answer, err := remote.Dial(t.Context(), echo.Request{
					Network: network, To: netip.AddrPortFrom(lab.MustPlace("client").Addr(v6), echo.PortEcho),
					From: netip.AddrPortFrom(lab.MustPlace("node-a").Addr(v6), 30001)})
				if err != nil || answer.Source.Port() != 30001 {
					t.Errorf("node-a:30001 over %s, IPv6 %v: answer %v, error %v", network, v6, answer, err)
				}
			}
		}
		serve(t, l, "node-a", 30001, "squatter")
		runScenarios(t, l, []scenario{{name: "bound", from: "client pod-b1", to: "web node-a", want: everyPod, source: masked}})
	})
}

// TestP32RefusedAtOnce takes the endpoints away and measures the refusal.
func TestP32RefusedAtOnce(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		s := find("web")
		apply(t, l, s)
		startAgents(t, l)
		checkAnswers(t, l, "web", everyPod)
		s.endpoints = nil
		apply(t, l, s)
		eventually(t, patience, func() error {
			f := flow{scenario: scenario{want: refused}, lab: l, network: echo.TCP, from: lab.MustPlace("client")}
			f.at, f.to = parseTarget("web node-b", false)
			return f.check(t.Context())
		})
		runScenarios(t, l, []scenario{{name: "no endpoints left", from: "client pod-a1 pod-b2 node-a node-b",
			to: "web external, web balancer, web node-a, web node-b", want: refused},
			{name: "no endpoints left of a ClusterIP", from: "pod-a1 pod-b2 node-a node-b", to: "web cluster", want: refused}})
	})
}

// TestP45WrongCgroup starts agents with directories that are no cgroup, which
// is refused with the reason, and with one that holds only one Pod, whose
// sockets alone are then translated.
func TestP45WrongCgroup(t *testing.T) {
	sockets := func(c column) bool { return c.Sockets } // the other is told to attach to no cgroup
	eachOf(t, sockets, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("single"))
		agent := append([]string{l.Options().Binary, "run", "--source", "file:" + l.ManifestDir(), "--mode", c.Mode,
			"--hostname-override", "node-a", "--instance", l.Netns("node-a")}, l.Options().AgentArgs...)
		for _, dir := range []string{"/nonexistent", t.TempDir()} {
			out, err := l.Command(t.Context(), "node-a", append(agent, "-v", "0", "--cgroup", dir)...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), dir) || strings.Count(string(out), "\n") != 1 {
				t.Errorf("--cgroup %s: %v, want one line that names it, not:\n%s", dir, err, out)
			}
		}
		top, err := l.NodeCgroup("node-a")
		if err != nil {
			t.Fatal(err)
		}
		if err := l.StartAgent(t.Context(), "node-a", "--cgroup", filepath.Join(top, "pod-a1")); err != nil {
			t.Fatal(err)
		}
		for from, want := range map[string]string{"pod-a1": "pod-a1", "pod-a2": "pod-a1"} {
			_, to := parseTarget("single cluster", false)
			answer, err := l.Dial(t.Context(), from, echo.TCP, to)
			if err != nil || answer.Name != want || answer.Source.Addr() != lab.MustPlace(from).IPv4 {
				t.Errorf("from %s: answer %v, error %v", from, answer, err)
			}
		}
	})
}

// TestP48TwoUplinks has the client reach a node by two links, with rp_filter
// on: node ports answer on both, and answers leave by the way they came.
func TestP48TwoUplinks(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"), find("local-a"))
		addUplink(t, l)
		for _, dev := range []string{"all", "eth0", "eth1"} {
			setSysctl(t, l, "node-a", "ipv4/conf/"+dev+"/rp_filter", "1")
		}
		startAgents(t, l)
		check := func() {
			for _, s := range []svc{find("web"), find("local-a")} {
				for _, to := range []string{"192.168.77.11", "192.168.79.11", "fd00:77::11", "fd00:79::11"} {
					target := netip.AddrPortFrom(netip.MustParseAddr(to), uint16(30000+s.n))
					for _, network := range []echo.Network{echo.TCP, echo.UDP} {
						for range minTries {
							if answer, err := l.Dial(t.Context(), "client", network, target); err != nil {
								t.Errorf("%s by %s over %s: %v, %v", s.name, target, network, answer, err)
							}
						}
					}
				}
			}
		}
		check()
	})
}

// addUplink joins the client and node-a by a second link, eth1 at both ends.
func addUplink(t *testing.T, l *lab.Lab) {
	t.Helper()
	peer, err := netns.GetFromName(l.Netns("node-a"))
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	end := func(addrs ...string) error {
		dev, err := netlink.LinkByName("eth1")
		if err != nil {
			return err
		}
		for _, text := range addrs {
			addr, err := netlink.ParseAddr(text)
			if err == nil {
				err = netlink.AddrAdd(dev, addr)
			}
			if err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(dev)
	}
	err = l.Do("client", func() error {
		link := netlink.NewVeth(netlink.LinkAttrs{Name: "eth1", HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 79, 10}})
		link.PeerName, link.PeerNamespace = "eth1", netlink.NsFd(peer)
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		return end("192.168.79.10/24", "fd00:79::10/64")
	})
	if err == nil {
		err = l.Do("node-a", func() error { return end("192.168.79.11/24", "fd00:79::11/64") })
	}
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // neighbours of a link that has just come up
}

// TestP25Hairpin has the only endpoint of a Service dial it, over TCP and UDP,
// with Pods behind routed veths and behind a bridge.
func TestP25Hairpin(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		for _, bridge := range []bool{false, true} {
			t.Run(fmt.Sprintf("bridge=%v", bridge), func(t *testing.T) {
				l := c.up(t, bridge)
				apply(t, l, find("single"), find("internal"))
				startAgents(t, l)
				runScenarios(t, l, []scenario{
					{name: "by ClusterIP", from: "pod-a1", to: "single cluster, internal cluster", want: "pod-a1"},
					{name: "by other addresses", from: "pod-a1", to: "single node-a, single node-b, single external, single balancer",
						want: "pod-a1", source: masked},
				})
			})
		}
	})
}
