//go:build !stock

package netnstests

// slowness is by how much limits on time are longer here.
const slowness = 1
