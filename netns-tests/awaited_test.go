package netnstests

import (
	"testing"

	"github.com/nodeproxy/nodeproxy/lab"
)

// awaited says, by name of a check, what ebpf mode does not do yet and why. A
// check that is named here has to fail in the columns of ebpf mode: once it holds
// there, its line has to go.
var awaited = map[string]string{
	"ports of machines":              "bpf/lost.h refuses every port that no Service has at an address that is not this node's",
	"beside keepalived":              "of the same: the answers to machines that a Service's addresses are, too",
	"health check beside a firewall": "nothing in ebpf mode writes a rule into the host's firewall",
	"beside flannel":                 "bpf/lost.h drops replies at the ports that ebpf mode masquerades with, whoever else uses them",
	"beside portmap":                 "of the same, hostPorts among them",
	"beside calico":                  "what is redirected at tc never meets FORWARD, and random ports of others are dropped",
	"beside nodelocaldns":            "frontends are looked up before it is asked whether an address is local",
	"beside several addresses":       "the masquerade source is an interface's first address, not the one that the route gives",
}

// judge wants a check to have found no fault, or some where ebpf mode is known
// not to do it yet.
func (c column) judge(t *testing.T, check string, faults []error) {
	t.Helper()
	why := awaited[check]
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
