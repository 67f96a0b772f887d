package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"strings"

	"github.com/nodeproxy/nodeproxy/service"
)

// chainPrefix begins the name of every chain of ours, and of no other.
const chainPrefix = "NODEPROXY-"

// The chains with a fixed name.
const (
	chainServices    = chainPrefix + "SERVICES"    // nat: from PREROUTING and OUTPUT
	chainNodePorts   = chainPrefix + "NODEPORTS"   // nat: local destinations
	chainPostrouting = chainPrefix + "POSTROUTING" // nat: from POSTROUTING
	chainForward     = chainPrefix + "FORWARD"     // filter: from FORWARD
	chainNewFlows    = chainPrefix + "NEW-FLOWS"   // filter: new flows from INPUT, FORWARD and OUTPUT
	chainUnknown     = chainPrefix + "UNKNOWN"     // filter: ports of Service addresses that no Service has
	chainReturned    = chainPrefix + "RETURNED"    // filter: the same, at addresses that may be a machine's
	chainHealth      = chainPrefix + "HEALTH"      // filter: health-check node ports, from INPUT
	chainPing        = chainPrefix + "PING"        // nat: echo requests for addresses that may be a machine's
	chainClosedPorts = chainPrefix + "CLOSED-NP"   // filter: node ports that reject or drop
)

// maxChainName is the longest name that both back ends take.
const maxChainName = 28

// hashedName is prefix with as much of a hash as there is room for, at most
// the 70 bits that fit behind the longest prefix in use.
func hashedName(prefix string, parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	text := base32.StdEncoding.EncodeToString(sum[:])
	return prefix + text[:min(14, maxChainName-len(prefix))]
}

// The prefixes of chains that belong to one ServicePort.
const (
	chainSvc     = chainPrefix + "SVC-" // its ClusterIP: policy, and the backends where nobody else needs them
	chainExt     = chainPrefix + "EXT-" // its external frontends: policy
	chainLB      = chainPrefix + "LB-"  // its load-balancer frontends: source ranges
	chainAll     = chainPrefix + "ALL-" // its backends on every node
	chainLoc     = chainPrefix + "LOC-" // its backends on this node
	chainPick    = chainPrefix + "PCK-" // a part of a long list of backends
	chainSep     = chainPrefix + "SEP-" // one endpoint, for session affinity
	chainRange   = chainPrefix + "RNG-" // a range of ports: its exceptions
	chainFw      = chainPrefix + "FW-"  // filter: what a source range refuses
	chainSources = chainPrefix + "SRC-" // trees that compare a source with ranges
)

func portChain(prefix string, sp *service.ServicePort, more ...string) string {
	return hashedName(prefix, append([]string{sp.Name.String(), sp.Protocol.String()}, more...)...)
}

// prefixChain names the chain of a [tree] node so that a reader of
// iptables-save sees which packets come by, where the prefix fits into a name.
func prefixChain(k key) string {
	if !k.hasPort() {
		if k.addrBits == 0 {
			return chainPrefix + "NP-ANY"
		}
		if name := chainPrefix + k.addr().String(); len(name) <= maxChainName {
			return name
		}
		return hashedName(chainPrefix+"NET-", k.addr().String())
	}
	p, first, last := k.ports()
	span := protocolName(p) + itoa(first) + "-" + itoa(last)
	if k.addrBits == 0 {
		return chainPrefix + "NP-" + span
	}
	return hashedName(chainPrefix+"PORT-", k.addr().String(), span)
}

// healthChain names the chains of the tree of health-check node ports.
func healthChain(k key) string {
	if !k.hasPort() {
		return chainPrefix + "HC-ANY"
	}
	_, first, last := k.ports()
	return chainPrefix + "HC-" + itoa(first) + "-" + itoa(last)
}

// sourceChain returns the namer of the chains that compare a source with the
// ranges of one frontend.
func sourceChain(owner string) func(key) string {
	return func(k key) string { return hashedName(chainSources, owner, k.addr().String()) }
}
