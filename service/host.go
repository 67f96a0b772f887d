package service

import (
	"net/netip"
	"slices"
)

// Host is what the kernel says of this machine. It is a value: a receiver
// must not change what it points to.
type Host struct {
	// Addresses are this machine's own, loopback included, sorted: those of its
	// interfaces, and those that a route of type local makes its own one by one
	// (as load balancers that deliver packets unchanged ask for).
	Addresses []netip.Addr
	// Networks are local by a route too, each wider than one address, sorted;
	// 127.0.0.0/8 is not named.
	Networks []netip.Prefix
	// Uplinks are the names of the interfaces by which this machine reaches a
	// gateway, sorted: what is forwarded by one of them may come back.
	Uplinks []string
}

// Equal reports whether two say the same.
func (h Host) Equal(o Host) bool {
	return slices.Equal(h.Addresses, o.Addresses) && slices.Equal(h.Networks, o.Networks) && slices.Equal(h.Uplinks, o.Uplinks)
}

// networksOf returns the prefixes of a family.
func networksOf(prefixes []netip.Prefix, family Family) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range prefixes {
		if FamilyOf(p.Addr()) == family {
			out = append(out, p)
		}
	}
	return out
}

// inside reports whether some prefix has an address.
func inside(prefixes []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}
