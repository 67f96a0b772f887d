package iptables

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

// countsAge is how old an answer of Counts may be, and countsShare which part of the
// time may be spent on reading: tens of thousands of rules take a second.
const (
	countsAge   = time.Second
	countsShare = 5
)

// countsBytes reports whether conntrack counts packets and bytes.
func countsBytes() bool {
	b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_acct")
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

// counts sums up what the kernel counts. The counters of rules begin anew when
// their chain is written, and those of connections end with them; so the
// differences between two looks are what is added. Flows are counted by the
// rules that translate or refuse them; packets and bytes by conntrack, where
// net.netfilter.nf_conntrack_acct is on. What happens between the last look
// and the end of a connection, or the writing of a chain, is not counted.
type counts struct {
	mu      sync.Mutex
	at      time.Time
	took    time.Duration // the last look
	rows    []view.Count
	rules   map[string]uint64        // packets at the last look, by table, chain and text
	flows   map[flowKey][2][2]uint64 // packets and bytes at the last look
	traffic map[countKey]*view.Traffic
}

// countKey is a port of a Service in a family, and a backend of it or none.
type countKey struct {
	owner   owner
	family  service.Family
	backend netip.AddrPort
}

type flowKey struct {
	from, to netip.AddrPort
	protocol uint8
}

func newCounts() *counts { return &counts{traffic: map[countKey]*view.Traffic{}} }

// Counts returns the traffic of every Service, as the kernel counts it at this
// moment: see Dataplane.Counts for what went before.
func (r *Reader) Counts(ctx context.Context) ([]view.Count, error) { return newCounts().read(ctx, r) }

// Counts returns the traffic of every Service since the agent began to look; an
// answer may be a few seconds old. Safe for concurrent use.
func (d *Dataplane) Counts(ctx context.Context) ([]view.Count, error) {
	return d.counts.read(ctx, d.Reader())
}

func (c *counts) read(ctx context.Context, r *Reader) ([]view.Count, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.at.IsZero() && time.Since(c.at) < max(countsAge, countsShare*c.took) {
		return c.rows, nil
	}
	begun := time.Now()
	all, err := r.read(ctx)
	if err != nil {
		return nil, err
	}
	rules, flows := map[string]uint64{}, map[flowKey][2][2]uint64{}
	directory := newDirectory(all)
	present := map[countKey]bool{}
	for _, s := range all {
		c.addRules(s, rules, present)
		entries, err := conntrackOf(s.family)
		if err != nil {
			return nil, err
		}
		for _, f := range entries {
			c.addFlow(directory, s.family, f, flows)
		}
	}
	c.rules, c.flows, c.rows, c.at = rules, flows, c.list(present), time.Now()
	c.took = c.at.Sub(begun)
	noBytes := !countsBytes()
	for i := range c.rows {
		c.rows[i].At, c.rows[i].NoBytes = c.at, noBytes
	}
	return c.rows, nil
}

// addRules takes in the counters of a family's rules.
func (c *counts) addRules(s *ourRules, seen map[string]uint64, present map[countKey]bool) {
	since := func(table, chain string, r *savedRule) uint64 {
		key := fmt.Sprint(s.family, table, chain, r.text)
		for n := 2; ; n++ { // two rules of one text
			if _, twice := seen[key]; !twice {
				break
			}
			key = fmt.Sprint(s.family, table, chain, n, r.text)
		}
		seen[key] = r.packets
		return more(r.packets, c.rules[key])
	}
	for chain, o := range s.owners() {
		for i := range s.tables["nat"][chain] {
			r := &s.tables["nat"][chain][i]
			to := r.destination()
			if !to.Addr().IsValid() {
				continue
			}
			n := since("nat", chain, r)
			c.of(countKey{o, s.family, to}).Connections += n
			c.of(countKey{o, s.family, netip.AddrPort{}}).Connections += n
		}
	}
	for _, e := range s.entrances("nat") {
		present[countKey{owner: e.owner, family: s.family}] = true
	}
	for _, e := range s.entrances("filter") {
		key := countKey{owner: e.owner, family: s.family}
		present[key] = true
		c.of(key).Drops += since("filter", e.owner.protocol.String(), &e.savedRule)
	}
}

// more is what was added to a counter, which may have begun anew.
func more(now, before uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

// addFlow takes in the counters of a connection that some Service led on.
func (c *counts) addFlow(d *directory, family service.Family, f *netlink.ConntrackFlow, seen map[flowKey][2][2]uint64) {
	if f.Forward.Packets == 0 {
		return
	}
	row, ok := d.flow(f)
	if !ok {
		return
	}
	key := flowKey{row.Client, row.Frontend, f.Forward.Protocol}
	now := [2][2]uint64{*row.Packets, *row.Bytes}
	before := c.flows[key]
	if now[0][0] < before[0][0] { // another connection between the same ports
		before = [2][2]uint64{}
	}
	seen[key] = now
	o := owner{row.Service, service.Protocol(f.Forward.Protocol)}
	for _, backend := range []netip.AddrPort{{}, row.Backend} {
		t := c.of(countKey{o, family, backend})
		for i := range t.Packets {
			t.Packets[i] += more(now[0][i], before[0][i])
			t.Bytes[i] += more(now[1][i], before[1][i])
		}
	}
}

func (c *counts) of(k countKey) *view.Traffic {
	if c.traffic[k] == nil {
		c.traffic[k] = &view.Traffic{}
	}
	return c.traffic[k]
}

// list returns the rows of the Services that are there, and forgets the others.
func (c *counts) list(present map[countKey]bool) []view.Count {
	at := map[countKey]int{}
	rows := make([]view.Count, 0, len(present))
	for k := range present {
		at[k] = len(rows)
		name := service.ParsePortName(k.owner.name, k.owner.protocol)
		rows = append(rows, view.Count{Service: name, Family: k.family, Name: k.owner.name, Protocol: k.owner.protocol.String(),
			FamilyIs: k.family.String(), Traffic: *c.of(k)})
	}
	for k, t := range c.traffic {
		i, ok := at[countKey{owner: k.owner, family: k.family}]
		switch {
		case !ok:
			delete(c.traffic, k)
		case k.backend.Addr().IsValid():
			rows[i].Backends = append(rows[i].Backends, view.BackendCount{Address: k.backend.String(), Traffic: *t})
		}
	}
	view.SortCounts(rows)
	return rows
}
