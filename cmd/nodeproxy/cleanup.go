package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
	"github.com/nodeproxy/nodeproxy/dataplane/iptables"
)

func newCleanupCommand() *cobra.Command {
	var instance string
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that nodeproxy put into the kernel, and nothing else",
		Long: `Remove everything that nodeproxy put into the kernel, and nothing else, and say what that was.
Connections that are open in iptables mode go on. An agent must not run.`,
		Example: "  nodeproxy cleanup",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := validateInstance(instance); err != nil {
				return err
			}
			return cleanUp(cmd.Context(), cmd.OutOrStdout(), instance)
		},
	}
	registerInstance(cmd.Flags(), &instance)
	return cmd
}

// cleanUp removes what an instance put into the kernel, and says what that was.
func cleanUp(ctx context.Context, w io.Writer, instance string) error {
	if err := requireRoot("nodeproxy cleanup"); err != nil {
		return err
	}
	lock, err := lockNode(ctx) // a running agent would put it all back
	if err != nil {
		return err
	}
	defer lock.Close()
	there, err := inKernel(ctx, instance)
	if err != nil {
		fmt.Fprintf(w, "cannot say what there is: %v\n", err) // it is removed all the same
	}
	if err := errors.Join(iptables.Cleanup(ctx), ebpf.Cleanup(ebpf.Options{Instance: instance})); err != nil {
		return err
	}
	for _, what := range there {
		fmt.Fprintln(w, "removed", what)
	}
	if len(there) == 0 && err == nil {
		fmt.Fprintln(w, "nothing to remove")
	}
	others, err := ebpf.Instances(ebpf.Options{})
	if others = slices.DeleteFunc(others, func(o string) bool { return o == instance }); err == nil && len(others) > 0 {
		fmt.Fprintf(w, "left alone: what other instances pinned (%s); --instance names one\n", strings.Join(others, ", "))
	}
	return err
}

// inKernel lists, in words, what an instance has in the kernel.
func inKernel(ctx context.Context, instance string) (out []string, err error) {
	chains, err := iptables.Leftovers(ctx)
	for _, f := range chains {
		out = append(out, fmt.Sprintf("%s and the jumps to them (%s)", numberOf(len(f.Chains), "chain"), f.Where))
	}
	links, maps, pinErr := ebpf.Pinned(ebpf.Options{Instance: instance})
	if links+maps > 0 {
		out = append(out, fmt.Sprintf("%s and %s (instance %s)", numberOf(links, "attached program"), numberOf(maps, "map"), instance))
	}
	return out, errors.Join(err, pinErr)
}
