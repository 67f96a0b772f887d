package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/nodeproxy/nodeproxy/dataplane"
	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
	"github.com/nodeproxy/nodeproxy/dataplane/iptables"
	"github.com/nodeproxy/nodeproxy/dataplane/loopback"
	"github.com/nodeproxy/nodeproxy/service"
)

// openDataplane sets up a mode, and what takes the node over from another.
func openDataplane(ctx context.Context, opts *runOptions, mode string, log *slog.Logger) (dataplane.Dataplane, *handover, error) {
	h, err := prepare(ctx, opts, mode, log)
	if err != nil {
		return nil, nil, err
	}
	if mode == modeEBPF {
		o := opts.ebpf(log)
		o.PassUnknown = h.chains
		dp, err := ebpf.New(o)
		if err != nil {
			return nil, nil, fmt.Errorf("set up ebpf mode: %w", ebpf.ExplainRefusal(err))
		}
		sayMapMemory(o, log)
		h.settled = func() { dp.SetPassUnknown(false) }
		h.reserve = dp.Reserve
		h.conntrack = dp.UsesConntrack()
		if err := h.keepPorts(); err != nil {
			return nil, nil, errors.Join(err, dp.Close())
		}
		var mode dataplane.Dataplane = dp
		if h.chains {
			mode = &carrier{dp, log, fromIPTables(dp)}
		}
		// Programs translate most sockets that dial loopback addresses. The relay serves
		// what they leave: SCTP, for which none is asked, and sockets that are bound to
		// a loopback address, which can reach nothing else.
		return loopback.New(mode, log, service.TCP, service.UDP, service.SCTP), h, nil
	}
	dp, err := iptables.New(ctx, opts.iptables(log))
	if err != nil {
		return nil, nil, fmt.Errorf("set up iptables mode: %w", err)
	}
	log.Info("iptables back end", "backend", string(dp.Backend()))
	var wrapped dataplane.Dataplane = dp
	if h.programs {
		wrapped = &carrier{dp, log, fromEBPF(h.ebpf)}
	}
	return loopback.New(wrapped, log, service.TCP, service.UDP, service.SCTP), h, nil
}

// chooseMode picks ebpf where all that it needs is there, and says why it did not.
func chooseMode(features []ebpf.Feature) (mode, why string) {
	var missing []string
	for _, f := range features {
		if f.Required && !f.Present {
			missing = append(missing, fmt.Sprintf("%s (%v)", f.Name, f.Err))
		}
	}
	if len(missing) > 0 {
		return modeIPTables, "ebpf mode lacks " + strings.Join(missing, ", ")
	}
	return modeEBPF, ""
}

// features are what ebpf mode uses, of the kernel and of this machine.
func (o *runOptions) features() []ebpf.Feature {
	out := ebpf.Probe()
	if o.sockets {
		out = append(out, ebpf.ProbeCgroup(o.cgroup))
	}
	return out
}

// chosen is a mode at work.
type chosen struct {
	dataplane.Dataplane
	*handover
	mode string
	why  string // of auto: why it is not ebpf
	// awaitsCgroup tells that auto would have taken ebpf if there were a cgroup.
	awaitsCgroup bool
}

// openMode sets up the mode that was asked for. In auto, one that turns out not to
// work only when it is set up is no end either.
func (o *runOptions) openMode(ctx context.Context, log *slog.Logger) (*chosen, error) {
	c := &chosen{mode: o.mode}
	if o.mode == modeAuto {
		features := o.features()
		c.mode, c.why = chooseMode(features)
		c.awaitsCgroup = onlyCgroup(features)
	}
	var err error
	c.Dataplane, c.handover, err = openDataplane(ctx, o, c.mode, log)
	if err != nil && o.mode == modeAuto && c.mode == modeEBPF && ctx.Err() == nil {
		c.mode, c.why = modeIPTables, err.Error()
		var second error
		if c.Dataplane, c.handover, second = openDataplane(ctx, o, c.mode, log); second != nil {
			return nil, errors.Join(err, second)
		}
		err = nil
	}
	if err != nil {
		return nil, err
	}
	switch {
	case c.why != "":
		log.Warn("mode auto: iptables", "since", c.why)
	case o.mode == modeAuto:
		log.Info("mode auto: ebpf, since all that it needs is there")
	}
	return c, nil
}

func (o *runOptions) ebpf(log *slog.Logger) ebpf.Options {
	return ebpf.Options{
		Instance: o.instance, Sizes: o.sizes, MapMemory: o.mapMemory << 20, CgroupPath: o.cgroup, PacketsOnly: !o.sockets, Interfaces: o.interfaces,
		Forwarding: ebpf.Forwarding(o.forwarding), PingServiceIPs: o.pingServiceIPs, Terminate: ebpf.Terminate(o.terminate), XDP: ebpf.XDP(o.xdp), XDPInterfaces: o.xdpInterfaces, Logger: log,
	}
}

func (o *runOptions) iptables(log *slog.Logger) iptables.Options {
	return iptables.Options{
		Backend: iptables.Backend(o.backend), MasqueradeBit: o.masqueradeBit, PingServiceIPs: o.pingServiceIPs,
		Instance: o.instance, Log: log,
	}
}
