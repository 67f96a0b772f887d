package metrics

import (
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

// text returns what Prometheus is told.
func text(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	body, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func has(t *testing.T, m *Metrics, lines ...string) {
	t.Helper()
	all := "\n" + text(t, m)
	for _, line := range lines {
		if !strings.Contains(all, "\n"+line+"\n") {
			name, _, _ := strings.Cut(line, " ")
			name, _, _ = strings.Cut(name, "{")
			var near []string
			for l := range strings.Lines(all) {
				if strings.HasPrefix(l, name) {
					near = append(near, l)
				}
			}
			t.Errorf("no %q; there is\n%s", line, strings.Join(near, ""))
		}
	}
}

func name(n int) service.Name {
	return service.Name{Namespace: "default", Name: fmt.Sprintf("s%d", n)}
}

// resolved is a Service with that many backends; without any here, its node
// port drops.
func resolved(n, backends int, action service.Action) *service.Resolved {
	sp := service.ServicePort{Frontends: []service.Frontend{{Kind: service.ClusterIP}, {Kind: service.NodePort}}}
	sp.Frontends[1].Routes[service.FromOutside].Action = action
	for i := range backends {
		sp.Backends[service.ListCluster] = append(sp.Backends[service.ListCluster],
			service.Backend{AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80)})
	}
	return &service.Resolved{Name: name(n), Ports: []service.ServicePort{sp}}
}

func TestMetricsFollowSyncs(t *testing.T) {
	m := New(Build{"v1", "abc", "go1", "ebpf"})
	table := &service.Table{Services: map[service.Name]*service.Resolved{
		name(1): resolved(1, 3, service.Translate), name(2): resolved(2, 2, service.Drop)}}
	table.Services[name(1)].Problems = []service.Problem{{Reason: "AddressConflict"}}
	m.Applied(service.Changes{
		Services: []*service.Service{{}, {}}, DeletedServices: []service.Name{name(9)},
		EndpointSlices: []*service.EndpointSlice{{LastChange: time.Now()}, {LastChange: time.Now().Add(-time.Hour)}, {}},
	})
	m.Queued()
	has(t, m, "kubeproxy_sync_proxy_rules_service_changes_pending 3", "kubeproxy_sync_proxy_rules_endpoint_changes_pending 3",
		`nodeproxy_build_info{goversion="go1",mode="ebpf",revision="abc",version="v1"} 1`)
	m.Synced(Sync{Err: errors.New("no"), Full: true, Table: table})
	has(t, m, "kubeproxy_sync_proxy_rules_service_changes_pending 3", `nodeproxy_sync_failures_total{kind="full"} 1`)
	m.Synced(Sync{Full: true, Table: table, Duration: 3 * time.Millisecond})
	has(t, m, "kubeproxy_sync_proxy_rules_service_changes_pending 0", "kubeproxy_sync_proxy_rules_service_changes_total 3",
		"kubeproxy_sync_proxy_rules_endpoint_changes_pending 0", "kubeproxy_sync_proxy_rules_endpoint_changes_total 3",
		`kubeproxy_sync_full_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.002"} 0`,
		`kubeproxy_sync_full_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.004"} 1`,
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"} 1`,
		`kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 1`, // the others are older than the process
		"nodeproxy_services 2", "nodeproxy_backends 5", `nodeproxy_service_problems{reason="AddressConflict"} 1`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 1`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 0`)

	// A change counts by difference.
	table.Services[name(1)] = resolved(1, 1, service.Drop)
	delete(table.Services, name(2))
	table.Services[name(3)] = resolved(3, 4, service.Translate)
	m.Synced(Sync{Changed: []service.Name{name(1), name(2), name(3)}, Table: table})
	has(t, m, "nodeproxy_services 2", "nodeproxy_backends 5",
		`kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 1`)
	has(t, m, `nodeproxy_service_problems{reason="AddressConflict"} 0`, `nodeproxy_service_problems{reason="InvalidWeights"} 0`)
}

func TestConntrackIsReported(t *testing.T) {
	dir := t.TempDir()
	m := New(Build{"v1", "abc", "go1", "iptables"})
	if err := m.Register(Conntrack{dir}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text(t, m), "nodeproxy_conntrack") {
		t.Error("conntrack is reported where there is none")
	}
	for file, value := range map[string]string{"nf_conntrack_count": "7\n", "nf_conntrack_max": "262144\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	has(t, m, "nodeproxy_conntrack_entries 7", "nodeproxy_conntrack_entries_limit 262144")
}

// Whether the agent is well is told as it is when it is asked.
func TestHealthIsFollowed(t *testing.T) {
	m := New(Build{})
	well := true
	if err := m.Follow(func() bool { return well }, func() bool { return !well }, func() bool { return true }); err != nil {
		t.Fatal(err)
	}
	has(t, m, "nodeproxy_healthy 1", "nodeproxy_eligible 0", "nodeproxy_source_reached 1")
	well = false
	has(t, m, "nodeproxy_healthy 0", "nodeproxy_eligible 1", "nodeproxy_source_reached 1")
}

// Counters are there before anything is counted, so that the first time is an increase.
func TestCountersBeginAtZero(t *testing.T) {
	has(t, New(Build{}), `kubeproxy_proxy_healthz_total{code="200"} 0`, `kubeproxy_proxy_healthz_total{code="503"} 0`,
		`kubeproxy_proxy_livez_total{code="503"} 0`, `nodeproxy_sync_failures_total{kind="full"} 0`, `nodeproxy_sync_failures_total{kind="partial"} 0`,
		"kubeproxy_sync_proxy_rules_endpoint_changes_total 0", "kubeproxy_sync_proxy_rules_service_changes_total 0",
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"} 0`)
}
