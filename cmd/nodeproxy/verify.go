package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/dataplane"
	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
	"github.com/nodeproxy/nodeproxy/dataplane/iptables"
	"github.com/nodeproxy/nodeproxy/dataplane/view"
)

func newVerifyCommand() *cobra.Command {
	var a asking
	var repair bool
	var o runOptions
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare what the kernel holds with what it should",
		Long: `Compare what the kernel holds with what the agent last wrote there: rules and the jumps to
them, or maps and attached programs. Each difference is printed; the exit status is 1 if
there is any. The agent does the same each --sync-period and repairs what it finds; with
--repair it does so at once, and the exit status is that of a second look.

Where no agent answers, --source and the other flags of nodeproxy run say what the kernel
should hold: give those that the agent had. Nothing is changed then.`,
		Example: `  nodeproxy verify
  nodeproxy verify --repair
  nodeproxy verify -o json
  nodeproxy verify --source file:/etc/nodeproxy/manifests --cluster-cidr 10.244.0.0/16   # without an agent`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.instance = o.instance
			if err := errors.Join(validateInstance(a.instance), a.checkOutput()); err != nil {
				return err
			}
			found, err := a.verify(cmd.Context())
			remedy := "nodeproxy verify --repair removes them at once"
			if err == nil && o.source != "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "--source is ignored: an agent runs, and knows what the kernel should hold")
			}
			if errors.Is(err, admin.ErrNoAgent) {
				if repair {
					return fmt.Errorf("%w, and it is the agent that repairs: start it, and its first sync does", err)
				}
				remedy = "the first sync of an agent with these flags removes them"
				found, err = a.verifyRemains(cmd, &o, err)
			}
			if err != nil {
				return err
			}
			err = a.print(cmd.OutOrStdout(), found, func(w io.Writer) { printDifferences(w, found) })
			if err != nil || len(found) == 0 {
				return err
			}
			if !repair {
				return fmt.Errorf("%s; %s", numberOf(len(found), "difference"), remedy)
			}
			return a.repair(cmd, len(found))
		},
	}
	registerRunFlags(cmd, &o)
	a.registerOutput(cmd)
	cmd.Flags().BoolVar(&repair, "repair", false, "make the agent repair at once what is found")
	return cmd
}

// repair makes the agent repair what was found, and looks again.
func (a *asking) repair(cmd *cobra.Command, found int) error {
	if err := admin.Post(cmd.Context(), admin.Socket(a.instance), "/v1/repair"); err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	left, err := a.verify(cmd.Context())
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%s left after the repair; the first is %s", numberOf(len(left), "difference"), left[0])
	}
	if err == nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "repaired %s\n", numberOf(found, "difference"))
	}
	return err
}

func (a *asking) verify(ctx context.Context) ([]view.Difference, error) {
	found := []view.Difference{}
	return found, admin.Get(ctx, admin.Socket(a.instance), "/v1/verify", nil, &found)
}

func printDifferences(w io.Writer, found []view.Difference) {
	if len(found) == 0 {
		fmt.Fprintln(w, "the kernel holds what it should")
	}
	for _, d := range found {
		fmt.Fprintln(w, d)
	}
}

// verify compares a mode with its kernel, on the goroutine that syncs it.
func verify(ctx context.Context, dp dataplane.Dataplane) ([]view.Difference, error) {
	switch d := inner(dp).(type) {
	case *ebpf.Dataplane:
		return d.Verify()
	case *iptables.Dataplane:
		return d.Verify(ctx)
	}
	return nil, errors.New("this mode cannot be compared with the kernel")
}

// askRepair has the loop make a full sync.
func askRepair(ctx context.Context, repair chan<- func(error)) error {
	done := make(chan error, 1)
	select {
	case repair <- func(err error) { done <- err }:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
