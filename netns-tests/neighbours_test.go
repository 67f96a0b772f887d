package netnstests

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// Nodes as people have them: each dress puts onto node-a, and onto others where
// it takes two, what another program is documented to put there. In each the
// machine's own traffic, the Pods' way out and what is forbidden are looked at
// without an agent, which is the control, and then with one, beside Services.

// outgoingConnections is how many connections a Pod opens to the outside, over
// each protocol and family. None may fail.
const outgoingConnections = 250

// neighbourRows hold in every dress. pod-a2 answers in none of them: in some
// dresses a policy guards it.
var neighbourRows = []scenario{
	{name: "across nodes", from: "pod-a2 pod-b2", to: "single cluster", want: "pod-a1"},
	{name: "the other way", from: "pod-a1 pod-a2", to: "remote cluster", want: "pod-b1"},
	{name: "nodes to a ClusterIP", from: everyNode, to: "remote cluster", want: "pod-b1", source: masked},
	{name: "client to node ports", from: "client", to: "single node-a, single node-b", want: "pod-a1", source: masked},
	{name: "client to external addresses", from: "client", to: "remote external, remote balancer", want: "pod-b1", source: masked},
	{name: "external Local keeps the client", from: "client", to: "local-both node-a, local-both external", want: "pod-a1"},
	{name: "pods to node ports", from: "pod-a2 pod-b2", to: "remote node-a, remote node-b", want: "pod-b1", source: masked},
	{name: "nodes to node ports", from: everyNode, to: "remote node-a, remote node-b", want: "pod-b1", source: masked},
	{name: "hairpin", from: "pod-a1", to: "single external", want: "pod-a1", source: masked},
	{name: "no endpoints", from: "pod-a1 node-a", to: "empty cluster, empty external", want: refused},
	{name: "no endpoints from client", from: "client", to: "empty node-a, empty external", want: refused},
}

// guarded leads to pod-a2 alone.
var guarded = svc{40, "guarded", pods("pod-a2"), nil}

// dress is what else a node has.
type dress struct {
	name   string
	bridge bool // Pods are behind a bridge
	wear   func(t *testing.T, w *worn)
}

// check is something that has to be so.
type check struct {
	about string
	holds func(ctx context.Context) error
}

// worn is a lab whose nodes are dressed.
type worn struct {
	*lab.Lab
	column column
	rows   []scenario
	// always hold with and without an agent; served, with one only.
	always, served []check
	services       []svc
	// also are addresses of a node, besides its own, that who answers may see.
	also map[string][]netip.Addr
}

func TestNeighbours(t *testing.T) {
	eachColumnAndWay(t, func(t *testing.T, c column) {
		for _, d := range dresses {
			t.Run(strings.ReplaceAll(d.name, " ", "-"), func(t *testing.T) {
				t.Parallel()
				d.try(t, c)
			})
		}
	})
}

func (d dress) try(t *testing.T, c column) {
	l := c.up(t, d.bridge)
	w := &worn{Lab: l, column: c, rows: neighbourRows, also: map[string][]netip.Addr{},
		services: []svc{find("single"), find("remote"), find("local-both"), find("empty"), guarded}}
	for _, place := range machines {
		serve(t, l, place, machinePort, place)
	}
	w.ownTraffic()
	d.wear(t, w)
	if faults := slices.Concat(w.hold(t, w.always), w.goOut(t, 20)); len(faults) > 0 {
		t.Fatalf("without an agent: %v", errors.Join(faults...))
	}
	apply(t, l, w.services...)
	startAgents(t, l)
	c.judge(t, "beside "+d.name, slices.Concat(w.judgeRows(t), w.hold(t, w.always), w.hold(t, w.served), w.goOut(t, outgoingConnections)))
}

// ownTraffic wants the machines to reach each other as ever.
func (w *worn) ownTraffic() {
	for _, pair := range [][2]string{{"node-a", "node-b"}, {"node-b", "node-a"}, {"node-a", "client"}, {"client", "node-a"}, {"pod-a1", "node-a"}, {"pod-b1", "node-a"}} {
		for _, v6 := range []bool{false, true} {
			for _, network := range []echo.Network{echo.TCP, echo.UDP} {
				w.always = append(w.always, w.open(pair[0], network, netip.AddrPortFrom(lab.MustPlace(pair[1]).Addr(v6), machinePort), pair[1]))
			}
		}
	}
}

// open wants one of names to answer.
func (w *worn) open(from string, network echo.Network, to netip.AddrPort, names ...string) check {
	return check{fmt.Sprintf("%s to %s over %s", from, to, network), func(ctx context.Context) error {
		answer, err := w.Dial(ctx, from, network, to)
		if err == nil && !slices.Contains(names, answer.Name) {
			err = fmt.Errorf("%q answered, want one of %q", answer.Name, names)
		}
		return err
	}}
}

// closed wants nobody to answer.
func (w *worn) closed(from string, network echo.Network, to netip.AddrPort) check {
	return check{fmt.Sprintf("%s to %s over %s is forbidden", from, to, network), func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, dropTimeout)
		defer cancel()
		if answer, err := w.Dial(ctx, from, network, to); err == nil {
			return fmt.Errorf("%s answered", answer.Name)
		}
		return nil
	}}
}

// hold returns what does not hold, up to enoughFaults.
func (w *worn) hold(t *testing.T, list []check) (faults []error) {
	t.Helper()
	for _, c := range list {
		if err := c.holds(t.Context()); err != nil {
			if faults = append(faults, fmt.Errorf("%s: %w", c.about, err)); len(faults) >= enoughFaults {
				return faults
			}
		}
	}
	return faults
}

// judgeRows judges every flow of the rows, families and protocols at the same
// time.
func (w *worn) judgeRows(t *testing.T) (faults []error) {
	t.Helper()
	var mu sync.Mutex // guards faults
	var group sync.WaitGroup
	eachWay(func(network echo.Network, v6 bool) {
		group.Go(func() {
			for _, row := range w.rows {
				for from := range strings.FieldsSeq(row.from) {
					for _, to := range strings.Split(row.to, ", ") {
						f := flow{scenario: row, lab: w.Lab, bridge: w.Options().Bridge, network: network, v6: v6,
							from: lab.MustPlace(from), sameName: new(string), also: w.also}
						f.at, f.to = parseTarget(to, v6)
						err := f.check(t.Context())
						mu.Lock()
						if err != nil {
							faults = append(faults, fmt.Errorf("%s: %s -> %s (%s) over %s: %w", row.name, from, to, f.to, network, err))
						}
						enough := len(faults) >= enoughFaults
						mu.Unlock()
						if enough {
							return
						}
					}
				}
			}
		})
	})
	group.Wait()
	return faults
}

// goOut opens connections from a Pod to a server outside, several at a time, and
// returns how those failed that did.
func (w *worn) goOut(t *testing.T, connections int) (faults []error) {
	t.Helper()
	var mu sync.Mutex // guards faults
	eachWay(func(network echo.Network, v6 bool) {
		to := netip.AddrPortFrom(lab.MustPlace("client").Addr(v6), machinePort)
		failed := 0
		var first error
		var group sync.WaitGroup
		turns := make(chan struct{}, 8)
		for range connections {
			turns <- struct{}{}
			group.Go(func() {
				defer func() { <-turns }()
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				if _, err := w.Dial(ctx, "pod-a1", network, to); err != nil {
					mu.Lock()
					failed, first = failed+1, err
					mu.Unlock()
				}
			})
		}
		group.Wait()
		if failed > 0 {
			faults = append(faults, fmt.Errorf("%d of %d connections of pod-a1 to %s over %s failed: %w", failed, connections, to, network, first))
		}
	})
	return faults
}

// rules runs commands of the column's back end for both families. Words in
// braces become addresses: {pods}, {own-pods} of the place, and those of places.
func (w *worn) rules(t *testing.T, place string, commands ...string) {
	t.Helper()
	for f, tool := range tools(w.column.backendOf()) {
		words := []string{"{pods}", lab.ClusterCIDRs[f].String()}
		if own := lab.PodCIDRs[place]; own != nil {
			words = append(words, "{own-pods}", own[f].String())
		}
		for _, p := range lab.Places() {
			words = append(words, "{"+p.Name+"}", p.Addr(f == 1).String())
		}
		r := strings.NewReplacer(append(words, "{icmp}", []string{"icmp", "ipv6-icmp"}[f], "{loopback}", []string{"127.0.0.0/8", "::1/128"}[f],
			"{multicast}", []string{"224.0.0.0/4", "ff00::/8"}[f])...)
		for _, command := range commands {
			inPlace(t, w.Lab, place, append([]string{tool}, strings.Fields(r.Replace(command))...)...)
		}
	}
}
