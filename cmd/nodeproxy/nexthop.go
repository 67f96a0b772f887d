package main

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nextHop says by which way this node reaches an address; see [admin.Hop].
func nextHop(to netip.Addr) string {
	routes, err := netlink.RouteGet(to.AsSlice())
	if err != nil || len(routes) == 0 {
		return "none: no route leads there"
	}
	r := routes[0]
	if r.Type == unix.RTN_LOCAL {
		return "this node itself"
	}
	device := linkName(r.LinkIndex)
	if r.Gw == nil {
		return "on " + device
	}
	return fmt.Sprintf("via %s on %s", r.Gw, device)
}

func linkName(index int) string {
	l, err := netlink.LinkByIndex(index)
	if err != nil {
		return fmt.Sprint("interface ", index)
	}
	return l.Attrs().Name
}

// leaves says by which interface this node forwards packets to an address; see
// [admin.Server.Leaves].
func leaves(to netip.Addr) string {
	routes, err := netlink.RouteGet(to.AsSlice())
	if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_UNICAST {
		return ""
	}
	return linkName(routes[0].LinkIndex)
}
