package iptables

import (
	"net/netip"
	"slices"

	"github.com/nodeproxy/nodeproxy/service"
)

// ownership counts the frontends that have an address which is not this node's.
type ownership struct {
	alone  int // that have it as a ClusterIP: it is Services' alone
	shared int // of any other kind: it may be a machine's as well
}

// own counts the addresses of a Service's frontends in or out. What reaches such
// an address and is no frontend's is refused as [service.Table.Judge] says, or
// it could leave by the default route and come back (pitfall P23).
func (r *ruleset) own(res *service.Resolved, by int) {
	if res == nil {
		return
	}
	for i := range res.Ports {
		if res.Ports[i].Family != r.family {
			continue
		}
		for _, f := range res.Ports[i].Frontends {
			if f.Kind == service.NodePort || r.facts.IsLocal(f.Addr) {
				continue
			}
			before := r.owned[f.Addr]
			after := before
			if f.Kind.MayBeAMachines() {
				after.shared += by
			} else {
				after.alone += by
			}
			r.owned[f.Addr] = after
			r.guard(f.Addr, before, after)
		}
	}
}

// guard writes what meets packets to other ports of an address.
func (r *ruleset) guard(addr netip.Addr, before, after ownership) {
	switch none := (ownership{}); {
	case after == none:
		delete(r.owned, addr)
		e := guardOf(addr, before)
		r.filter.addresses.remove(e)
		r.answerPing(e, before, r.nat.addresses.remove)
	case before == none || (before.alone > 0) != (after.alone > 0):
		e := guardOf(addr, after)
		r.filter.addresses.set(e)
		r.answerPing(e, after, r.nat.addresses.set)
	}
}

func guardOf(addr netip.Addr, o ownership) entry {
	e := entry{key: prefixKey(netip.PrefixFrom(addr, addr.BitLen())), comment: "port of no Service", target: "-j " + chainUnknown}
	if o.alone == 0 {
		e.target = "-j " + chainReturned
	}
	return e
}

// returnedChain refuses what forwarding would send back by the interface that it
// came in by, which is that of a gateway: only who forwards too makes a loop. Rules
// can compare the two interfaces by name only, so each uplink has its own.
func (r *ruleset) returnedChain() []string {
	rules := []string{}
	for _, dev := range r.facts.Uplinks {
		rules = append(rules, " -i "+dev+" -o "+dev+" -j "+chainUnknown)
	}
	return rules
}

// pingChain answers what a gateway has led here.
func (r *ruleset) pingChain() []string {
	target := r.pingTarget()
	if target == "" {
		return nil
	}
	rules := []string{}
	for _, dev := range r.facts.Uplinks {
		rules = append(rules, " -i "+dev+" "+target)
	}
	return rules
}

// pingTarget leads echo requests to the node itself, whose answer conntrack gives
// the address that was asked; "" where nobody asked for that. REDIRECT would drop
// what comes in by an interface without an address, as those of routed Pods.
func (r *ruleset) pingTarget() string {
	local := r.facts.Local[r.family]
	at := slices.IndexFunc(local, netip.Addr.IsGlobalUnicast)
	if !r.ping || at < 0 {
		return ""
	}
	return "-j DNAT --to-destination " + local[at].String()
}

// answerPing makes an entry answer echo requests. Those of this node and its Pods
// for an address that may be a machine's are that machine's to answer.
func (r *ruleset) answerPing(e entry, o ownership, do func(entry)) {
	target := r.pingTarget()
	if target == "" {
		return
	}
	if o.alone == 0 {
		target = "-j " + chainPing
	}
	e.match = " -p icmp -m icmp --icmp-type 8"
	if r.family == service.IPv6 {
		e.match = " -p ipv6-icmp -m icmp6 --icmpv6-type 128"
	}
	e.comment, e.target = "ping", target
	do(e)
}
