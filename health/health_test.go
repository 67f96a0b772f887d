package health

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

// freePort returns a TCP port that nobody listens on.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func table(port uint16, v4, v6 int) *service.Table {
	name := service.Name{Namespace: "shop", Name: "web"}
	return &service.Table{
		Node: service.NodeFacts{NodePorts: [2]service.NodePortAddresses{{All: true}, {All: true}}},
		Services: map[service.Name]*service.Resolved{name: {
			Name:        name,
			Ports:       []service.ServicePort{{Family: service.IPv4}, {Family: service.IPv6}},
			HealthCheck: &service.HealthCheck{Port: port, LocalEndpoints: [2]int{v4, v6}},
		}},
	}
}

func get(t *testing.T, host string, port uint16) (*http.Response, string) {
	t.Helper()
	resp, err := http.Get("http://" + net.JoinHostPort(host, fmt.Sprint(port)) + "/any/path")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// docs/kube-proxy.md, "Health servers", to the letter.
func TestHealthCheckNodePort(t *testing.T) {
	var healthy atomic.Bool
	healthy.Store(true)
	checks := &ServiceChecks{Healthy: healthy.Load, Log: slog.New(slog.DiscardHandler)}
	defer checks.Close()
	port := freePort(t)
	checks.Update(table(port, 2, 0))
	want := "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %v\n}"
	check := func(host string, code, endpoints int, healthy bool) {
		t.Helper()
		resp, body := get(t, host, port)
		if resp.StatusCode != code || body != fmt.Sprintf(want, endpoints, healthy) {
			t.Errorf("%s: %d %s", host, resp.StatusCode, body)
		}
		for k, v := range map[string]string{"Content-Type": "application/json", "X-Content-Type-Options": "nosniff",
			"X-Load-Balancing-Endpoint-Weight": fmt.Sprint(endpoints)} {
			if got := resp.Header.Get(k); got != v {
				t.Errorf("%s: header %s: %q, want %q", host, k, got, v)
			}
		}
	}
	check("127.0.0.1", 200, 2, true)
	check("::1", 503, 0, true) // each family counts for itself
	healthy.Store(false)
	check("127.0.0.1", 503, 2, false)
	healthy.Store(true)
	checks.Update(table(port, 0, 1))
	check("127.0.0.1", 503, 0, true)
	check("::1", 200, 1, true)
	checks.Update(&service.Table{})
	if _, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second); err == nil {
		t.Error("the port of a Service that is gone still answers")
	}
}

func TestHealthCheckPortThatIsTakenIsTriedAgain(t *testing.T) {
	l, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	failed := 0
	checks := &ServiceChecks{
		Healthy: func() bool { return true }, Log: slog.New(slog.DiscardHandler),
		Failed: func(service.Name, error) { failed++ },
	}
	defer checks.Close()
	checks.Update(table(port, 1, 1))
	if failed != 1 {
		t.Errorf("%d failures were reported, want that of IPv4", failed)
	}
	l.Close()
	checks.Update(table(port, 1, 1))
	if resp, _ := get(t, "127.0.0.1", port); resp.StatusCode != 200 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

func TestHealthCheckListensOnNodePortAddressesOnly(t *testing.T) {
	checks := &ServiceChecks{Healthy: func() bool { return true }, Log: slog.New(slog.DiscardHandler)}
	defer checks.Close()
	port := freePort(t)
	tb := table(port, 1, 0)
	tb.Node.NodePorts = [2]service.NodePortAddresses{{Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.2")}}, {}}
	checks.Update(tb)
	if resp, _ := get(t, "127.0.0.2", port); resp.StatusCode != 200 {
		t.Errorf("status %d", resp.StatusCode)
	}
	if conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.3:%d", port), time.Second); err == nil {
		conn.Close()
		t.Error("another address answers")
	}
}

func TestSyncHealth(t *testing.T) {
	h := NewSyncHealth(time.Minute)
	now := time.Unix(1000, 0)
	is := func(want bool, after time.Duration) {
		t.Helper()
		if got, _ := h.Healthy(now.Add(after)); got != want {
			t.Errorf("after %v: healthy %v, want %v", after, got, want)
		}
	}
	is(true, time.Hour) // nothing was asked for
	h.Queued(now)
	is(true, 59*time.Second)
	is(false, time.Minute)
	h.Queued(now.Add(50 * time.Second)) // does not start the clock again
	is(false, time.Minute)
	h.Synced(now.Add(70 * time.Second))
	is(true, time.Hour)
}
