package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
	"github.com/nodeproxy/nodeproxy/dataplane/iptables"
)

func newCleanupCommand() *cobra.Command {
	var instance string
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that nodeproxy put into the kernel, and nothing else",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := validateInstance(instance); err != nil {
				return err
			}
			return cleanUp(cmd.Context(), instance)
		},
	}
	registerInstance(cmd.Flags(), &instance)
	return cmd
}

// cleanUp removes what an instance put into the kernel.
func cleanUp(ctx context.Context, instance string) error {
	if err := requireRoot("nodeproxy cleanup"); err != nil {
		return err
	}
	lock, err := lockNode(ctx) // a running agent would put it all back
	if err != nil {
		return err
	}
	defer lock.Close()
	return errors.Join(iptables.Cleanup(ctx), ebpf.Cleanup(ebpf.Options{Instance: instance}))
}
