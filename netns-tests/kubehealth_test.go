package netnstests

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeproxy/nodeproxy/lab"
)

// fetch does a GET from a place of the lab.
func fetch(l *lab.Lab, place, url string) (code int, body string, err error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			err = l.Do(place, func() error {
				conn, err = new(net.Dialer).DialContext(ctx, network, addr)
				return err
			})
			return conn, err
		}}}
	resp, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// health asks a running agent what kube-proxy would be asked (semantics,
// sections 11, 15 and 16).
func (c *cluster) health(t *testing.T, col column) {
	answers := func(path string, code int) error {
		got, body, err := fetch(c.Lab, "client", "http://192.168.77.11:10256"+path)
		if err != nil || got != code {
			return fmt.Errorf("%s: %d %s, want %d: %w", path, got, body, code, errOrNone(err))
		}
		return nil
	}
	must(t, answers("/healthz", 200))
	must(t, answers("/livez", 200))
	c.taint(t, []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler", Effect: corev1.TaintEffectNoSchedule}})
	eventually(t, patience, func() error { return answers("/healthz", 503) })
	must(t, answers("/livez", 200))
	c.taint(t, nil)
	eventually(t, patience, func() error { return answers("/healthz", 200) })

	if _, _, err := fetch(c.Lab, "client", "http://192.168.77.11:10249/metrics"); err == nil {
		t.Error("metrics are to be had from outside")
	}
	_, metrics, err := fetch(c.Lab, "node-a", "http://127.0.0.1:10249/metrics")
	must(t, err)
	for _, want := range []string{
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"}`, `kubeproxy_sync_full_proxy_rules_duration_seconds_bucket`,
		`kubeproxy_network_programming_duration_seconds`, `kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv6"}`,
		`kubeproxy_proxy_healthz_total{code="503"}`, `kubeproxy_proxy_livez_total{code="200"}`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"}`,
		`kubeproxy_sync_proxy_rules_endpoint_changes_total`, `kubeproxy_sync_proxy_rules_service_changes_pending 0`,
		"nodeproxy_services ", "nodeproxy_build_info{", `,mode="` + col.Mode + `",revision="`, "nodeproxy_conntrack_entries_limit", "process_resident_memory_bytes",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	if col.Mode == lab.ModeEBPF {
		for _, want := range []string{`nodeproxy_packets_total{reason="flow_new",verdict="noted"}`, `nodeproxy_service_flows_total{`, `nodeproxy_map_entries_limit{map="flows"}`} {
			if !strings.Contains(metrics, want) {
				t.Errorf("no %s in the metrics", want)
			}
		}
	}
	_, mode, err := fetch(c.Lab, "node-a", "http://127.0.0.1:10249/proxyMode")
	if err != nil || mode != col.Mode {
		t.Errorf("/proxyMode says %q: %v", mode, err)
	}
	_, config, err := fetch(c.Lab, "node-a", "http://127.0.0.1:10249/configz")
	must(t, err)
	var options struct{ Nodeproxy map[string]string }
	if err := json.Unmarshal([]byte(config), &options); err != nil || options.Nodeproxy["mode"] != col.Mode {
		t.Errorf("/configz says %s: %v", config, err)
	}
	if code, _, err := fetch(c.Lab, "node-a", "http://127.0.0.1:10249/debug/pprof/cmdline"); err != nil || code != 404 {
		t.Errorf("profiling without --profiling: %d, %v", code, err)
	}
	eventually(t, patience, func() error {
		list, err := c.api.Client.EventsV1().Events("").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.Reason == "Starting" && e.Action == "StartKubeProxy" && e.Regarding.Kind == "Node" && e.Regarding.Name == "node-a" &&
				e.CreationTimestamp.After(c.started.Add(-time.Second)) {
				return nil
			}
		}
		return fmt.Errorf("no Event among %d says that the agent was started", len(list.Items))
	})
}

func (c *cluster) taint(t *testing.T, taints []corev1.Taint) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"taints": taints}})
	must(t, err)
	_, err = c.api.Client.CoreV1().Nodes().Patch(t.Context(), "node-a", types.MergePatchType, patch, metav1.PatchOptions{})
	must(t, err)
}
