package netnstests

import (
	"slices"

	"github.com/nodeproxy/nodeproxy/lab"
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
