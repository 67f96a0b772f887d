package loopback

import (
	"errors"
	"sync/atomic"
)

const (
	// maxConnections and maxDatagramFlows are how many of each all listeners relay
	// together. A connection takes two file descriptors and some 20 KiB, a flow one.
	maxConnections   = 8192
	maxDatagramFlows = 4096
	// maxOfSource is how many UDP flows of one address a listener relays.
	maxOfSource = 1024
)

// errFull means that the agent relays as much as it may.
var errFull = errors.New("the agent relays as many flows on loopback as it may")

// places is a number of things that may be in use at a time. It is safe for
// concurrent use.
type places struct {
	most int64
	used atomic.Int64
}

func newPlaces(most int64) *places { return &places{most: most} }

// take takes a place, if there is one.
func (p *places) take() bool {
	if p.used.Add(1) <= p.most {
		return true
	}
	p.used.Add(-1)
	return false
}

// release gives a place back.
func (p *places) release() { p.used.Add(-1) }
