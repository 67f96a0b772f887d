package netnstests

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/lab"
)

// Source ranges are shown as what they are, in each mode, and what becomes of packets is
// that of a source inside of them: no row says that a Service drops all whose ranges let
// somebody in.
func TestGetServicesShowsSourceRanges(t *testing.T) {
	nested := []string{"10.0.0.0/8", "10.1.0.0/16", "192.168.78.0/24", "203.0.113.7/32", "203.0.113.8/29", "fd00:78::/64", "2001:db8::/32", "2001:db8:1::/48"}
	all := []svc{find("web"), find("allow-client"), {12, "deny", pods("pod-a1"), ranges(nested...)}, find("deny-empty"), find("deny-v4")}
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, all...)
		startAgents(t, l)
		var rows []view.Frontend
		if complaint, err := asked(t, l, &rows, "get", "services"); err != nil {
			t.Fatalf("%v: %s", err, complaint)
		}
		seen := map[string]int{}
		for _, r := range rows {
			name, _, _ := strings.Cut(r.Service, ":")
			want := []string(nil)
			if r.Kind == "LoadBalancer" {
				want = map[string][]string{
					"default/allow-client IPv4": {"192.168.78.0/24"}, "default/allow-client IPv6": {"fd00:78::/64"},
					"default/deny IPv4":       {"10.0.0.0/8", "10.1.0.0/16", "192.168.78.0/24", "203.0.113.7/32", "203.0.113.8/29"},
					"default/deny IPv6":       {"2001:db8::/32", "2001:db8:1::/48", "fd00:78::/64"},
					"default/deny-empty IPv4": {"203.0.113.0/24"}, "default/deny-empty IPv6": {"2001:db8::/32"}, "default/deny-v4 IPv4": {"203.0.113.0/24"},
				}[name+" "+r.Family]
				seen[name]++
			}
			if !slices.Equal(r.SourceRanges, want) {
				t.Errorf("%s %s %s: source ranges %q, want %q", r.Service, r.Kind, r.Family, r.SourceRanges, want)
			}
			outside := map[bool]string{true: "reject", false: "translate to "}[name == "default/deny-empty"]
			if !strings.HasPrefix(r.Outside, outside) {
				t.Errorf("%s %s %s %s: from outside %q, want %q", r.Service, r.Protocol, r.Kind, r.Family, r.Outside, outside)
			}
		}
		if len(seen) != len(all) {
			t.Errorf("load-balancer addresses of %v", seen)
		}
		text := inPlace(t, l, "node-a", l.Options().Binary, "get", "services", "--instance", l.Netns("node-a"))
		if !strings.Contains(text, "ONLY SOURCES IN") || !strings.Contains(text, "203.0.113.7/32,203.0.113.8/29") || !strings.Contains(text, "any") {
			t.Errorf("get services prints\n%s", text)
		}
	})
}

// A Pod's socket is translated before there is a packet: what explain says of it is what
// the endpoint sees, where the Pod is its own endpoint too; and why there is no endpoint
// is said.
func TestExplainTellsTheSocketPath(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		own := svc{1, "web", pods("pod-a1"), nil}
		apply(t, l, own, find("empty"), find("affinity"))
		startAgents(t, l)
		explained := func(to string) string {
			out, err := l.Command(t.Context(), "node-a", l.Options().Binary, "explain", "--instance", l.Netns("node-a"), "--from", "pod", "default/pod-a1", to).CombinedOutput()
			if err != nil {
				t.Errorf("explain %s: %v", to, err)
			}
			return string(out)
		}
		text := explained("svc/web:80")
		f := flow{lab: l, network: "tcp", from: lab.MustPlace("pod-a1"), at: "cluster", to: own.addr("cluster", 80, false)}
		answer, err := f.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		said := strings.Contains(text, "the programs at sockets put one of these endpoints in the place of")
		if seesItself := answer.Source.Addr() == f.from.IPv4; said != c.Sockets || seesItself != c.Sockets {
			t.Errorf("the socket path is told: %v, and the Pod sees %s:\n%s", said, answer.Source, text)
		}
		if text := explained("svc/default/empty:echo"); !strings.Contains(text, "no usable endpoint (") || strings.Contains(text, "refuse it (ECONNREFUSED)") != c.Sockets {
			t.Errorf("a Service without endpoints:\n%s", text)
		}
		if text := explained("svc/affinity:80/UDP"); strings.Contains(text, "the Service has session affinity, and a socket has no source yet") != c.Sockets {
			t.Errorf("a Service with affinity:\n%s", text)
		}
		if out := fmt.Sprint(explained("svc/web:80")); strings.Contains(out, "one of 1 endpoints") {
			t.Errorf("one endpoint:\n%s", out)
		}
	})
}
