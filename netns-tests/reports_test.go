package netnstests

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// What users of other Service proxies reported, with real packets. The numbers
// are those of the trackers that are named.

// tools are the commands of a back end, one for each family.
func tools(backend string) []string { return []string{"iptables-" + backend, "ip6tables-" + backend} }

// inEach runs the commands of a back end, for both families.
func inEach(t *testing.T, l *lab.Lab, place, backend string, rules ...string) {
	t.Helper()
	for _, tool := range tools(backend) {
		for _, rule := range rules {
			inPlace(t, l, place, append([]string{tool}, strings.Fields(rule)...)...)
		}
	}
}

// backendOf is the one that rules of others are written with beside a column.
func (c column) backendOf() string {
	if c.Backend == "" {
		return "nft"
	}
	return c.Backend
}

// fromPort dials from a port of one's own.
func fromPort(ctx context.Context, l *lab.Lab, place string, network echo.Network, to netip.AddrPort, port uint16) (echo.Answer, error) {
	remote, err := l.Dialer(place)
	if err != nil {
		return echo.Answer{}, err
	}
	from := netip.AddrPortFrom(lab.MustPlace(place).Addr(to.Addr().Is6()), port)
	return remote.Dial(ctx, echo.Request{Network: network, To: to, From: from})
}

// TestForeignMarksAreNotMasqueraded: packets of no Service bear a mark that holds
// the bit of ours, as WireGuard's 0xca6c does (kubernetes #113659). They keep
// their source, and no firewall lets them pass for it.
func TestForeignMarksAreNotMasqueraded(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		serve(t, l, "client", machinePort, "client")
		apply(t, l, find("web"))
		startAgents(t, l)
		inEach(t, l, "node-a", c.backendOf(), "-t mangle -A OUTPUT -j MARK --set-mark 0xca6c",
			"-t mangle -A PREROUTING -j MARK --set-mark 0xca6c")
		eachWay(func(network echo.Network, v6 bool) {
			for i, from := range []string{"node-a", "pod-a1"} {
				port := uint16(20000 + i)
				answer, err := fromPort(t.Context(), l, from, network, netip.AddrPortFrom(lab.MustPlace("client").Addr(v6), machinePort), port)
				if want := netip.AddrPortFrom(lab.MustPlace(from).Addr(v6), port); err != nil || answer.Source != want {
					t.Errorf("%s over %s: the client saw %v, want %v: %v", from, network, answer.Source, want, err)
				}
			}
		})
		runScenarios(t, l, []scenario{
			{name: "Services beside the mark", from: "pod-a1 client", to: "web node-a, web external", want: everyPod, source: masked},
		})
		// Last, since rules of ebpf mode's peer columns have nothing to say to it.
		inEach(t, l, "node-a", c.backendOf(), "-P FORWARD DROP", "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
		if _, err := l.Dial(t.Context(), "pod-a1", echo.TCP, netip.AddrPortFrom(lab.MustPlace("client").IPv4, machinePort)); err == nil {
			t.Error("the mark has opened the host's firewall")
		}
	})
}

// TestHealthCheckBesideAFirewall: a load balancer asks at the health-check node
// port, and the host's firewall drops what nobody accepts (kubernetes #97225).
func TestHealthCheckBesideAFirewall(t *testing.T) {
	const port = 32100
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		inEach(t, l, "node-a", c.backendOf(), "-P INPUT DROP", "-A INPUT -i lo -j ACCEPT", "-A INPUT -p ipv6-icmp -j ACCEPT",
			"-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
		checked := find("local-a")
		checked.edit = withHealthCheck(port)
		apply(t, l, checked)
		startAgents(t, l)
		var faults []error
		for _, v6 := range []bool{false, true} {
			to := netip.AddrPortFrom(lab.MustPlace("node-a").Addr(v6), port)
			if out, err := askHealth(t, l, to); err != nil || !strings.Contains(out, `"localEndpoints": 2`) {
				faults = append(faults, fmt.Errorf("%s answers %q: %w", to, out, errOrNone(err)))
			}
			other := netip.AddrPortFrom(lab.MustPlace("node-a").Addr(v6), port+1)
			if _, err := l.Dial(t.Context(), "client", echo.TCP, other); !echo.IsTimeout(err) {
				t.Errorf("the firewall is open at %s: %v", other, err)
			}
		}
		c.judge(t, "health check beside a firewall", faults)
		if err := l.Delete(checked.name + ".yaml"); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, func() error {
			if rules := savedRules(t, l, "node-a"); strings.Contains(rules, strconv.Itoa(port)) {
				return errors.New("the port of a Service that is gone is still accepted")
			}
			return nil
		})
	})
}

// withHealthCheck makes a Service that load balancers ask for at a port.
func withHealthCheck(port int32) func(*corev1.Service, []*discoveryv1.EndpointSlice) {
	return func(s *corev1.Service, _ []*discoveryv1.EndpointSlice) {
		externalLocal(s, nil)
		s.Spec.HealthCheckNodePort = port
	}
}

// askHealth asks as a load balancer does, from outside.
func askHealth(t *testing.T, l *lab.Lab, to netip.AddrPort) (string, error) {
	t.Helper()
	out, err := l.Command(t.Context(), "client", "curl", "-s", "-m", "1", "http://"+to.String()).Output()
	return string(out), err
}

// TestClientThatWasEarly: a client with a port of its own dials a Service before
// it is there, and again when it is (kubernetes #48719, #101607). What conntrack
// remembers of the first try must not decide on the second.
func TestClientThatWasEarly(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("remote"))
		startAgents(t, l)
		web := find("web")
		tries := map[string][]string{"client": {"node-a", "external"}, "pod-a1": {"cluster", "node-a"}}
		dial := func(from, at string, network echo.Network, v6 bool, port uint16) (echo.Answer, error) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return fromPort(ctx, l, from, network, web.addr(at, 80, v6), port)
		}
		for round, when := range []string{"early", "in time"} {
			if round == 1 {
				apply(t, l, web)
				eventually(t, patience, func() error { return answers(t, l, "web", everyPod) })
			}
			port := uint16(21000)
			eachWay(func(network echo.Network, v6 bool) {
				for _, from := range []string{"client", "pod-a1"} {
					for _, at := range tries[from] {
						port++
						answer, err := dial(from, at, network, v6, port)
						if (err == nil) != (round == 1) {
							t.Errorf("%s: %s at web %s over %s: %v, %v", when, from, at, network, answer, err)
						}
					}
				}
			})
		}
	})
}

// TestHealthCheckAtANodePort: a health-check node port is another Service's node
// port as well (kubernetes #63617). The older has it, and the other is told.
func TestHealthCheckAtANodePort(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		web, checked := find("web"), find("local-a")
		checked.edit = withHealthCheck(int32(30000 + web.n))
		apply(t, l, web, checked) // of one age: by name, local-a comes first
		startAgents(t, l)
		to := netip.AddrPortFrom(lab.MustPlace("node-a").IPv4, uint16(30000+web.n))
		if out, err := askHealth(t, l, to); err != nil || !strings.Contains(out, `"localEndpoints": 2`) {
			t.Errorf("the health check answers %q: %v", out, err)
		}
		if log := l.AgentLog("node-a"); !strings.Contains(log, "belongs to Service default/local-a") {
			t.Errorf("the Service that lost its node port is not named:\n%s", log)
		}
		runScenarios(t, l, []scenario{
			{name: "the loser elsewhere", from: "client", to: "web external", want: everyPod, source: masked},
			{name: "the loser over UDP", from: "client", to: "web node-a", want: everyPod, source: masked, only: "udp"},
		})
	})
}

// TestConntrackFlags: what kube-proxy's flags say of conntrack holds in every mode.
func TestConntrackFlags(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"))
		startAgents(t, l, "--conntrack-tcp-timeout-established", "2h", "--conntrack-tcp-timeout-close-wait", "50m", "--conntrack-tcp-be-liberal",
			"--conntrack-udp-timeout", "33s", "--conntrack-udp-timeout-stream", "99s", "--healthz-bind-address", "::", "--metrics-bind-address", "127.0.0.1")
		for name, want := range map[string]string{"tcp_timeout_established": "7200", "tcp_timeout_close_wait": "3000", "tcp_be_liberal": "1",
			"udp_timeout": "33", "udp_timeout_stream": "99"} {
			err := l.Do("node-a", func() error {
				got, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_" + name)
				if strings.TrimSpace(string(got)) != want {
					err = fmt.Errorf("%s is %q, want %s: %w", name, got, want, errOrNone(err))
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
		// The addresses of the agent's own have kube-proxy's ports.
		for _, port := range []uint16{10249, 10256} {
			_, err := l.Dial(t.Context(), "node-a", echo.TCP, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port))
			if errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("nobody listens at 127.0.0.1:%d", port)
			}
		}
	})
}
