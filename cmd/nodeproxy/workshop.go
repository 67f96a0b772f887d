//go:build !agent

package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodeproxy/nodeproxy/bench"
	"github.com/nodeproxy/nodeproxy/lab"
)

// workshop are the commands for those who work on nodeproxy. Released programs, which run
// as root on nodes, are built without them: -tags agent.
func workshop() []*cobra.Command { return []*cobra.Command{newLabCommand(), newBenchCommand()} }

// labNames are the labs of this machine; none where they cannot be read, since a shell has
// no use for an error.
func labNames() []string {
	names, _ := lab.List()
	return names
}

// benchValues are the values of a flag of bench.
func benchValues(flag string) ([]string, bool) {
	values, ok := bench.Values()[flag]
	return values, ok
}

// completePlaces offers the places of a lab as the first argument, and then leaves it to
// the shell, since a command of the user's follows.
func completePlaces(_ *cobra.Command, args []string, begun string) (out []string, _ cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	for _, p := range lab.Places() {
		if strings.HasPrefix(p.Name, begun) {
			out = append(out, p.Name)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
