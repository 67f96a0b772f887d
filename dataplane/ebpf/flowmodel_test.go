package ebpf

import (
	"fmt"
	"testing"
)

// This file is docs/design/flows.md as a model: one port of one backend (the tuple of
// its replies), two clients whose flows come by the Service, and one that dials the
// backend itself. Every step is one that the programs make at once. All interleavings
// are visited.

type party byte // whose flow: none, or one of the clients

const (
	nobody party = iota
	clientA
	clientB
	direct
)

// modelState is everything that the steps read or write.
type modelState struct {
	ct        party   // whom conntrack has the tuple of the replies for
	half      party   // whose translation the reply half has
	fast      bool    // of the reply half
	checked   bool    // this second
	at        [4]byte // how far each client is: its next step
	promoting [4]byte // how far a packet that promotes is, on another CPU
	sent      [4]bool // the client's packet has reached the backend
	deletions byte    // how often conntrack may still forget a flow
	seconds   byte    // how often a second may still pass
}

// faults are ways to make the model wrong, which it has to find.
type faults struct {
	promoteWithoutCheck, withoutSYN, noteAfterPacket bool
}

// next returns every state that one step leads to.
func (s modelState) next(f faults) (out []modelState) {
	add := func(n modelState) { out = append(out, n) }
	for _, c := range []party{clientA, clientB} {
		steps := []func(*modelState) bool{
			func(n *modelState) bool { // try_track: the insert is atomic
				if n.ct != nobody {
					return false
				}
				n.ct = c
				return true
			},
			func(n *modelState) bool { n.half, n.fast, n.checked = c, false, false; return true }, // note_tracked
			func(n *modelState) bool { n.sent[c] = n.ct == c; return true },                       // the packet goes on
		}
		if f.noteAfterPacket {
			steps[1], steps[2] = steps[2], steps[1]
		}
		if at := s.at[c]; int(at) < len(steps) {
			n := s
			if steps[at](&n) {
				n.at[c]++
				add(n)
			}
		}
		s.promote(c, f, add)
	}
	s.dialDirectly(f, add)
	if s.deletions > 0 && s.ct != nobody { // conntrack -D, or a time-out
		n := s
		n.deletions--
		n.ct = nobody
		add(n)
	}
	if s.seconds > 0 {
		n := s
		n.seconds--
		n.checked = false
		add(n)
	}
	if s.fast && !s.checked && s.replies() != nobody { // still_tracked, in a reply that goes up
		n := s
		n.checked = true
		n.fast = n.ct == n.half
		add(n)
	}
	return out
}

// promote is a packet of a client's forward half, which conntrack was asked about.
func (s modelState) promote(c party, f faults, add func(modelState)) {
	n := s
	switch s.promoting[c] {
	case 0: // find_tracked, and the look at the other half
		if s.ct != c || s.half != c || !s.sent[c] {
			return
		}
	case 1: // open_way: one store, into the half that was looked up
		if s.half == c {
			n.fast, n.checked = true, f.promoteWithoutCheck
		}
	default:
		return
	}
	n.promoting[c]++
	add(n)
}

// dialDirectly is a connection that is no Service's: conntrack has the tuple for the one that
// is first, and the backend's first answer is a SYN.
func (s modelState) dialDirectly(f faults, add func(modelState)) {
	n := s
	switch s.at[direct] {
	case 0:
		if s.ct != nobody {
			return // netfilter gives it another port: not this tuple any more
		}
		n.ct = direct
	case 1:
		if s.ct != direct {
			return
		}
		if !f.withoutSYN {
			n.fast = false
		}
		n.sent[direct] = true
	default:
		return
	}
	n.at[direct]++
	add(n)
}

// replies is whose answers the backend sends: those of the connection that conntrack
// has, once its packet was there.
func (s modelState) replies() party {
	if s.ct != nobody && s.sent[s.ct] {
		return s.ct
	}
	return nobody
}

// wrong reports a reply that would reach another than the one that it is for.
func (s modelState) wrong() bool {
	to := s.replies()
	return to != nobody && s.fast && s.checked && s.half != to
}

// explore visits every state and returns one that is wrong, with how many there are.
func explore(f faults) (found *modelState, visited int) {
	start := modelState{deletions: 3, seconds: 2}
	seen := map[modelState]bool{start: true}
	for queue := []modelState{start}; len(queue) > 0; queue = queue[1:] {
		for _, n := range queue[0].next(f) {
			if seen[n] {
				continue
			}
			if n.wrong() && found == nil {
				found = &n
			}
			seen[n] = true
			queue = append(queue, n)
		}
	}
	return found, len(seen)
}

func TestFlowModel(t *testing.T) {
	found, visited := explore(faults{})
	if found != nil {
		t.Errorf("a reply reaches the wrong client: %+v", *found)
	}
	t.Logf("%d states", visited)
	for what, f := range map[string]faults{
		"promote leaves checked set":          {promoteWithoutCheck: true},
		"note_tracked comes after the packet": {noteAfterPacket: true},
		"a direct SYN does not end the claim": {withoutSYN: true},
	} {
		if found, _ := explore(f); found == nil {
			t.Errorf("%s: the model sees nothing wrong: %s", what, fmt.Sprint(f))
		}
	}
}
