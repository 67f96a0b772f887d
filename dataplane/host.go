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
	"github.com/nodeproxy/nodeproxy/service"
)

// ReadHost asks the kernel what this network namespace is: its addresses, those
// of interfaces and those that routes make local, and its uplinks.
func ReadHost() (service.Host, error) {
	var h service.Host
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return h, fmt.Errorf("list interface addresses: %w", err)
	}
	for _, a := range list {
		// One that is still being checked for duplicates is not usable yet;
		// an update comes when it is.
		if a.Flags&unix.IFA_F_TENTATIVE != 0 && a.Flags&unix.IFA_F_OPTIMISTIC == 0 {
			continue
		}
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			h.Addresses = append(h.Addresses, addr.Unmap())
		}
	}
	var uplinks []int
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return h, fmt.Errorf("list routes: %w", err)
		}
		for i := range routes {
			takeRoute(&h, &routes[i])
			uplinks = append(uplinks, gatewayLinks(&routes[i])...)
		}
	}
	if h.Uplinks, err = linkNames(uplinks); err != nil {
		return h, err
	}
	sortHost(&h)
	return h, nil
}

func sortHost(h *service.Host) {
	slices.SortFunc(h.Addresses, netip.Addr.Compare)
	h.Addresses = slices.Compact(h.Addresses)
	slices.SortFunc(h.Networks, netip.Prefix.Compare)
	h.Networks = slices.Compact(h.Networks)
}

// takeRoute adds what a route makes local: an address, or a network, but for
// that of loopback. It looks at the table local alone, in which the kernel
// looks whether a packet has arrived (ip-route(8)); others hold their own
// addresses, as those of a VRF do.
func takeRoute(h *service.Host, r *netlink.Route) {
	if r.Table != unix.RT_TABLE_LOCAL || r.Type != unix.RTN_LOCAL || r.Dst == nil {
		return
	}
	addr, ok := netip.AddrFromSlice(r.Dst.IP)
	if !ok {
		return
	}
	addr = addr.Unmap()
	bits, _ := r.Dst.Mask.Size()
	switch {
	case bits == addr.BitLen():
		h.Addresses = append(h.Addresses, addr)
	case !addr.IsLoopback():
		h.Networks = append(h.Networks, netip.PrefixFrom(addr, bits).Masked())
	}
}

// gatewayLinks are the indexes of the interfaces by which a route leads to a
// gateway. A default route without one, as those of tunnels, counts too: who is
// at the other end of it forwards.
func gatewayLinks(r *netlink.Route) []int {
	if r.Type != unix.RTN_UNICAST {
		return nil
	}
	everything := isDefault(r)
	var out []int
	if r.LinkIndex != 0 && (everything || r.Gw != nil || r.Via != nil) {
		out = append(out, r.LinkIndex)
	}
	for _, hop := range r.MultiPath {
		if hop.LinkIndex != 0 && (everything || hop.Gw != nil || hop.Via != nil) {
			out = append(out, hop.LinkIndex)
		}
	}
	return out
}

// linkNames returns the names of interfaces, sorted. One that is gone meanwhile
// has none.
func linkNames(indexes []int) ([]string, error) {
	slices.Sort(indexes)
	indexes = slices.Compact(indexes)
	if len(indexes) == 0 {
		return nil, nil
	}
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var names []string
	for _, l := range links {
		if _, is := slices.BinarySearch(indexes, l.Attrs().Index); is {
			names = append(names, l.Attrs().Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// hostSettle joins the updates that come in bursts when an interface goes up.
const hostSettle = 50 * time.Millisecond

// hostPoll is how often the kernel is asked without being told of a change.
const hostPoll = 30 * time.Second

// WatchHost sends what [ReadHost] returns to out, at once and whenever it
// changes, until ctx ends, whose error it returns.
func WatchHost(ctx context.Context, log *slog.Logger, out chan<- service.Host) error {
	follower := &netevents.Follower{Log: log}
	addrs, err := follower.Addresses(ctx)
	if err != nil {
		return err
	}
	routes, err := follower.Routes(ctx, func() func(*netlink.RouteUpdate) bool { return new(gateways).concerns })
	if err != nil {
		return err
	}
	var last service.Host
	for first := true; ; first = false {
		now, err := ReadHost()
		switch {
		case err != nil:
			log.Warn("addresses are not up to date", "error", err)
		case first || !now.Equal(last):
			last = now
			select {
			case out <- now:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := nextUpdate(ctx, addrs, routes); err != nil {
			return err
		}
	}
}

// nextUpdate returns when the kernel is to be asked again.
func nextUpdate(ctx context.Context, addrs, routes <-chan struct{}) error {
	poll := time.NewTimer(hostPoll)
	defer poll.Stop()
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-settled:
			return nil
		case <-poll.C:
			return nil
		case <-addrs:
		case <-routes:
		}
		if settled == nil {
			settled = time.After(hostSettle)
		}
	}
}

// gateways is what one subscription has told of routes by gateways.
type gateways struct {
	// known are the interfaces that a gateway's route was seen to lead by. A
	// routing daemon changes thousands of routes by them, which say nothing new.
	known map[int]bool
}

// concerns reports whether a change of a route may change a [service.Host]. That
// the last gateway's route by an interface went is seen at the next poll; a
// default route's end at once.
func (g *gateways) concerns(r *netlink.RouteUpdate) bool {
	if r.Route.Type == unix.RTN_LOCAL {
		return true
	}
	links := gatewayLinks(&r.Route)
	if r.Type == unix.RTM_DELROUTE {
		for _, l := range links {
			delete(g.known, l)
		}
		return len(links) > 0 && isDefault(&r.Route)
	}
	fresh := false
	for _, l := range links {
		if !g.known[l] {
			if g.known == nil {
				g.known = map[int]bool{}
			}
			g.known[l], fresh = true, true
		}
	}
	return fresh
}

func isDefault(r *netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	bits, _ := r.Dst.Mask.Size()
	return bits == 0
}
