package dataplane

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/dataplane/netevents"
)

// LocalAddresses lists the addresses on the interfaces of this network
// namespace, sorted, loopback included.
func LocalAddresses() ([]netip.Addr, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list interface addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		// One that is still being checked for duplicates is not usable yet;
		// an update comes when it is.
		if a.Flags&unix.IFA_F_TENTATIVE != 0 && a.Flags&unix.IFA_F_OPTIMISTIC == 0 {
			continue
		}
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			out = append(out, addr.Unmap())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

// addressSettle joins the updates that come in bursts when an interface goes up.
const addressSettle = 50 * time.Millisecond

// addressPoll is how often addresses are listed without being told of a change.
const addressPoll = 30 * time.Second

// WatchAddresses sends the addresses of this node's interfaces to out, at once
// and whenever they change, until ctx ends, whose error it returns.
func WatchAddresses(ctx context.Context, log *slog.Logger, out chan<- []netip.Addr) error {
	updates, err := (&netevents.Follower{Log: log}).Addresses(ctx)
	if err != nil {
		return err
	}
	var last []netip.Addr
	for first := true; ; first = false {
		now, err := LocalAddresses()
		switch {
		case err != nil:
			log.Warn("addresses are not up to date", "error", err)
		case first || !slices.Equal(now, last):
			last = now
			select {
			case out <- now:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := nextUpdate(ctx, updates); err != nil {
			return err
		}
	}
}

func nextUpdate(ctx context.Context, updates <-chan struct{}) error {
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-settled:
			return nil
		case <-time.After(addressPoll):
			return nil
		case <-updates:
			if settled == nil {
				settled = time.After(addressSettle)
			}
		}
	}
}
