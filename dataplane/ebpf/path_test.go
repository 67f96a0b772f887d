package ebpf

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

var (
	networks  = [2][2]string{{"tcp4", "tcp6"}, {"udp4", "udp6"}}
	protocols = [2]service.Protocol{service.TCP, service.UDP}
)

func join(ip, port string) string { return net.JoinHostPort(ip, port) }

// serveAll puts servers on every Pod, port 8080, for both protocols.
func (n *testNet) serveAll(t testing.TB) {
	for f := range 2 {
		for p := range 2 {
			serve(t, n.podA, networks[p][f], join(podA[f], "8080"), "a")
			serve(t, n.podB, networks[p][f], join(podB[f], "8080"), "b")
			serve(t, n.remote, networks[p][f], join(podRemote[f], "8080"), "remote")
			serve(t, n.node, networks[p][f], join(nodeIP[f], "9090"), "host")
		}
	}
}

// to names one backend of a Service, in both families.
func to(ips [2]string, port string) []string {
	return []string{join(ips[0], port), join(ips[1], port)}
}

func wantAnswer(t testing.TB, got answer, err error, name, source string) {
	t.Helper()
	if err != nil {
		t.Error(err)
		return
	}
	if got.name != name || source != "" && got.source != netip.MustParseAddr(source).String() {
		t.Errorf("answered by %s, which saw %s; want %s and %s", got.name, got.source, name, source)
	}
}

// eachFlow runs a test for both families and both protocols.
func eachFlow(t *testing.T, run func(t *testing.T, f int, network string, proto service.Protocol)) {
	for f := range 2 {
		for p := range 2 {
			t.Run(networks[p][f], func(t *testing.T) { run(t, f, networks[p][f], protocols[p]) })
		}
	}
}

// both are Services of the same shape for TCP and UDP.
func both(s svc) []svc {
	u := s
	s.proto, u.proto = service.TCP, service.UDP
	return []svc{s, u}
}

func TestPacketPath(t *testing.T) {
	for _, mode := range []struct {
		name string
		o    Options
	}{{"tcx", Options{}}, {"clsact", Options{NoTCX: true}}, {"peer", Options{RedirectPeer: true}}} {
		t.Run(mode.name, func(t *testing.T) {
			n := newTestNet(t)
			n.serveAll(t)
			mode.o.PacketsOnly = true
			d := n.start(t, mode.o)
			t.Run("local backend", func(t *testing.T) {
				syncAll(t, d, n.table(both(svc{name: "s", backends: to(podA, "8080"), local: to(podA, "8080")})...))
				eachFlow(t, func(t *testing.T, f int, network string, _ service.Protocol) {
					a, err := ask(n.client, network, join(nodeIP[f], "30080"))
					wantAnswer(t, a, err, "a", nodeIP[f])
					a, err = ask(n.client, network, join(lbIP[f], "80"))
					wantAnswer(t, a, err, "a", nodeIP[f])
					a, err = ask(n.client, network, join(vip[f], "80"))
					wantAnswer(t, a, err, "a", nodeIP[f])
					a, err = ask(n.podB, network, join(vip[f], "80"))
					wantAnswer(t, a, err, "a", podB[f])
					a, err = ask(n.podB, network, join(nodeIP[f], "30080"))
					wantAnswer(t, a, err, "a", nodeIP[f])
					a, err = ask(n.podA, network, join(vip[f], "80")) // hairpin
					wantAnswer(t, a, err, "a", nodeIP[f])
				})
			})
			t.Run("remote backend", func(t *testing.T) {
				syncAll(t, d, n.table(both(svc{name: "s", backends: to(podRemote, "8080")})...))
				eachFlow(t, func(t *testing.T, f int, network string, _ service.Protocol) {
					a, err := ask(n.client, network, join(nodeIP[f], "30080"))
					wantAnswer(t, a, err, "remote", nodeIP[f])
					a, err = ask(n.podA, network, join(vip[f], "80"))
					wantAnswer(t, a, err, "remote", podA[f])
				})
			})
			t.Run("policy Local", func(t *testing.T) {
				syncAll(t, d, n.table(both(svc{name: "s", policy: service.PolicyLocal,
					backends: append(to(podB, "8080"), to(podRemote, "8080")...), local: to(podB, "8080")})...))
				eachFlow(t, func(t *testing.T, f int, network string, _ service.Protocol) {
					for range 4 {
						a, err := ask(n.client, network, join(nodeIP[f], "30080"))
						wantAnswer(t, a, err, "b", clientIP[f])
					}
				})
			})
			t.Run("backend on the host", func(t *testing.T) {
				syncAll(t, d, n.table(both(svc{name: "s", backends: to(nodeIP, "9090")})...))
				eachFlow(t, func(t *testing.T, f int, network string, _ service.Protocol) {
					a, err := ask(n.client, network, join(nodeIP[f], "30080"))
					wantAnswer(t, a, err, "host", clientIP[f])
					a, err = ask(n.client, network, join(lbIP[f], "80"))
					wantAnswer(t, a, err, "host", clientIP[f])
					a, err = ask(n.podA, network, join(vip[f], "80"))
					wantAnswer(t, a, err, "host", podA[f])
				})
			})
			t.Run("client on the host", func(t *testing.T) {
				for _, where := range []struct {
					ips  [2]string
					name string
				}{{podA, "a"}, {podRemote, "remote"}} {
					syncAll(t, d, n.table(both(svc{name: "s", backends: to(where.ips, "8080")})...))
					eachFlow(t, func(t *testing.T, f int, network string, _ service.Protocol) {
						a, err := ask(n.node, network, join(vip[f], "80"))
						wantAnswer(t, a, err, where.name, nodeIP[f])
					})
				}
			})
			t.Run("no endpoints", func(t *testing.T) {
				syncAll(t, d, n.table(both(svc{name: "s"})...))
				eachFlow(t, func(t *testing.T, f int, network string, _ service.Protocol) {
					for _, dst := range []string{join(nodeIP[f], "30080"), join(vip[f], "80")} {
						wantRefused(t, func() error { _, err := ask(n.client, network, dst); return err })
						wantRefused(t, func() error { _, err := ask(n.podA, network, dst); return err })
					}
					wantRefused(t, func() error { _, err := ask(n.node, network, join(vip[f], "80")); return err })
				})
			})
		})
	}
}

func wantRefused(t testing.TB, call func() error) {
	t.Helper()
	start := time.Now()
	err := call()
	if !errors.Is(err, syscall.ECONNREFUSED) && (err == nil || !strings.Contains(err.Error(), "connection refused")) {
		t.Errorf("got %v, want connection refused", err)
	}
	took := time.Since(start)
	if timed := (timedError{}); errors.As(err, &timed) {
		took = timed.took
	}
	if took > slowness*500*time.Millisecond {
		t.Errorf("refused only after %v", took)
	}
}
