package netnstests

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/lab"
)

// TestP50HealthProvesTheDataPath breaks what the kernel has to do for Services,
// while the next comparison is far away: health must fail until it is mended,
// and not before it has lasted.
func TestP50HealthProvesTheDataPath(t *testing.T) {
	breaks := map[string]func(*testing.T, *lab.Lab){
		"iptables-nft":    func(t *testing.T, l *lab.Lab) { inPlace(t, l, "node-a", "iptables-nft", "-t", "nat", "-F") },
		"iptables-legacy": func(t *testing.T, l *lab.Lab) { inPlace(t, l, "node-a", "ip6tables-legacy", "-D", "OUTPUT", "1") },
		"ebpf":            func(t *testing.T, l *lab.Lab) { emptyMap(t, l, "frontends") },
		"ebpf-packets-only": func(t *testing.T, l *lab.Lab) {
			detach(t, l, "tcx_*_ingress")
		},
	}
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false, "--sync-period", "1h")
		apply(t, l, find("web"))
		startAgents(t, l)
		health := func(want string) func() error {
			return func() error {
				for _, path := range []string{"healthz", "livez"} {
					out := inPlace(t, l, "node-a", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:10256/"+path)
					if out != want {
						return fmt.Errorf("/%s answers %s, want %s", path, out, want)
					}
				}
				return nil
			}
		}
		time.Sleep(6 * time.Second) // a probe has been
		if err := health("200")(); err != nil || strings.Contains(l.AgentLog("node-a"), "broken") {
			t.Fatalf("all is well, but %v:\n%s", err, l.AgentLog("node-a"))
		}
		breaks[c.Name](t, l)
		broken := time.Now()
		eventually(t, patience+30*time.Second, health("503"))
		if after := time.Since(broken); after < 14*time.Second {
			t.Errorf("health fails after %s: too soon for what may be mended any moment", after)
		}
		if out, code := statusOf(t, l); code != 1 || !strings.Contains(out, "UNHEALTHY: ProbesFail") {
			t.Errorf("status, with exit code %d:\n%s", code, out)
		}
		if complaint, err := asked(t, l, new([]any), "verify", "--repair"); err != nil {
			t.Fatalf("repair: %v %s", err, complaint)
		}
		eventually(t, patience, health("200"))
		runScenarios(t, l, []scenario{{name: "after repair", from: "client", to: "web node-a", want: everyPod, source: masked}})
	})
}
