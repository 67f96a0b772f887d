package netnstests

import (
	"testing"

	"github.com/nodeproxy/nodeproxy/lab"
)

// awaited says, by name of a check, what ebpf mode does not do yet and why. A
// check that is named here has to fail in the columns of ebpf mode: once it holds
// there, its line has to go.
var awaited = map[string]string{
	"ports of machines":                    "bpf/lost.h refuses every port that no Service has at an address that is not this node's",
	"beside keepalived":                    "of the same: the answers to machines that a Service's addresses are, too",
	"beside flannel":                       "bpf/lost.h drops replies at the ports that ebpf mode masquerades with, whoever else uses them",
	"beside portmap":                       "of the same, hostPorts among them",
	"beside calico":                        "what is redirected at tc never meets FORWARD, and random ports of others are dropped",
	"beside nodelocaldns":                  "frontends are looked up before it is asked whether an address is local",
	"endpoint outside":                     "what is redirected at tc never meets POSTROUTING",
	"large datagrams":                      "what has to be cut is not left to the stack",
	"no way to the backend":                "a packet without a way is dropped in silence",
	"strangers on the node":                "every socket outside the node's network namespace counts as a Pod's",
	"node port at the unspecified address": "socket programs do not take it for loopback",
	"own sockets at Services' ports":       "only connected sockets are asked whether a datagram to a node port is theirs",
	"beside several addresses":             "the masquerade source is an interface's first address, not the one that the route gives",
}

// ofSockets are those of awaited that are a matter of the socket programs.
var ofSockets = map[string]bool{"strangers on the node": true, "node port at the unspecified address": true}

// judge wants a check to have found no fault, or some where ebpf mode is known
// not to do it yet.
func (c column) judge(t *testing.T, check string, faults []error) {
	t.Helper()
	why := awaited[check]
	if ofSockets[check] && !c.Sockets {
		why = ""
	}
	switch {
	case c.Mode != lab.ModeEBPF || why == "":
		for _, err := range faults {
			t.Errorf("%s: %v", check, err)
		}
	case len(faults) == 0:
		t.Errorf("%s: holds in ebpf mode now: take it off the list of what is awaited", check)
	default:
		t.Logf("%s: not in ebpf mode yet, since %s: %d faults, the first is: %v", check, why, len(faults), faults[0])
	}
}
