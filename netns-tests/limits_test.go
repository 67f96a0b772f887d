package netnstests

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// What eBPF mode shows differently from iptables mode is here, and nowhere
// else; docs/semantics.md tells users the same.

// translatesSockets tells whether agents of the lab translate sockets when
// they connect.
func translatesSockets(l *lab.Lab) bool {
	mode, args := agentMode(l)
	return mode == lab.ModeEBPF && !slices.Contains(args, "--sockets=false")
}

// agentMode is how the agents of a lab run, or would: in a lab that several
// columns share, only the agents that run know.
func agentMode(l *lab.Lab) (mode string, args []string) {
	if p, mode, err := l.Agent("node-a"); err == nil {
		return mode, p.Argv
	}
	return l.Options().Mode, l.Options().AgentArgs
}

// packetsOnly tells whether agents of the lab are in eBPF mode and leave all
// sockets to the packet path.
func packetsOnly(l *lab.Lab) bool {
	mode, _ := agentMode(l)
	return mode == lab.ModeEBPF && !translatesSockets(l)
}

// toItself tells whether a process of a node dials a node port at an address
// of that node. Such packets never leave it, so the packet path, which is not
// on lo, does not meet them.
func (f flow) toItself() bool {
	return f.from.Kind == lab.Node && (f.at == f.from.Name || f.at == "second" && f.from.Name == "node-a")
}

// mayPickItself tells whether a process of a node dials a Service that has the
// node itself among its endpoints.
func (f flow) mayPickItself() bool {
	return f.from.Kind == lab.Node && slices.Contains(strings.Fields(f.want), f.from.Name)
}

// limited judges a flow that the packet path by itself cannot serve; ok tells
// whether this is one.
func (f flow) limited(ctx context.Context) (ok bool, err error) {
	if !packetsOnly(f.lab) || f.want == dropped || f.want == unanswered {
		return false, nil
	}
	switch {
	case f.toItself():
		f.want = refused // nobody listens there, and nothing translates it
		return true, f.checkRefused(ctx)
	case f.mayPickItself():
		return true, f.checkAllButItself(ctx)
	}
	return false, nil
}

// checkAllButItself checks that a node is served by the others, and that what
// would come back to it is dropped, not sent anywhere untranslated.
func (f flow) checkAllButItself(ctx context.Context) error {
	lost, answered := 0, 0
	for range 40 {
		ctx, cancel := context.WithTimeout(ctx, dropTimeout)
		answer, err := f.dial(ctx)
		cancel()
		switch {
		case err == nil && answer.Name != f.from.Name && strings.Contains(f.want, answer.Name):
			answered++
		case err != nil && echo.IsTimeout(err):
			lost++
		default:
			return fmt.Errorf("answer %v, error %w; want another endpoint's, or none", answer, errOrNone(err))
		}
		if lost > 0 && answered > 0 {
			return nil
		}
	}
	return fmt.Errorf("%d dials were answered and %d lost, want some of each", answered, lost)
}
