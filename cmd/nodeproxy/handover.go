package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
	"github.com/nodeproxy/nodeproxy/dataplane/iptables"
	"github.com/nodeproxy/nodeproxy/service"
)

const (
	// drainLimit is how long the state of the mode before is kept for flows
	// that do not end.
	drainLimit = time.Hour
	// defaultDrainPoll is how often they are counted.
	defaultDrainPoll = 5 * time.Second
)

// handover takes a node over from the one that translated before: from our own
// other mode, whose open flows go on until they end, or from kube-proxy. The
// new mode is in place before anything of the old one goes, so that no new
// connection fails.
type handover struct {
	log       *slog.Logger
	poll      time.Duration
	kubeProxy bool // its chains are to be removed
	chains    bool // iptables chains, ours or kube-proxy's, are here, and this is ebpf mode
	programs  bool // our programs are here, and this is iptables mode
	ebpf      ebpf.Options
	// conntrack has the flows of both modes: those that are open need nothing of the
	// old one.
	conntrack bool
	// reserve keeps the ports of the old mode's connections from the new one.
	reserve func([]ebpf.Reply) error
	// settled is called when the old mode's flows have ended.
	settled func()
}

// prepare looks at what is in the kernel. It refuses to start beside
// kube-proxy's rules: two proxies at once decide by chance.
func prepare(ctx context.Context, opts *runOptions, mode string, log *slog.Logger) (*handover, error) {
	h := &handover{log: log, poll: opts.drainPoll, ebpf: opts.ebpf(log), settled: func() {}}
	theirs, err := iptables.KubeProxy(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for kube-proxy's rules: %w", err)
	}
	h.kubeProxy = len(theirs) > 0
	if h.kubeProxy && !opts.removeKubeProxy {
		return nil, fmt.Errorf("kube-proxy's rules are here: %s; stop it and run kube-proxy --cleanup, "+
			"or give --remove-kube-proxy-rules and they go once ours are in place", describe(theirs))
	}
	if mode == modeEBPF {
		own, err := iptables.Leftovers(ctx)
		if err != nil {
			return nil, fmt.Errorf("look for rules of iptables mode: %w", err)
		}
		if h.chains = len(own) > 0 || h.kubeProxy; h.chains {
			log.Info("taking over from iptables mode; its flows go on until they end", "found", describe(append(own, theirs...)))
		}
		return h, nil
	}
	if h.programs, err = ebpf.Leftover(h.ebpf); err != nil {
		return nil, fmt.Errorf("look for programs of ebpf mode: %w", err)
	}
	if h.programs {
		log.Info("taking over from ebpf mode; its flows go on until they end")
		// Flows of ebpf mode, of other nodes too, may have the ports of older ones.
		if n, err := iptables.ForgetFrozenFlows(); err != nil {
			log.Warn("flows of other nodes in ebpf mode may stall", "error", err)
		} else if n > 0 {
			log.Info("conntrack was off; TCP entries from before deleted", "entries", n)
		}
	}
	return h, nil
}

// describe lists what was found, in one line that stays readable.
func describe(found []iptables.Found) string {
	var out []string
	for _, f := range found {
		names := f.Chains
		more := ""
		if len(names) > 3 {
			names, more = names[:3], fmt.Sprintf(" and %d more", len(f.Chains)-3)
		}
		out = append(out, fmt.Sprintf("%s in %s%s", strings.Join(names, ", "), f.Where, more))
	}
	return strings.Join(out, "; ")
}

// finish is called when the new mode is in place. It returns when nothing of
// the old one is left, or ctx ends; then the next start goes on with it.
func (h *handover) finish(ctx context.Context) {
	if h.kubeProxy && !h.chains {
		h.report("kube-proxy's rules removed", iptables.RemoveKubeProxy(ctx))
	}
	switch {
	case h.chains:
		h.report("iptables mode ended; what is open goes on", h.drainChains(ctx))
	case h.programs:
		h.report("ebpf mode ended", h.drainPrograms(ctx))
	}
}

func (h *handover) report(done string, err error) {
	switch {
	case err == nil:
		h.log.Info(done)
	case !errors.Is(err, context.Canceled):
		h.log.Error("taking over", "error", err)
	}
}

// drainChains removes what decides on new flows at once. What lets open ones pass goes at
// once too where conntrack has the flows of both modes, and else when there are none: UDP
// is not waited for, since its next packet meets the programs first.
func (h *handover) drainChains(ctx context.Context) error {
	err := iptables.Retire(ctx)
	if h.kubeProxy {
		err = errors.Join(err, iptables.RetireKubeProxy(ctx))
	}
	if err != nil {
		return err
	}
	if err := h.keepPorts(); err != nil { // of those that began meanwhile
		return err
	}
	if !h.conntrack {
		err = h.wait(ctx, func() (bool, error) {
			flows, err := iptables.TranslatedFlows()
			udp := func(f iptables.Translated) bool { return f.Protocol == unix.IPPROTO_UDP }
			return len(slices.DeleteFunc(flows, udp)) == 0, err
		})
	}
	if err != nil {
		return err
	}
	h.settled()
	err = iptables.End(ctx)
	if h.kubeProxy {
		err = errors.Join(err, iptables.RemoveKubeProxy(ctx))
	}
	return err
}

// keepPorts reserves the ports of connections that conntrack translates.
func (h *handover) keepPorts() error {
	if !h.chains || h.conntrack {
		return nil
	}
	flows, err := iptables.TranslatedFlows()
	if err != nil {
		return err
	}
	var replies []ebpf.Reply
	for _, f := range flows {
		if f.Protocol == unix.IPPROTO_TCP { // UDP begins anew with the next packet
			replies = append(replies, ebpf.Reply{From: f.From, To: f.To})
		}
	}
	return h.reserve(replies)
}

// drainPrograms empties the frontends, so that new flows pass on to netfilter,
// and keeps the programs for those that are open. It attaches nothing: where
// ebpf mode was told to attach is not known here.
func (h *handover) drainPrograms(ctx context.Context) error {
	o := h.ebpf
	o.Drain = true
	old, err := ebpf.New(o)
	if err != nil {
		return fmt.Errorf("take over programs: %w", err)
	}
	err = old.Sync(ctx, &service.Table{}, nil)
	if err == nil {
		err = h.wait(ctx, old.Idle)
	}
	if err := errors.Join(err, old.Close()); err != nil {
		return err
	}
	return ebpf.Cleanup(h.ebpf)
}

// wait returns when idle says yes, or after drainLimit.
func (h *handover) wait(ctx context.Context, idle func() (bool, error)) error {
	limit := time.After(drainLimit)
	for {
		if done, err := idle(); err != nil || done {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-limit:
			h.log.Warn("flows of the mode before are still open; they end now", "after", drainLimit)
			return nil
		case <-time.After(h.poll):
		}
	}
}
