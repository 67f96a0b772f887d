package netnstests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/service"
)

// TestP53ExplainIsWhatHappens asks an agent about every Service of the
// scenarios at every address, from a Pod, from the node and from outside, and
// dials: what it says must be what happens, for 1,000 of them at least (P53).
func TestP53ExplainIsWhatHappens(t *testing.T) {
	var ran atomic.Int64
	t.Cleanup(func() { // when all columns have ended
		n, want := proven.Load(), leastProven*ran.Load()/int64(len(columns))
		t.Logf("%d of %d explanations were compared with live traffic", n, questions.Load())
		if !t.Failed() && n < want {
			t.Errorf("%d explanations were compared with live traffic, want %d at least", n, want)
		}
	})
	eachColumn(t, func(t *testing.T, c column) {
		ran.Add(1)
		l := c.scenarioLab(t, false, "--sync-period", "10m") // nothing is repaired while it is asked about
		var status admin.Status
		out := inPlace(t, l, "node-a", l.Options().Binary, "status", "-o", "json", "--instance", l.Netns("node-a"))
		if err := json.Unmarshal([]byte(out), &status); err != nil || status.Mode != c.Mode || !status.Healthy || status.LastSync == nil {
			t.Errorf("status: %v\n%s", err, out)
		}
		for _, what := range []string{"services", "backends"} {
			if out := inPlace(t, l, "node-a", l.Options().Binary, "get", what, "--instance", l.Netns("node-a")); !strings.Contains(out, "default/web:echo") {
				t.Errorf("get %s:\n%s", what, out)
			}
		}
		var wg sync.WaitGroup
		for from, places := range map[string][]string{
			"pod-a2": {"cluster", "external", "balancer", "node-a"}, "node-a": {"cluster", "external", "balancer"},
			"client": {"external", "balancer", "node-a"},
		} {
			for _, network := range []echo.Network{echo.TCP, echo.UDP} {
				wg.Go(func() { explainAll(t, l, from, places, network) })
			}
		}
		wg.Wait()
		explainByName(t, l)
	})
}

// explainByName asks with the name of a Pod, and then the kernel alone.
func explainByName(t *testing.T, l *lab.Lab) {
	t.Helper()
	to := find("web").addr("cluster", 80, true)
	argv := []string{l.Options().Binary, "explain", "--instance", l.Netns("node-a"), "--from"}
	for _, from := range [][]string{{"pod", "default/pod-a1"}, {"pod/default/pod-a1"}} {
		out := inPlace(t, l, "node-a", append(append(argv, from...), to.String())...)
		for _, want := range []string{"next hop on veth-a1", "next hop via " + lab.MustPlace("node-b").Addr(true).String() + " on eth0", "TCP packet from " + lab.MustPlace("pod-a1").Addr(true).String() + " to " + to.String(), "the source is a Pod", "one of 4 endpoints", "asked "} {
			if !strings.Contains(out, want) {
				t.Errorf("--from %v: no %q in\n%s", from, want, out)
			}
		}
	}
	if out, err := l.Command(t.Context(), "node-a", append(argv, "pod", "default/nobody", to.String())...).CombinedOutput(); err == nil || !strings.Contains(string(out), "use its IP address") {
		t.Errorf("a Pod that is unknown: %v\n%s", err, out)
	}
	// Somebody breaks what the kernel has: the answers differ.
	if l.Options().Mode == lab.ModeEBPF {
		emptyMap(t, l, "frontends")
	} else {
		inPlace(t, l, "node-a", "ip6tables-"+backendOf(l), "-t", "nat", "-F", "NODEPROXY-SERVICES")
	}
	out, err := l.Command(t.Context(), "node-a", append(argv, "node", to.String())...).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "MISMATCH") {
		t.Errorf("the kernel is broken, and explain ends with %v:\n%s", err, out)
	}
	if err := l.KillAgent("node-a"); err != nil {
		t.Fatal(err)
	}
	if out := inPlace(t, l, "node-a", append(argv, "node", to.String())...); !strings.Contains(out, "asked ") {
		t.Errorf("without an agent:\n%s", out)
	}
}

// TestExplainLoopback asks of node ports on loopback, and dials: who serves them
// there, where they lead, and what is in the way.
func TestExplainLoopback(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		taken := find("local-a")
		if !c.Sockets {
			defer listenOn(t, l, loopbacks[0], taken).Close()
		}
		apply(t, l, find("web"), find("empty"), taken)
		startAgents(t, l)
		who := map[bool]string{true: "the socket programs translate it", false: "the agent listens there and relays"}[c.Sockets]
		for _, ip := range loopbacks {
			for _, network := range []echo.Network{echo.TCP, echo.UDP} {
				e, text := explainAt(t, l, network, ip, "web")
				if e.Verdict != "translate" || !strings.HasPrefix(e.Service, "default/web:echo") || !strings.Contains(text, who) || len(e.Backends) != 4 {
					t.Errorf("web at %s over %s: %s", ip, network, text)
				}
				answer, err := l.Dial(t.Context(), "node-a", network, netip.AddrPortFrom(ip, uint16(30000+find("web").n)))
				if err != nil || !slices.ContainsFunc(e.Backends, func(b admin.Candidate) bool {
					return strings.HasPrefix(b.Address, lab.MustPlace(answer.Name).Addr(ip.Is6()).String()) || strings.HasPrefix(b.Address, "["+lab.MustPlace(answer.Name).Addr(ip.Is6()).String())
				}) {
					t.Errorf("web at %s over %s: %v, %v; explained as %s", ip, network, answer, err, text)
				}
				e, text = explainAt(t, l, network, ip, "empty")
				_, err = l.Dial(t.Context(), "node-a", network, netip.AddrPortFrom(ip, uint16(30000+find("empty").n)))
				if e.Verdict != "reject" || !strings.Contains(text, "default/empty:echo") || !strings.Contains(fmt.Sprint(err), syscall.ECONNREFUSED.Error()) {
					t.Errorf("empty at %s over %s: %v; explained as %s", ip, network, err, text)
				}
			}
		}
		if e, text := explainAt(t, l, echo.TCP, loopbacks[0], taken.name); !c.Sockets && (e.Verdict != "untouched" || !strings.Contains(text, syscall.EADDRINUSE.Error())) {
			t.Errorf("a port that another process has: %s", text)
		}
		if err := l.KillAgent("node-a"); err != nil {
			t.Fatal(err)
		}
		e, text := explainAt(t, l, echo.TCP, loopbacks[1], "web")
		_, err := l.Dial(t.Context(), "node-a", echo.TCP, netip.AddrPortFrom(loopbacks[1], uint16(30000+find("web").n)))
		if translated := e.Verdict == "translate" && len(e.Backends) == 4; translated != c.Sockets || translated != (err == nil) || e.Service != "default/web:echo" {
			t.Errorf("without an agent: %v; explained as %s", err, text)
		}
	})
}

// explainAt asks about a Service's node port on loopback.
func explainAt(t *testing.T, l *lab.Lab, network echo.Network, ip netip.Addr, name string) (e admin.Explanation, text string) {
	t.Helper()
	to := netip.AddrPortFrom(ip, uint16(30000+find(name).n)).String() + "/" + string(network)
	if complaint, err := asked(t, l, &e, "explain", to); err != nil {
		t.Errorf("explain %s: %v: %s", to, err, complaint)
	}
	return e, strings.Join(e.Steps, "\n")
}

// listenOn takes a Service's node port on loopback of node-a away from the agent.
func listenOn(t *testing.T, l *lab.Lab, ip netip.Addr, s svc) (held io.Closer) {
	t.Helper()
	if err := l.Do("node-a", func() (err error) {
		held, err = net.Listen("tcp", netip.AddrPortFrom(ip, uint16(30000+s.n)).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return held
}

// backendOf is the iptables back end that a lab's agents were told to use.
func backendOf(l *lab.Lab) string {
	args := l.Options().AgentArgs
	return args[slices.Index(args, "--iptables-backend")+1]
}

func explainAll(t *testing.T, l *lab.Lab, from string, places []string, network echo.Network) {
	for i, s := range services {
		v6 := i%2 == 0
		for _, at := range places {
			f := flow{lab: l, network: network, v6: v6, from: lab.MustPlace(from), at: at, to: s.addr(at, 80, v6)}
			if err := f.asExplained(t.Context()); err != nil {
				t.Errorf("%s -> %s %s (%s) over %s: %v", from, s.name, at, f.to, network, err)
			}
		}
	}
}

// questions counts what agents were asked, and proven those of them whose answer
// was then compared with live traffic.
var questions, proven atomic.Int64

// leastProven is how many there must be in all columns together.
const leastProven = 1000

// asExplained asks the agent of node-a, and dials.
func (f flow) asExplained(ctx context.Context) error {
	q := admin.Question{From: f.from.Addr(f.v6), To: f.to, Protocol: service.TCP}
	if f.network == echo.UDP {
		q.Protocol = service.UDP
	}
	defer questions.Add(1)
	// A copy of the programs takes some tenths of a second to load.
	q.AgentOnly = questions.Load()%4 != 0 && f.lab.Options().Mode == lab.ModeEBPF
	var e admin.Explanation
	if err := admin.Get(ctx, admin.Socket(f.lab.Netns("node-a")), "/v1/explain", q.Values(), &e); err != nil {
		return err
	}
	explained := strings.Join(e.Steps, "\n")
	if e.Kernel == nil != q.AgentOnly || e.Differs != "" {
		return fmt.Errorf("the kernel says something else; explained as\n%s", explained)
	}
	switch e.Verdict {
	case "untouched":
		return nil // what the network makes of it is no matter of the agent's
	case "reject", "drop":
		f.want = map[string]string{"reject": refused, "drop": dropped}[e.Verdict]
		if err := f.check(ctx); err != nil {
			return fmt.Errorf("%w; explained as\n%s", err, explained)
		}
		proven.Add(1)
		return nil
	}
	var names []string
	for _, c := range e.Backends {
		for _, p := range lab.Places() {
			if a := p.Addr(f.v6).String(); strings.Contains(c.Address, a+":") || strings.Contains(c.Address, "["+a+"]") {
				names = append(names, p.Name)
			}
		}
	}
	answer, err := f.dial(ctx)
	if err != nil {
		return fmt.Errorf("%w; explained as\n%s", err, explained)
	}
	if who, _, _ := strings.Cut(answer.Name, "/"); !slices.Contains(names, who) {
		return fmt.Errorf("%s answered; explained as\n%s", answer.Name, explained)
	}
	if err := f.seenAs(&e, answer.Name, answer.Source.Addr()); err != nil {
		return fmt.Errorf("%w; explained as\n%s", err, explained)
	}
	proven.Add(1)
	return nil
}

// seenAs compares the source address that the endpoint saw with the one that was explained:
// the Pod's own if its socket was translated, else the one of the packet's endpoint.
func (f flow) seenAs(e *admin.Explanation, who string, source netip.Addr) error {
	if f.from.Kind != lab.Pod {
		return nil
	}
	who, _, _ = strings.Cut(who, "/")
	own := e.Socket != nil && e.Socket.Verdict == "translate"
	for _, c := range e.Backends {
		if at, err := netip.ParseAddrPort(c.Address); err == nil && at.Addr() == lab.MustPlace(who).Addr(f.v6) {
			own = own || !c.Masquerade
		}
	}
	if got := source == f.from.Addr(f.v6); got != own {
		return fmt.Errorf("%s sees %s, and of the Pod's own address it was said: %v", who, source, own)
	}
	return nil
}
