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
	device := fmt.Sprint("interface ", r.LinkIndex)
	if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
		device = l.Attrs().Name
	}
	if r.Gw == nil {
		return "on " + device
	}
	return fmt.Sprintf("via %s on %s", r.Gw, device)
}
