//go:build stock

package netnstests

// slowness is by how much limits on time are longer here: make test-vm builds with
// this tag, and instructions are emulated.
const slowness = 4
