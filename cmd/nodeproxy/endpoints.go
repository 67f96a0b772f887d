package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/forward"
	"github.com/nodeproxy/nodeproxy/service"
)

// endpointFinder chooses endpoints for port-forward and proxy, from what the
// kernel leads new flows to: the ready ones.
type endpointFinder struct {
	asking
	kernel admin.Kernel // where no agent answers
}

// open looks whether an agent answers.
func (f *endpointFinder) open(cmd *cobra.Command) error {
	err := admin.Get(cmd.Context(), admin.Socket(f.instance), "/v1/status", nil, &admin.Status{})
	if errors.Is(err, admin.ErrNoAgent) {
		f.kernel, _, err = f.remains(cmd, err)
	}
	return err
}

func (f *endpointFinder) frontends(ctx context.Context) (rows []view.Frontend, err error) {
	if f.kernel != nil {
		return f.kernel.Services(ctx)
	}
	err = admin.Get(ctx, admin.Socket(f.instance), admin.PathServices, nil, &rows)
	return rows, err
}

func (f *endpointFinder) backends(ctx context.Context) (rows []view.Backend, err error) {
	if f.kernel != nil {
		return f.kernel.Backends(ctx)
	}
	err = admin.Get(ctx, admin.Socket(f.instance), admin.PathBackends, nil, &rows)
	return rows, err
}

// ofService chooses an endpoint of a Service's port, which is a number or a
// name, or empty for the only one.
func (f *endpointFinder) ofService(ctx context.Context, name service.Name, port, protocol string) (netip.AddrPort, error) {
	frontends, err := f.frontends(ctx)
	if err != nil {
		return netip.AddrPort{}, err
	}
	found, dialled, err := choosePort(frontends, name, port, protocol)
	if err != nil {
		return netip.AddrPort{}, err
	}
	backends, err := f.backends(ctx)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return chooseBackend(backends, found, protocol, dialled)
}

// choosePort finds the port of a Service that is meant, as its name in rows, and
// its number.
func choosePort(rows []view.Frontend, name service.Name, port, protocol string) (string, uint16, error) {
	ports := map[string]uint16{} // by name in rows
	number, _ := strconv.ParseUint(port, 10, 16)
	known := false
	for _, r := range rows {
		if !isOfService(r.Service, name.String()) {
			continue
		}
		known = true
		_, portName, _ := strings.Cut(r.Service, ":")
		inside := r.LastPort != 0 && uint64(r.Port) <= number && number <= uint64(r.LastPort)
		if r.Kind != service.ClusterIP.String() || r.Protocol != protocol || port != "" && port != portName && number != uint64(r.Port) && !inside {
			continue
		}
		ports[r.Service] = r.Port
		if inside {
			ports[r.Service] = uint16(number)
		}
	}
	switch {
	case !known:
		return "", 0, forward.NotFoundError{What: fmt.Sprintf("no Service %s is translated on this node", name)}
	case len(ports) == 0:
		return "", 0, fmt.Errorf("service %s has no port %s over %s", name, port, protocol)
	case len(ports) > 1:
		return "", 0, fmt.Errorf("service %s has several ports over %s: name one", name, protocol)
	}
	for found, dialled := range ports {
		return found, dialled, nil
	}
	panic("unreachable: there is one port")
}

// chooseBackend chooses at random by share, as the kernel does; IPv4 first,
// where there are both families.
func chooseBackend(rows []view.Backend, port, protocol string, dialled uint16) (netip.AddrPort, error) {
	var all []netip.AddrPort
	var shares []float64
	for _, r := range rows {
		at, err := netip.ParseAddrPort(r.Address)
		if err != nil || r.Service != port || r.Protocol != protocol || r.List != "cluster" {
			continue
		}
		if at.Port() == 0 { // of a range of ports
			at = netip.AddrPortFrom(at.Addr(), dialled)
		}
		all, shares = append(all, at), append(shares, r.Share)
	}
	if slices.ContainsFunc(all, func(a netip.AddrPort) bool { return a.Addr().Is4() }) {
		for i := range all {
			if !all[i].Addr().Is4() {
				shares[i] = 0
			}
		}
	}
	left := rand.Float64()
	for i, at := range all {
		if left -= shares[i]; left < 0 {
			return at, nil
		}
	}
	for i, at := range all { // rounding
		if shares[i] > 0 {
			return at, nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("service %s has no ready endpoint", port)
}

// ofPod is a Pod's port, by number.
func (f *endpointFinder) ofPod(ctx context.Context, pod service.Name, port string) (netip.AddrPort, error) {
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return netip.AddrPort{}, fmt.Errorf("port %q of pod %s: use a number", port, pod)
	}
	for _, family := range service.Families {
		if addr, err := f.podAddress(ctx, pod.String(), family); err == nil {
			return netip.AddrPortFrom(addr, uint16(number)), nil
		} else if family == service.IPv6 {
			return netip.AddrPort{}, err
		}
	}
	panic("unreachable: IPv6 is the last family")
}
