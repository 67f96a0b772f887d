// Package echo is what the lab's Pods serve and how the lab dials it: every
// answer names the Pod that gave it and the source address that the Pod saw,
// which is all that a test of a Service has to know.
//
// [Serve] is the server. [Dial] and [Open] dial from the calling process;
// [Remote] has a process in another network namespace and cgroup dial.
package echo

import (
	"fmt"
	"net/netip"
	"strings"
)

// Ports of the server.
const (
	PortHTTP = 8080 // HTTP: "/" answers a line, "/json" an [Answer]
	PortEcho = 7000 // TCP and UDP
)

// Answer is what a Pod says about one connection or datagram.
type Answer struct {
	Name   string         `json:"name"`   // the Pod that answered
	Source netip.AddrPort `json:"source"` // the peer, as that Pod saw it
	// Local is the address at which the Pod was reached. It is filled in for
	// HTTP only.
	Local netip.AddrPort `json:"local,omitzero"`
}

// String returns "name source".
func (a Answer) String() string { return a.Name + " " + a.Source.String() }

// parseAnswer reads what String wrote and returns what follows it.
func parseAnswer(line string) (a Answer, rest string, err error) {
	name, line, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	if !ok {
		return a, "", fmt.Errorf("parse answer %q: want NAME SOURCE", name)
	}
	source, rest, _ := strings.Cut(line, " ")
	a = Answer{Name: name}
	if a.Source, err = netip.ParseAddrPort(source); err != nil {
		return a, "", fmt.Errorf("parse answer of %s: %w", name, err)
	}
	return a, rest, nil
}

// unmap returns ap with an IPv4-mapped IPv6 address, as dual-stack sockets
// report them, turned into the IPv4 one.
func unmap(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
