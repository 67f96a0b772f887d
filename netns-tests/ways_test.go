package netnstests

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/manifest"
)

// TestEndpointOutside: a Service's endpoint is outside of the cluster, where only
// nodes are known; the network plugin masquerades what Pods send there
// (kubernetes #123954).
func TestEndpointOutside(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		w := &worn{Lab: l, column: c}
		w.rules(t, "node-a", "-t nat -A POSTROUTING -s {pods} ! -d {pods} -j MASQUERADE")
		serve(t, l, "client", echo.PortEcho, "client")
		away := svc{43, "away", []manifest.Endpoint{{Pod: "client", Addrs: lab.MustPlace("client").Addrs()}}, affine}
		apply(t, l, away)
		startAgents(t, l)
		var faults []error
		eachWay(func(network echo.Network, v6 bool) {
			for i, port := range []uint16{0, 23001} { // one of the kernel's choice, and one's own
				to := away.addr("cluster", 80, v6)
				answer, err := fromPort(t.Context(), l, "pod-a1", network, to, port)
				if want := lab.MustPlace("node-a").Addr(v6); err != nil || answer.Source.Addr() != want {
					faults = append(faults, fmt.Errorf("try %d to %s over %s: the endpoint saw %v, want %s: %w", i+1, to, network, answer.Source, want, errOrNone(err)))
				}
			}
		})
		c.judge(t, "endpoint outside", faults)
	})
}

// TestLargeDatagrams: datagrams that may be cut are larger than what the way to
// the backend takes, as an overlay's (calico #8821).
func TestLargeDatagrams(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("remote"))
		startAgents(t, l)
		(&worn{Lab: l, column: c, also: map[string][]netip.Addr{}}).overlay(t)
		var faults []error
		for _, size := range []int{100, 1400, 1472, 4000, 16000} {
			to := find("remote").addr("node-a", 80, false)
			err := sendLarge(l, "client", to, size)
			if err != nil { // the answer is large too, and tells the backend of the overlay's MTU
				err = sendLarge(l, "client", to, size)
			}
			if err != nil {
				faults = append(faults, fmt.Errorf("%d bytes: %w", size, err))
			}
		}
		c.judge(t, "large datagrams", faults)
	})
}

// sendLarge sends a datagram that may be cut on its way, and waits for an answer.
func sendLarge(l *lab.Lab, from string, to netip.AddrPort, size int) error {
	return l.Do(from, func() error {
		d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			ctlErr := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
			})
			return errors.Join(err, ctlErr)
		}}
		conn, err := d.Dial("udp4", to.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if _, err := conn.Write(make([]byte, size)); err != nil {
			return err
		}
		_, err = conn.Read(make([]byte, 1<<16))
		return err
	})
}

// unreachableWithin is when who dials has to know: over IPv6 Linux believes such
// an error at the second SYN only, also without Services.
const unreachableWithin = 3 * time.Second

// TestNoWayToTheBackend: who dials is told that the backend cannot be reached.
func TestNoWayToTheBackend(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("remote"))
		startAgents(t, l)
		var faults []error
		for _, kind := range []string{"unreachable", "prohibit"} {
			for f, cidr := range lab.PodCIDRs["node-b"] {
				ip(t, l, "node-a", []string{"-4", "-6"}[f]+" route replace {kind} {pods}", "{kind}", kind, "{pods}", cidr.String())
				ip(t, l, "node-a", []string{"-4", "-6"}[f]+" route flush cache")
			}
			for _, v6 := range []bool{false, true} {
				for from, at := range map[string]string{"pod-a1": "cluster", "client": "node-a"} {
					ctx, cancel := context.WithTimeout(t.Context(), unreachableWithin)
					_, err := l.Dial(ctx, from, echo.TCP, find("remote").addr(at, 80, v6))
					cancel()
					if !slices.ContainsFunc([]error{syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EACCES}, func(e error) bool { return errors.Is(err, e) }) {
						faults = append(faults, fmt.Errorf("%s: %s at %s: %w, want it unreachable", kind, from, at, errOrNone(err)))
					}
				}
			}
		}
		c.judge(t, "no way to the backend", faults)
	})
}

// TestStrangersOnTheNode: a container that is no Pod, whose network nobody else
// knows, dials a ClusterIP (kubernetes #24224): it is masqueraded as any stranger.
func TestStrangersOnTheNode(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("remote"))
		startAgents(t, l)
		box := newContainer(t, l, "node-a", "container")
		ip(t, l, "node-a", "link add br9 type bridge")
		ip(t, l, "node-a", "addr add 172.17.0.1/16 dev br9")
		ip(t, l, "node-a", "-6 addr add fd00:17::1/64 dev br9 nodad preferred_lft 0")
		ip(t, l, "node-a", "link set br9 up")
		box.join(t, "br9", "172.17.0.2/16", "172.17.0.1", "fd00:17::2/64", "fd00:17::1")
		w := &worn{Lab: l, column: c}
		eachWay(func(network echo.Network, v6 bool) {
			for range 4 {
				w.served = append(w.served, box.opens(network, find("remote").addr("cluster", 80, v6), lab.MustPlace("node-a").Addr(v6), "pod-b1"))
			}
		})
		c.judge(t, "strangers on the node", w.hold(t, w.served))
	})
}

// TestNodePortAtTheUnspecifiedAddress: the node dials a node port at 0.0.0.0 and
// ::, which mean loopback to who connects.
func TestNodePortAtTheUnspecifiedAddress(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("remote"))
		startAgents(t, l)
		var faults []error
		eachWay(func(network echo.Network, v6 bool) {
			to := netip.AddrPortFrom([]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[map[bool]int{true: 1}[v6]], 30002)
			if _, err := l.Dial(t.Context(), "node-a", network, to); err != nil {
				faults = append(faults, fmt.Errorf("%s over %s: %w", to, network, err))
			}
		})
		c.judge(t, "node port at the unspecified address", faults)
	})
}

// TestOwnSocketsAtServicePorts: processes of the node talk to the outside from
// ports that are node ports, or that ebpf mode masquerades with (cilium #44348).
func TestOwnSocketsAtServicePorts(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		serve(t, l, "client", machinePort, "client")
		web := find("web")
		apply(t, l, web)
		startAgents(t, l)
		var faults []error
		eachWay(func(network echo.Network, v6 bool) {
			for _, port := range []uint16{62000, uint16(30000 + web.n)} {
				to := netip.AddrPortFrom(lab.MustPlace("client").Addr(v6), machinePort)
				for _, from := range []string{"node-a", "pod-a1"} {
					answer, err := fromPort(t.Context(), l, from, network, to, port)
					if err != nil || answer.Name != "client" {
						faults = append(faults, fmt.Errorf("%s from port %d over %s: %v, %w", from, port, network, answer, errOrNone(err)))
					}
				}
			}
		})
		faults = slices.Concat(faults, unconnected(l, uint16(30000+web.n)))
		c.judge(t, "own sockets at Services' ports", faults)
	})
}

// unconnected has a socket of node-a that is bound to a port, and is connected to
// nobody, ask the client.
func unconnected(l *lab.Lab, port uint16) (faults []error) {
	for _, v6 := range []bool{false, true} {
		err := l.Do("node-a", func() error {
			conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(lab.MustPlace("node-a").Addr(v6), port)))
			if err != nil {
				return err
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
				return err
			}
			to := netip.AddrPortFrom(lab.MustPlace("client").Addr(v6), machinePort)
			if _, err := conn.WriteToUDPAddrPort([]byte("hello\n"), to); err != nil {
				return err
			}
			_, from, err := conn.ReadFromUDPAddrPort(make([]byte, 1500))
			if err == nil && unmapped(from) != to {
				err = fmt.Errorf("%s answered, want %s", from, to)
			}
			return err
		})
		if err != nil {
			faults = append(faults, fmt.Errorf("an unconnected socket at port %d: %w", port, err))
		}
	}
	return faults
}
