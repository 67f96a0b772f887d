package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nodeproxy/nodeproxy/dataplane"
	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
	"github.com/nodeproxy/nodeproxy/dataplane/iptables"
	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

// verifyFlags are those of run on which it depends what the kernel should hold,
// and where Services come from. verify takes all of run's, so that a command
// line can be copied; the others are not shown.
var verifyFlags = []string{
	"source", "kubeconfig", "master", "config", "instance", "hostname-override", "node-ip", "cluster-cidr", "nodeport-addresses", "external-ip-cidrs",
	"masquerade-all", "ping-service-ips", "iptables-masquerade-bit", "iptables-localhost-nodeports", "iptables-backend",
	"detect-local-mode", "pod-bridge-interface", "pod-interface-name-prefix", "interfaces", "sockets",
}

// registerRunFlags adds run's flags to a command that does what run would do.
func registerRunFlags(cmd *cobra.Command, o *runOptions) {
	o.register(cmd.Flags())
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		f.Hidden = f.Hidden || !slices.Contains(verifyFlags, f.Name)
	})
}

// readPatience is how long a source may take for its first complete list.
const readPatience = 30 * time.Second

// errRead is for a source that took too long.
var errRead = fmt.Errorf("the source had nothing complete to list within %s", readPatience)

// verifyRemains compares what an agent left in the kernel with what it would
// make of a source: nobody else knows what the kernel should hold.
func (a *asking) verifyRemains(cmd *cobra.Command, o *runOptions, noAgent error) ([]view.Difference, error) {
	if o.source == "" && o.client.Kubeconfig == "" && o.client.Master == "" && !inCluster() {
		return nil, fmt.Errorf("%w, so nothing says what the kernel should hold: start the agent, or pass its --source or --kubeconfig, and its other flags of nodeproxy run", noAgent)
	}
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	if _, err := o.takeConfig(); err != nil {
		return nil, err
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	_, mode, err := a.remains(cmd, noAgent)
	if err != nil {
		return nil, err
	}
	compare, err := o.comparison(cmd.Context(), mode, log)
	if err != nil {
		return nil, err
	}
	var found []view.Difference
	err = o.once(cmd.Context(), log, func(ctx context.Context, table *service.Table) (err error) {
		found, err = compare(ctx, table)
		return err
	})
	return append([]view.Difference{}, found...), err
}

// comparison returns what compares a mode's state with a Table.
func (o *runOptions) comparison(ctx context.Context, mode string, log *slog.Logger) (func(context.Context, *service.Table) ([]view.Difference, error), error) {
	if mode == modeEBPF {
		r, err := ebpf.NewReader(o.ebpf(log))
		if err != nil {
			return nil, err
		}
		return r.Compare, nil
	}
	dp, err := iptables.New(ctx, o.iptables(log)) // which writes nothing
	if err != nil {
		return nil, err
	}
	return dp.Compare, nil
}

// once hands the Table of the source's first complete list to look.
func (o *runOptions) once(ctx context.Context, log *slog.Logger, look func(context.Context, *service.Table) error) error {
	node, err := o.node()
	if err != nil {
		return err
	}
	if path, ok := strings.CutPrefix(o.source, filePrefix); ok {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("--source %s: %w", o.source, err)
		}
	}
	src, _, err := o.openSource(node.NodeName, log)
	if err != nil {
		return err
	}
	host, err := dataplane.ReadHost()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	seen := errRead
	loop := &dataplane.Loop{Configure: node.Config, NodeName: node.NodeName, SyncPeriod: time.Hour, Log: log,
		Dataplane: looker(func(ctx context.Context, t *service.Table) {
			seen = look(ctx, t)
			cancel()
		})}
	changes, hosts := make(chan service.Changes), make(chan service.Host, 1)
	hosts <- host
	failed := make(chan error, 1)
	go func() {
		err := src.Run(ctx, func(c service.Changes) {
			select {
			case changes <- c:
			case <-ctx.Done():
			}
		})
		if ctx.Err() != nil {
			err = nil // it was told to end
		}
		cancel()
		failed <- err
	}()
	err = loop.Run(ctx, changes, hosts)
	return cmp.Or(<-failed, err, seen)
}

// looker is a dataplane that writes nothing: it sees the Table that it should
// make true.
type looker func(context.Context, *service.Table)

// Sync implements [dataplane.Dataplane].
func (l looker) Sync(ctx context.Context, table *service.Table, _ []service.Name) error {
	l(ctx, table)
	return nil
}

// Close implements [dataplane.Dataplane].
func (looker) Close() error { return nil }
