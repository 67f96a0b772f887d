package netnstests

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// sumOf adds up the series of node-a's metrics that a pattern matches.
func sumOf(t *testing.T, l *lab.Lab, pattern string) (sum float64) {
	t.Helper()
	text := inPlace(t, l, "node-a", "curl", "-s", "http://127.0.0.1:10249/metrics")
	for _, found := range regexp.MustCompile(`(?m)^`+pattern+` (\S+)$`).FindAllStringSubmatch(text, -1) {
		n, err := strconv.ParseFloat(found[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// TestTrafficIsCounted opens a known number of connections through a node and
// wants it, and what they carried, in the metrics of the Service and of its
// backends, in both modes (k8s #9125).
func TestTrafficIsCounted(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false, "--metrics-per-backend")
		err := l.Do("node-a", func() error { return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_acct", []byte("1"), 0) })
		if err != nil {
			t.Fatal(err)
		}
		apply(t, l, find("web"), find("empty"))
		startAgents(t, l)
		const flows = 12
		held := holdOver(t, l, echo.TCP, flows, "client", "web node-a")
		refusals := flow{lab: l, network: echo.TCP, from: lab.MustPlace("client"), to: find("empty").addr("node-a", 80, false), scenario: scenario{want: refused}}
		if err := refusals.check(t.Context()); err != nil {
			t.Fatal(err)
		}
		series := func(what, name, rest string) string {
			return `nodeproxy_` + what + `\{[^}]*` + rest + `[^}]*service="` + name + `"[^}]*\}`
		}
		eventually(t, patience, func() error {
			if got := sumOf(t, l, series("service_flows_total", "web", `outcome="translated"`)); got != flows {
				return fmt.Errorf("%v flows of the Service, want %d", got, flows)
			}
			if got := sumOf(t, l, series("backend_flows_total", "web", `outcome="translated"`)); got != flows {
				return fmt.Errorf("%v flows of its backends, want %d", got, flows)
			}
			if got := sumOf(t, l, series("service_flows_total", "empty", `outcome="refused"`)); got < 1 {
				return fmt.Errorf("%v refused flows, want some", got)
			}
			for _, direction := range []string{"to_backend", "to_client"} {
				packets := sumOf(t, l, series("service_packets_total", "web", `direction="`+direction+`"`))
				bytes := sumOf(t, l, series("service_bytes_total", "web", `direction="`+direction+`"`))
				if packets < 3*flows/2 || packets > 40*flows || bytes < 52*packets || bytes > 1500*packets {
					return fmt.Errorf("%v packets and %v bytes %s of %d connections", packets, bytes, direction, flows)
				}
				if got := sumOf(t, l, series("backend_bytes_total", "web", `direction="`+direction+`"`)); got != bytes {
					return fmt.Errorf("%v bytes %s of backends, %v of the Service", got, direction, bytes)
				}
			}
			return nil
		})
		before := sumOf(t, l, series("service_bytes_total", "web", ""))
		for range 5 {
			pingAll(t, held)
		}
		eventually(t, patience, func() error {
			if after := sumOf(t, l, series("service_bytes_total", "web", "")); after < before+5*flows*2*60 {
				return fmt.Errorf("%v bytes, and %v after 5 more questions and answers of each", before, after)
			}
			return nil
		})
	})
}
