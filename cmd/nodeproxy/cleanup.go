package main

import (
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
			if err := requireRoot("nodeproxy cleanup"); err != nil {
				return err
			}
			lock, err := lockNode(cmd.Context()) // a running agent would put it all back
			if err != nil {
				return err
			}
			defer lock.Close()
			return errors.Join(iptables.Cleanup(cmd.Context()), ebpf.Cleanup(ebpf.Options{Instance: instance}))
		},
	}
	registerInstance(cmd.Flags(), &instance)
	return cmd
}
