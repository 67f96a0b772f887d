package iptables

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"regexp"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/dataplane/iptables/walk"
	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

// TestNoPacketIsTooManyJumpsDeep: nf_tables refuses every write once a packet
// could be 16 jumps deep. Addresses and sources here are as unevenly spread as
// they can be, and one Service has a thousand endpoints.
func TestNoPacketIsTooManyJumpsDeep(t *testing.T) {
	var all service.Changes
	all.Complete = true
	for i := range 200 {
		endpoints := 2
		if i == 0 {
			endpoints = 1000
		}
		svc, slice := synth.Service(i, endpoints)
		svc.AffinityTimeout = time.Hour
		// Each bit alone, and then many below the last ones.
		bits := uint32(1) << (i % 32)
		if i >= 32 {
			bits = uint32(i)
		}
		svc.ExternalIPs = []netip.Addr{addressOf(bits)}
		if i%50 == 0 {
			svc.Ingress = []service.Ingress{{Addr: addressOf(bits ^ 0xff)}}
			for n := range 32 {
				svc.SourceRanges = append(svc.SourceRanges, netip.PrefixFrom(addressOf(1<<n), 32))
			}
		}
		all.Services = append(all.Services, svc)
		all.EndpointSlices = append(all.EndpointSlices, slice)
	}
	r := service.NewResolver(synth.Config())
	r.Apply(all)
	rules := rulesOf(t, r.Table(), service.IPv4)
	for table, base := range map[string][]string{"nat": {"PREROUTING", "OUTPUT", "POSTROUTING"}, "filter": {"INPUT", "FORWARD", "OUTPUT"}} {
		for _, chain := range base {
			depth, way := deepest(rules, table, chain)
			t.Logf("%s %s: %d jumps", table, chain, depth)
			if depth >= 16 {
				t.Errorf("%d jumps from %s of %s: %v", depth, chain, table, way)
			}
		}
	}
}

func addressOf(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

var jump = regexp.MustCompile(`(?:^| )-[jg] (\S+)`)

// deepest returns how many jumps a packet can be below a chain, and the chains.
func deepest(rules walk.Rules, table, chain string) (int, []string) {
	depth, way := 0, []string{}
	for _, r := range rules[table][chain] {
		m := jump.FindStringSubmatch(r.Text)
		if m == nil || rules[table][m[1]] == nil {
			continue
		}
		if d, w := deepest(rules, table, m[1]); d+1 > depth {
			depth, way = d+1, append([]string{fmt.Sprint(m[1])}, w...)
		}
	}
	return depth, way
}
