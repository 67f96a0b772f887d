package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/nodeproxy/nodeproxy/dataplane"
	"github.com/nodeproxy/nodeproxy/health"
	"github.com/nodeproxy/nodeproxy/service"
	"github.com/nodeproxy/nodeproxy/source"
)

func newRunCommand() *cobra.Command {
	var opts runOptions
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the node agent until it is told to stop",
		Long: `Run the node agent. It follows its source and keeps the kernel's state in step.
On SIGTERM or SIGINT it stops and leaves translation in place, so that
connections go on while it is replaced; nodeproxy cleanup removes everything.`,
		Example: `  # Services from a directory of manifests, on a node called node-a
  nodeproxy run --source file:/etc/nodeproxy/manifests --node-name node-a \
      --cluster-cidr 10.244.0.0/16 --mode iptables`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), &opts) },
	}
	opts.register(cmd.Flags())
	return cmd
}

func run(ctx context.Context, opts *runOptions) error {
	if err := opts.validate(); err != nil {
		return err
	}
	log, err := newLogger(opts.logFormat, opts.verbosity)
	if err != nil {
		return err
	}
	node, err := opts.node()
	if err != nil {
		return err
	}
	if err := requireRoot("nodeproxy run"); err != nil {
		return err
	}
	lock, err := lockNode(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	mode := opts.mode
	if mode == modeAuto {
		mode = chooseMode(log)
	}
	dp, takeOver, err := openDataplane(ctx, opts, mode, log)
	if err != nil {
		return err
	}
	defer dp.Close()
	log.Info("starting", "version", versionText(), "mode", mode,
		"node", node.NodeName, "source", opts.source, "instance", opts.instance)
	files := &source.File{Path: strings.TrimPrefix(opts.source, "file:"), Log: log}
	err = drive(ctx, dp, files, node, opts, log, takeOver.finish)
	if err == nil {
		log.Info("stopped; translation stays in place")
	}
	return err
}

// changeSource is where Services come from.
type changeSource interface {
	Run(ctx context.Context, emit func(service.Changes)) error
}

// drive joins a source to a dataplane until ctx ends. inPlace runs beside it
// after the first sync.
func drive(ctx context.Context, dp dataplane.Dataplane, src changeSource, node service.Options, opts *runOptions,
	log *slog.Logger, inPlace func(context.Context)) error {
	group, ctx := errgroup.WithContext(ctx)
	synced := false
	syncs := health.NewSyncHealth(2 * opts.syncPeriod)
	checks := &health.ServiceChecks{Log: log, Healthy: func() bool {
		ok, _ := syncs.Healthy(time.Now())
		return ok
	}}
	defer checks.Close()
	loop := &dataplane.Loop{
		Dataplane: dp,
		Configure: node.Config, NodeName: node.NodeName,
		MinSyncPeriod: opts.minSyncPeriod, SyncPeriod: opts.syncPeriod, Log: log,
		Queued: func() { syncs.Queued(time.Now()) },
		Synced: func(r dataplane.Report) {
			if r.Err == nil {
				syncs.Synced(time.Now())
			}
			checks.Update(r.Table)
			if r.Err == nil && !synced {
				synced = true
				log.Info("synced", "services", len(r.Table.Services), "unsupported", unsupported(dp), "duration", r.Duration)
				group.Go(func() error { inPlace(ctx); return nil })
			}
		},
	}
	changes := make(chan service.Changes)
	addresses := make(chan []netip.Addr)
	group.Go(func() error { return loop.Run(ctx, changes, addresses) })
	group.Go(func() error { return dataplane.WatchAddresses(ctx, log, addresses) })
	group.Go(func() error {
		return src.Run(ctx, func(c service.Changes) {
			select {
			case changes <- c:
			case <-ctx.Done():
			}
		})
	})
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// unsupported counts the Services of which a mode does not do a part.
func unsupported(dp dataplane.Dataplane) int {
	if d, ok := dp.(interface{ Unsupported() int }); ok {
		return d.Unsupported()
	}
	return 0
}

// lockPatience is how long an agent waits for the lock of one that was just
// killed: its threads do not all end at the same moment.
const lockPatience = time.Second

// lockNode keeps a second agent, of whatever instance, out of this network
// namespace, to which abstract socket names belong: the rules there can follow
// only one. The kernel frees it when the process ends, however it ends.
func lockNode(ctx context.Context) (net.Listener, error) {
	for deadline := time.Now().Add(lockPatience); ; {
		lock, err := net.Listen("unix", "@nodeproxy/lock")
		switch {
		case err == nil:
			return lock, nil
		case !errors.Is(err, syscall.EADDRINUSE):
			return nil, fmt.Errorf("take the lock of this network namespace: %w", err)
		case time.Now().After(deadline):
			return nil, errors.New("an agent runs in this network namespace already: stop it first")
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
