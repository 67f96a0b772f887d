package netnstests

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// TestChangesUnderTraffic changes endpoints, and Services beside it, while
// connections are opened: with an endpoint left, none may fail.
func TestChangesUnderTraffic(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false, "--min-sync-period", "10ms")
		web := find("web")
		apply(t, l, web)
		startAgents(t, l)
		held := hold(t, l, 20, "client", "web external")
		var tcp []heldFlow // UDP has to follow its endpoints: see TestP1P9UDPFollows
		for _, f := range held {
			if strings.HasSuffix(f.text, string(echo.TCP)) {
				tcp = append(tcp, f)
			}
		}
		streams := []*stream{
			startStream(l, "client", "web node-a", echo.TCP, false), startStream(l, "client", "web balancer", echo.TCP, true),
			startStream(l, "pod-a1", "web cluster", echo.TCP, false), startStream(l, "node-b", "web cluster", echo.TCP, true),
		}
		endpoints := allPods()
		for i := range 30 {
			web.endpoints = endpoints[i%4 : i%4+1]
			if i%3 == 0 {
				web.endpoints = endpoints[i%2:]
			}
			apply(t, l, web)
			beside := services[2+i%14]
			if i/14%2 == 0 {
				apply(t, l, beside)
			} else if err := l.Delete(beside.name + ".yaml"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond)
		}
		pingAll(t, tcp)
		for _, s := range streams {
			s.end(t)
		}
	})
}

// TestKilledDuringChanges kills agents wherever they are in their work. What
// is in the kernel at the end must be what an agent writes that starts afresh.
func TestKilledDuringChanges(t *testing.T) {
	eachIPTables(t, func(t *testing.T, c column) {
		l := c.up(t, false, "--min-sync-period", "1ms")
		random := rand.New(rand.NewPCG(1, uint64(len(c.Name))))
		apply(t, l, services...)
		startAgents(t, l)
		for range 10 {
			for range 5 {
				s := services[random.IntN(len(services))]
				s.endpoints = allPods()[:random.IntN(5)]
				if s.name == "hints" { // asks for endpoints that have a zone
					continue
				}
				apply(t, l, s)
				time.Sleep(time.Duration(random.IntN(30)) * time.Millisecond)
			}
			if err := l.KillAgent("node-a"); err != nil {
				t.Fatal(err)
			}
			if err := l.StartAgent(t.Context(), "node-a"); err != nil {
				t.Fatal(err)
			}
		}
		apply(t, l, find("web"))
		eventually(t, patience, func() error { return answers(t, l, "web", everyPod) })
		got := savedRules(t, l, "node-a")
		if err := l.StopAgent("node-a"); err != nil {
			t.Fatal(err)
		}
		inPlace(t, l, "node-a", l.Options().Binary, "cleanup")
		if err := l.StartAgent(t.Context(), "node-a"); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(savedRules(t, l, "node-a"), got); diff != "" {
			t.Errorf("rules (-of a fresh start +after the kills):\n%s", diff)
		}
	})
}

// TestAddressesChange checks that node ports follow the addresses that a node
// has, where they are told by ranges.
func TestAddressesChange(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false, "--nodeport-addresses", "192.168.77.64/26,fd00:77::100/120")
		apply(t, l, find("web"))
		startAgents(t, l)
		second := func(want string) error {
			var errs []error
			for _, v6 := range []bool{false, true} {
				f := flow{scenario: scenario{want: want, source: masked}, lab: l, network: echo.TCP, v6: v6, from: lab.MustPlace("client")}
				f.at, f.to = parseTarget("web second", v6)
				if err := f.check(t.Context()); err != nil {
					errs = append(errs, fmt.Errorf("client -> %s: %w", f.to, err))
				}
			}
			return errors.Join(errs...)
		}
		addSecondAddrs(t, l)
		eventually(t, patience, func() error { return second(everyPod) })
		runScenarios(t, l, []scenario{{name: "not at the others", from: "client", to: "web node-a, web node-b", want: refused}})
		for i, prefix := range []string{"/24", "/64"} {
			inPlace(t, l, "node-a", "ip", "addr", "del", secondAddrs[i].String()+prefix, "dev", "eth0")
		}
		addSecondAddrs(t, l)
		eventually(t, patience, func() error { return second(everyPod) })
	})
}
