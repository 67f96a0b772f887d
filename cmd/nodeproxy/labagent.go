//go:build !agent

package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodeproxy/nodeproxy/lab"
)

func newLabAgentCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Stop, start or restart the agent of a lab's node",
		Long: `Stop, start or restart the agent of a lab's node. Stopping leaves translation in place. A
restart may change the mode: the new agent takes over what the old one left.`,
	}
	cmd.AddCommand(
		labAgent("restart", "Stop a node's agent, and start one", true, func(cmd *cobra.Command, l *lab.Lab, node, mode string, args []string) error {
			return l.RestartAgent(cmd.Context(), node, mode, args...)
		}),
		labAgent("stop", "Stop a node's agent; translation stays in place", false, func(_ *cobra.Command, l *lab.Lab, node, _ string, _ []string) error {
			if p, _, err := l.Agent(node); err != nil || !p.Running() {
				return fmt.Errorf("no agent runs on %s", node)
			}
			return l.StopAgent(node)
		}),
		labAgent("start", "Start an agent on a node that has none", true, func(cmd *cobra.Command, l *lab.Lab, node, mode string, args []string) error {
			if p, _, err := l.Agent(node); err == nil && p.Running() {
				return fmt.Errorf("an agent runs on %s already, as PID %d: nodeproxy lab agent restart %[1]s --name %[3]s", node, p.PID, l.Name())
			}
			return l.RestartAgent(cmd.Context(), node, mode, args...)
		}))
	return cmd
}

// labAgent is one command of lab agent; starts tells that it starts an agent.
func labAgent(verb, short string, starts bool, do func(cmd *cobra.Command, l *lab.Lab, node, mode string, args []string) error) *cobra.Command {
	var name, mode string
	var agentArgs []string
	cmd := &cobra.Command{
		Use:     verb + " NODE",
		Short:   short,
		Example: "  nodeproxy lab agent " + verb + " node-a",
		Args:    between(1, 1, "name a node", "lab agent "+verb+" node-a"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkNodePlace(args[0]); err != nil {
				return err
			}
			if mode != "" {
				if err := checkMode(mode); err != nil {
					return err
				}
			}
			if err := requireRoot("lab agent " + verb); err != nil {
				return err
			}
			l, err := openLab(name)
			if err != nil {
				return err
			}
			if err := do(cmd, l, args[0], mode, agentArgs); err != nil {
				return err
			}
			for _, a := range l.Agents() {
				if a.Node == args[0] {
					fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", a.Node, a)
				}
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, begun string) (out []string, _ cobra.ShellCompDirective) {
			for _, p := range lab.PlacesOf(lab.Node) {
				if len(args) == 0 && strings.HasPrefix(p.Name, begun) {
					out = append(out, p.Name)
				}
			}
			return out, cobra.ShellCompDirectiveNoFileComp
		},
	}
	labNameFlag(cmd, &name)
	if starts {
		cmd.Flags().StringVar(&mode, "mode", "", "mode of the agent: iptables or ebpf (default: that of the last)")
		cmd.Flags().StringArrayVar(&agentArgs, "agent-arg", nil, "argument for the agent, such as --agent-arg=--v=2; may be repeated")
	}
	return cmd
}

// checkNodePlace refuses what is no node of a lab.
func checkNodePlace(name string) error {
	var nodes []string
	for _, p := range lab.PlacesOf(lab.Node) {
		if p.Name == name {
			return nil
		}
		nodes = append(nodes, p.Name)
	}
	return fmt.Errorf("%q is no node of a lab: use %s", name, orList(nodes))
}
