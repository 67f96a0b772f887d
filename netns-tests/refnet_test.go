package netnstests

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
	"github.com/nodeproxy/nodeproxy/internal/flows"
	"github.com/nodeproxy/nodeproxy/internal/nettest"
	"github.com/nodeproxy/nodeproxy/service"
)

// refNet is a node with three neighbours that can have any address: Pods that
// dial, endpoints that answer, and what is outside. Each hangs on a link of its
// own, with the node as its gateway.
type refNet struct {
	mode string // of refModes
	// instance is the name of what eBPF modes pin.
	instance string
	ns       map[string]netns.NsHandle
	// cgroup, if set, is where threads are that act for a place on the node; see
	// threadCgroup.
	cgroup string
	// vip is an address of a load balancer that the node has at the moment.
	vip     netip.Addr
	placed  []placedAddr
	servers []interface{ Close() error }
}

type placedAddr struct {
	place string
	addr  netip.Addr
}

var refPlaces = []string{"node", "pods", "endpoints", "outside"}

// refGateway is the node's address on the links, by family.
var refGateway = [2]netip.Addr{netip.MustParseAddr("169.254.77.1"), netip.MustParseAddr("fe80::77")}

// refOwn are addresses that every place keeps.
var refOwn = [2]netip.Addr{netip.MustParseAddr("169.254.77.2"), netip.MustParseAddr("fe80::88")}

// refCount numbers them.
var refCount atomic.Int64

// newRefNet makes the node with these addresses, for a mode of [refModes].
func newRefNet(t *testing.T, mode string, local []netip.Addr) *refNet {
	t.Helper()
	nettest.RequireRoot(t)
	n := &refNet{mode: mode, instance: fmt.Sprintf("reference-%d-%d", os.Getpid(), refCount.Add(1)), ns: map[string]netns.NsHandle{}}
	if mode == ebpfSockets {
		n.cgroup = threadCgroup(t)
	}
	if strings.HasPrefix(mode, "ebpf") {
		t.Cleanup(func() {
			if err := ebpf.Cleanup(n.ebpfOptions()); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		n.stop()
		for _, h := range n.ns {
			h.Close()
		}
	})
	for _, place := range refPlaces {
		n.ns[place] = newNamespace(t)
	}
	n.do(t, "node", func() error {
		for name, value := range map[string]string{
			"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1",
			"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0",
			"net/ipv6/conf/default/accept_dad": "0",
			"net/ipv4/icmp_ratemask":           "0", "net/ipv6/icmp/ratemask": "255", // no refusal is left out
		} {
			if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	for _, place := range refPlaces[1:] {
		n.link(t, place)
	}
	n.do(t, "node", func() error {
		uplink, err := netlink.LinkByName("to-outside")
		if err != nil {
			return err
		}
		for _, a := range local {
			if err := addAddr(uplink, a); err != nil && !a.IsLoopback() {
				return err
			}
		}
		for f, dst := range []string{"0.0.0.0/0", "::/0"} { // what is nowhere else is outside
			if err := route(uplink, netip.MustParsePrefix(dst), refOwn[f]); err != nil {
				return err
			}
		}
		return nil
	})
	return n
}

// newNamespace makes an unnamed network namespace; it is gone with its handle.
func newNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	type result struct {
		h   netns.NsHandle
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends in its new namespace
		h, err := netns.New()
		if err == nil {
			err = upAndQuick("lo")
		}
		done <- result{h, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.h
}

// do runs f in a place.
func (n *refNet) do(t *testing.T, place string, f func() error) {
	t.Helper()
	if err := n.in(place, f); err != nil {
		t.Fatalf("%s: %v", place, err)
	}
}

func (n *refNet) in(place string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked: see newNamespace
		err := netns.Set(n.ns[place])
		if n.cgroup != "" && place != "outside" {
			err = errors.Join(err, joinThreads(n.cgroup))
			// The main thread does not end with the goroutine.
			defer joinThreads(filepath.Dir(n.cgroup))
		}
		if err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// link joins a place to the node and gives it the node as gateway.
func (n *refNet) link(t *testing.T, place string) {
	t.Helper()
	n.do(t, "node", func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "to-" + place}, PeerName: "eth0", PeerNamespace: netlink.NsFd(n.ns[place])}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		for _, gw := range refGateway {
			if err := addAddr(veth, gw); err != nil {
				return err
			}
		}
		return upAndQuick(veth.Name)
	})
	n.do(t, place, func() error {
		if err := upAndQuick("eth0"); err != nil {
			return err
		}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for f, dst := range []string{"0.0.0.0/0", "::/0"} {
			// With its last address an interface loses its routes: one stays.
			if err := addAddr(eth0, refOwn[f]); err != nil {
				return err
			}
			if err := route(eth0, netip.MustParsePrefix(dst), refGateway[f]); err != nil {
				return err
			}
		}
		return nil
	})
}

// upAndQuick sets a link up. Addresses on it are usable at once.
func upAndQuick(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_dad", []byte("0"), 0o644); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func addAddr(link netlink.Link, a netip.Addr) error {
	return netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen())), Flags: unix.IFA_F_NODAD})
}

func route(link netlink.Link, dst netip.Prefix, via netip.Addr) error {
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(dst)}
	if via.IsValid() {
		r.Gw, r.Flags = via.AsSlice(), int(netlink.FLAG_ONLINK)
	}
	return netlink.RouteReplace(r)
}

// place gives every address of a case to the place where it belongs.
func (n *refNet) place(t *testing.T, changes service.Changes, todo []flows.Flow) {
	t.Helper()
	put := map[netip.Addr]string{}
	for _, a := range addrsOf(changes) {
		put[a] = "endpoints"
	}
	for _, f := range todo {
		src := netip.MustParseAddr(f.Source.IP)
		if place := map[string]string{"pod": "pods", "external": "outside", "external-blocked": "outside"}[f.Source.Kind]; place != "" && put[src] == "" {
			put[src] = place
		}
	}
	n.put(t, put)
}

// put gives addresses to places, in place of those that they had.
func (n *refNet) put(t *testing.T, put map[netip.Addr]string) {
	t.Helper()
	n.stop()
	for _, p := range n.placed {
		n.do(t, p.place, func() error { return onEth0(p.addr, netlink.AddrDel) })
		n.do(t, "node", func() error { // it may be elsewhere the next time
			link, err := netlink.LinkByName("to-" + p.place)
			if err != nil {
				return err
			}
			return netlink.RouteDel(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.PrefixFrom(p.addr, p.addr.BitLen()))})
		})
	}
	n.placed = nil
	for a, place := range put {
		n.placed = append(n.placed, placedAddr{place, a})
		n.do(t, place, func() error { return onEth0(a, netlink.AddrReplace) })
		n.do(t, "node", func() error {
			link, err := netlink.LinkByName("to-" + place)
			if err != nil {
				return err
			}
			return route(link, netip.PrefixFrom(a, a.BitLen()), netip.Addr{})
		})
	}
}

func onEth0(a netip.Addr, do func(netlink.Link, *netlink.Addr) error) error {
	return onLink("eth0", a, do)
}

func onLink(name string, a netip.Addr, do func(netlink.Link, *netlink.Addr) error) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return do(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen())), Flags: unix.IFA_F_NODAD})
}

// isNodes reports whether the node has an address.
func (n *refNet) isNodes(a netip.Addr) bool {
	return slices.Contains(flows.LocalAddresses, a) || slices.Contains(refGateway[:], a) || a == n.vip
}

func (n *refNet) stop() {
	for _, s := range n.servers {
		s.Close()
	}
	n.servers = nil
}

// serve answers at every endpoint with its own address and the source it saw.
func (n *refNet) serve(t *testing.T, changes service.Changes) {
	t.Helper()
	seen := map[string]bool{}
	for _, s := range changes.EndpointSlices {
		for _, port := range s.Ports {
			for _, ep := range s.Endpoints {
				at := netip.AddrPortFrom(ep.Addr, port.Number)
				if key := fmt.Sprint(at, port.Protocol); port.Protocol != service.SCTP && !seen[key] {
					seen[key] = true
					n.do(t, "endpoints", func() error { return n.listen(at, port.Protocol) })
				}
			}
		}
	}
}

func (n *refNet) listen(at netip.AddrPort, protocol service.Protocol) error {
	if protocol == service.UDP {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		n.servers = append(n.servers, c)
		go func() {
			for b := make([]byte, 16); ; {
				_, from, err := c.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				c.WriteToUDPAddrPort(fmt.Appendf(nil, "%s %s\n", at, from), from)
			}
		}()
		return nil
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return err
	}
	n.servers = append(n.servers, l)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s %s\n", at, c.RemoteAddr())
			c.Close()
		}
	}()
	return nil
}

// refAnswer is what a backend said.
type refAnswer struct {
	backend, source netip.AddrPort
}

// dial begins a flow with a packet's addresses, from any port.
func (n *refNet) dial(from string, p service.Packet, limit time.Duration) (a refAnswer, err error) {
	err = n.in(from, func() error {
		d := net.Dialer{Timeout: limit, LocalAddr: &net.TCPAddr{IP: p.Source.Addr().AsSlice()}}
		network := "tcp"
		if p.Protocol == service.UDP {
			network, d.LocalAddr = "udp", &net.UDPAddr{IP: p.Source.Addr().AsSlice()}
		}
		if p.Source.Addr().IsLoopback() { // a socket that is bound to it cannot leave the node
			d.LocalAddr = nil
		}
		c, err := d.Dial(network, p.Destination.String())
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(limit))
		if network == "udp" {
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
		}
		b := make([]byte, 128)
		size, err := c.Read(b)
		if err != nil {
			return err
		}
		words := strings.Fields(string(bytes.TrimSpace(b[:size])))
		if len(words) != 2 {
			return fmt.Errorf("answer %q", b[:size])
		}
		a.backend, a.source = netip.MustParseAddrPort(words[0]), netip.MustParseAddrPort(words[1])
		return nil
	})
	return a, err
}
