//go:build !agent

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/controlplane"
)

func newLabUpCommand() *cobra.Command {
	var opts lab.Options
	var noAgent bool
	var from, kubeBin string
	cmd := &cobra.Command{
		Use:     "up",
		Short:   "Build a lab and start an agent on each node",
		Example: "  nodeproxy lab up --mode ebpf\n  nodeproxy lab up --source kubernetes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkMode(opts.Mode); err != nil {
				return err
			}
			if err := checkLabSource(from, kubeBin); err != nil {
				return err
			}
			l, err := lab.Up(cmd.Context(), opts)
			if errors.Is(err, lab.ErrExists) {
				return fmt.Errorf("lab %q exists already; `nodeproxy lab down --name %[1]s` removes it", opts.Name)
			}
			if err != nil {
				return err
			}
			if err := fillLab(cmd.Context(), l, from, kubeBin, noAgent); err != nil {
				return errors.Join(err, l.Down())
			}
			return printLab(cmd.Context(), cmd.OutOrStdout(), l)
		},
	}
	labNameFlag(cmd, &opts.Name)
	modeFlag(cmd, &opts.Mode)
	labSourceFlags(cmd, &from, &kubeBin)
	cmd.Flags().BoolVar(&opts.Bridge, "bridge", false, "put the Pods of a node behind a bridge, not routed veths")
	cmd.Flags().BoolVar(&noAgent, "no-agent", false, "start no agents")
	cmd.Flags().StringArrayVar(&opts.AgentArgs, "agent-arg", nil, "argument for the agents, such as --agent-arg=--v=2; may be repeated")
	return cmd
}

func labSourceFlags(cmd *cobra.Command, from, kubeBin *string) {
	cmd.Flags().StringVar(from, "source", sourceFile, "where the agents have their objects from: file, or kubernetes for a real API server")
	cmd.Flags().StringVar(kubeBin, "kube-bin", "bin/kube", "directory of etcd and kube-apiserver, as make kube builds them")
}

// sourceFile is the --source of a lab whose agents read manifests.
const sourceFile = "file"

// checkLabSource returns what is wrong with a lab's --source and --kube-bin.
func checkLabSource(from, kubeBin string) error {
	switch from {
	case sourceFile:
		return nil
	case sourceKubernetes:
		return controlplane.CheckPrograms(kubeBin)
	}
	return fmt.Errorf("--source %q: use file or kubernetes", from)
}

// fillLab starts what belongs to a lab that was just built.
func fillLab(ctx context.Context, l *lab.Lab, from, kubeBin string, noAgent bool) error {
	if from == sourceKubernetes {
		if _, err := onAPIServer(kubeBin)(ctx, l); err != nil {
			return err
		}
		if err := l.KeepStore(); err != nil {
			return err
		}
	}
	if noAgent {
		return nil
	}
	return l.StartAgents(ctx)
}

func newLabStatusCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Draw a lab with its addresses, agents and Services",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := openLab(name)
			if err != nil {
				return err
			}
			return printLab(cmd.Context(), cmd.OutOrStdout(), l)
		},
	}
	labNameFlag(cmd, &name)
	return cmd
}

// printLab draws a lab, and lists its Services.
func printLab(ctx context.Context, w io.Writer, l *lab.Lab) error {
	if _, err := fmt.Fprint(w, l.Status()); err != nil {
		return err
	}
	if config := controlplane.AdminKubeconfig(l); len(l.Options().AgentSource) > 0 {
		fmt.Fprintf(w, "kubeconfig  %s, for kubectl in the lab: nodeproxy lab exec control-plane --name %s -- kubectl --kubeconfig %[1]s get services\n", config, l.Name())
	}
	for _, a := range l.Agents() {
		if a.Mode != "" && !a.Running {
			fmt.Fprintf(w, "\nthe agent of %s has ended: nodeproxy lab agent start %[1]s --name %s; its log is %s\n", a.Node, l.Name(), l.LogPath("agent-"+a.Node))
		}
	}
	rows, from := labServices(ctx, l)
	fmt.Fprintf(w, "\nServices, as %s:\n", from)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NAME\tTYPE\tADDRESSES\tPORTS\tENDPOINTS")
	for _, r := range rows {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d\n", r.name, r.kind, r.addresses, r.ports, r.endpoints)
	}
	return tw.Flush()
}
