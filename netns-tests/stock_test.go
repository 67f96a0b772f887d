//go:build stock

package netnstests

import "testing"

// Not every kernel that tests run on has ipvlan, stock ones do.
func init() {
	dresses = append(dresses, dress{name: "ipvlan", wear: func(t *testing.T, w *worn) { w.childOfUplink(t, "ipvlan", "ipvlan mode l2") }})
}

// slowness is by how much limits on time are longer here: make test-vm builds with
// this tag, and instructions are emulated.
const slowness = 6
