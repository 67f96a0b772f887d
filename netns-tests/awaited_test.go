package netnstests

import (
	"testing"

	"github.com/nodeproxy/nodeproxy/lab"
)

// awaited says, by name of a check, what ebpf mode does not do yet and why. A
// check that is named here has to fail in the columns of ebpf mode: once it holds
// there, its line has to go.
var awaited = map[string]string{
	"second uplink with rp_filter 1": "the kernel looks for the way back after the destination is translated, as beside kube-proxy",
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
