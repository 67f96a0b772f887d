package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// step is one numbered part of the story.
type step struct {
	title, story string
	run          func(*demo)
}

var demoSteps = []step{
	{"Without Services: Pods by their own addresses",
		"Not Service traffic, so nodeproxy must not touch it: each Pod sees the real source address.",
		(*demo).direct},
	{"A Pod dials a ClusterIP",
		"The answering Pod sees the caller's address, unless it is the caller itself.",
		(*demo).clusterIPFromPod},
	{"A node dials a ClusterIP",
		"The Pod that answers sees the node.",
		(*demo).clusterIPFromNode},
	{"The client dials a ClusterIP",
		"It cannot: there is no route to Service addresses outside the cluster.",
		(*demo).clusterIPFromClient},
	{"The client dials a node port",
		"Any node leads on to a Pod of any node. It stands in for the client, so that\n   replies come back its way: the Pod sees the node.",
		(*demo).nodePortFromClient},
	{"Pods and nodes dial a node port",
		"The same, from within the cluster.",
		(*demo).nodePortFromInside},
	{"Many connections",
		"Each new one goes to a Pod at random.",
		(*demo).distribution},
	{"A Pod dials itself through its Service",
		"A hairpin: pod-a1 is the only Pod behind 10.96.0.12.",
		(*demo).hairpin},
	{"A Service without endpoints",
		"Refused at once, not left to time out.",
		(*demo).empty},
	{"An endpoint goes away and comes back",
		"The manifest file is edited while connections come and go.",
		(*demo).change},
	{"Throughput",
		"iperf3 through Services, beside the direct path to the same Pod.",
		(*demo).throughput},
}

// expectation is what an answer must be like. It returns an error that says
// what is wrong.
type expectation func(echo.Answer) error

// dial dials once and checks the answer.
func (d *demo) dial(from string, network echo.Network, to netip.AddrPort, expect expectation) {
	answer, err := d.lab.Dial(d.ctx, from, network, to)
	if err == nil {
		err = expect(answer)
	}
	d.check(arrow(from, echo.Request{Network: network, To: to}),
		fmt.Sprintf("%s answered, saw %s", answer.Name, answer.Source.Addr()), err)
}

// saw expects an answer of any Pod that saw one of the sources.
func saw(sources ...netip.Addr) expectation {
	return func(a echo.Answer) error {
		if !slices.Contains(sources, a.Source.Addr()) {
			return fmt.Errorf("%s saw %s, want %s", a.Name, a.Source.Addr(), join(sources))
		}
		return nil
	}
}

// sawPod expects that the Pod that answered saw the dialling Pod. A Pod that
// has reached itself sees its node, or itself where the connection never left
// it: eBPF mode translates when the socket connects.
func (d *demo) sawPod(from string) expectation {
	return func(a echo.Answer) error {
		pod := MustPlace(from)
		if a.Name != from {
			return saw(pod.Addr(a.Source.Addr().Is6()))(a)
		}
		return saw(append(d.nodeAddrs(pod.Node), pod.Addrs()...)...)(a)
	}
}

// sawNode expects that the Pod saw the node.
func (d *demo) sawNode(node string) expectation { return saw(d.nodeAddrs(node)...) }

// nodeAddrs are the addresses that a node can have as a source towards Pods:
// its own and, towards Pods behind its bridge, the bridge's.
func (d *demo) nodeAddrs(node string) []netip.Addr {
	addrs := MustPlace(node).Addrs()
	if d.lab.opts.Bridge {
		for _, cidr := range PodCIDRs[node] {
			addrs = append(addrs, bridgeAddr(cidr))
		}
	}
	return addrs
}

// service returns the port of a demo Service, which all end in the same digits
// in both families.
func service(v6 bool, last int, port uint16) netip.AddrPort {
	text := fmt.Sprintf("10.96.0.%d", last)
	if v6 {
		text = fmt.Sprintf("fd00:10:96::%d", last)
	}
	return netip.AddrPortFrom(netip.MustParseAddr(text), port)
}

// families is for ranging over: IPv4 first.
var families = []bool{false, true}

func (d *demo) direct() {
	for _, v6 := range families {
		pod := netip.AddrPortFrom(MustPlace("pod-b1").Addr(v6), echo.PortEcho)
		d.dial("pod-a1", echo.TCP, pod, saw(MustPlace("pod-a1").Addr(v6)))
		d.dial("client", echo.UDP, pod, saw(MustPlace("client").Addr(v6)))
	}
}

func (d *demo) clusterIPFromPod() {
	for _, v6 := range families {
		d.dial("pod-a1", echo.HTTP, service(v6, 10, 80), d.sawPod("pod-a1"))
		d.dial("pod-a1", echo.TCP, service(v6, 10, echo.PortEcho), d.sawPod("pod-a1"))
		d.dial("pod-b2", echo.UDP, service(v6, 10, echo.PortEcho), d.sawPod("pod-b2"))
	}
}

func (d *demo) clusterIPFromNode() {
	for _, v6 := range families {
		d.dial("node-a", echo.HTTP, service(v6, 10, 80), d.sawNode("node-a"))
		d.dial("node-b", echo.UDP, service(v6, 10, echo.PortEcho), d.sawNode("node-b"))
	}
}

func (d *demo) clusterIPFromClient() {
	for _, v6 := range families {
		r := echo.Request{Network: echo.HTTP, To: service(v6, 10, 80)}
		answer, err := d.lab.Dial(d.ctx, "client", r.Network, r.To)
		switch {
		case err == nil:
			err = fmt.Errorf("%s answered, want no route", answer.Name)
		case errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH):
			err = nil
		}
		d.check(arrow("client", r), "unreachable", err)
	}
}

func (d *demo) nodePortFromClient() {
	for _, v6 := range families {
		for _, node := range PlacesOf(Node) {
			to := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(node.Addr(v6), port) }
			d.dial("client", echo.HTTP, to(30080), d.sawNode(node.Name))
			d.dial("client", echo.UDP, to(30070), d.sawNode(node.Name))
		}
	}
}

func (d *demo) nodePortFromInside() {
	for _, v6 := range families {
		for _, node := range PlacesOf(Node) {
			to := netip.AddrPortFrom(node.Addr(v6), 30070)
			// A socket that eBPF mode translates on the Pod's own node has no
			// need to be masqueraded.
			sources := append(d.nodeAddrs(node.Name), MustPlace("pod-a1").Addr(v6))
			d.dial("pod-a1", echo.TCP, to, saw(sources...))
			d.dial("node-a", echo.UDP, to, saw(append(d.nodeAddrs(node.Name), d.nodeAddrs("node-a")...)...))
		}
	}
}

// distribution asks for no more than that no Pod is left out: half of its
// share is seven standard deviations off, for 400 connections.
func (d *demo) distribution() {
	const n = 400
	for _, v6 := range families {
		to := service(v6, 10, echo.PortEcho)
		count := map[string]int{}
		var err error
		for range n {
			answer, dialErr := d.lab.Dial(d.ctx, "pod-b2", echo.TCP, to)
			if dialErr != nil {
				err = dialErr
				break
			}
			count[answer.Name]++
		}
		var parts []string
		for _, pod := range PlacesOf(Pod) {
			parts = append(parts, fmt.Sprintf("%s %d", pod.Name, count[pod.Name]))
			if err == nil && count[pod.Name] < n/4/2 {
				err = fmt.Errorf("%s had %d of %d, want about %d", pod.Name, count[pod.Name], n, n/4)
			}
		}
		d.check(fmt.Sprintf("pod-b2 → %s, %d times", to, n), strings.Join(parts, "  "), err)
	}
}

func (d *demo) hairpin() {
	for _, v6 := range families {
		for _, network := range []echo.Network{echo.TCP, echo.UDP} {
			d.dial("pod-a1", network, service(v6, 12, echo.PortEcho), d.sawPod("pod-a1"))
		}
	}
}

func (d *demo) empty() {
	for _, v6 := range families {
		for _, from := range []string{"pod-a1", "node-b"} {
			r := echo.Request{Network: echo.HTTP, To: service(v6, 13, 80)}
			begin := time.Now()
			answer, err := d.lab.Dial(d.ctx, from, r.Network, r.To)
			took := time.Since(begin)
			switch {
			case err == nil:
				err = fmt.Errorf("%s answered", answer.Name)
			case !errors.Is(err, syscall.ECONNREFUSED):
				// what it was instead says enough
			case took > 500*time.Millisecond:
				err = fmt.Errorf("refused only after %s", took.Round(time.Millisecond))
			default:
				err = nil
			}
			d.check(arrow(from, r), fmt.Sprintf("refused after %.1f ms", took.Seconds()*1000), err)
		}
	}
}

func join(addrs []netip.Addr) string {
	var texts []string
	for _, a := range addrs {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, " or ")
}

// indent moves each line by three columns, under a step's title.
func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("   " + line)
	}
	return b.String()
}
