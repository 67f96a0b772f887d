// Package loopback serves node ports on loopback addresses in user space: it
// listens there and dials a backend for each connection or association, or each
// UDP client.
//
// Netfilter could do it for IPv4 only, with net.ipv4.conf.all.route_localnet,
// which lets packets from outside reach services that listen on 127.0.0.1
// (CVE-2020-8558). A listener opens nothing: no packet from another host
// reaches 127.0.0.1 or ::1. What it costs, these connections alone pay: they
// end with the agent.
//
// It is for what a mode does not translate when a socket connects: everything in
// iptables mode, SCTP alone in ebpf mode, since the kernel asks no program when an
// SCTP socket connects.
package loopback

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

// key is a node port on loopback.
type key struct {
	Family   service.Family
	Protocol service.Protocol
	Port     uint16
}

// addr is where the relay listens.
func (k key) addr() netip.AddrPort {
	if k.Family == service.IPv6 {
		return netip.AddrPortFrom(netip.IPv6Loopback(), k.Port)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), k.Port)
}

// target is where a node port leads.
type target struct {
	Name     service.PortName
	Backends []service.Backend // not empty
	Serving  []netip.AddrPort  // flows to these are left alone
	Affinity time.Duration     // 0 for none
}

// relays are the listeners of a node. Its methods belong to one goroutine.
type relays struct {
	log  *slog.Logger
	open map[key]listener
	// Places are shared by all listeners: a process of this node may not use up the
	// agent's file descriptors and memory.
	connections, datagrams *places
}

// listener is a node port that is served.
type listener interface {
	set(*target)
	Close() error
}

// set makes a node port lead to a target; nil ends it. Connections that are
// open go on. What cannot be listened on is an error; the caller tries again
// with its next full sync.
func (r *relays) set(k key, t *target) error {
	l := r.open[k]
	switch {
	case t == nil && l == nil:
		return nil
	case t == nil:
		delete(r.open, k)
		return l.Close()
	case l != nil:
		l.set(t)
		return nil
	}
	l, err := r.listen(k)
	if err != nil {
		return fmt.Errorf("node port %d of %s on loopback: %w", k.Port, t.Name, err)
	}
	l.set(t)
	if r.open == nil {
		r.open = map[key]listener{}
	}
	r.open[k] = l
	return nil
}

func (r *relays) listen(k key) (listener, error) {
	switch k.Protocol {
	case service.UDP:
		return listenUDP(k, r.log, r.datagrams)
	case service.SCTP:
		return listenSCTP(k, r.log, r.connections)
	}
	return listenTCP(k, r.log, r.connections)
}

func newRelays(log *slog.Logger) relays {
	return relays{log: log, connections: newPlaces(maxConnections), datagrams: newPlaces(maxDatagramFlows)}
}

// Close ends all listeners.
func (r *relays) Close() error {
	var errs []error
	for _, l := range r.open {
		errs = append(errs, l.Close())
	}
	r.open = nil
	return errors.Join(errs...)
}

// chooser picks backends. Clients on loopback are one client to it.
type chooser struct {
	mu     sync.Mutex // guards what follows
	target *target
	last   netip.AddrPort // by affinity
	seen   time.Time
}

func (c *chooser) set(t *target) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.target = t
}

// pick returns the backend of a new flow.
func (c *chooser) pick(now time.Time) netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	is := func(b service.Backend) bool { return b.AddrPort == c.last }
	if t := c.target; t.Affinity > 0 && now.Sub(c.seen) <= t.Affinity && slices.ContainsFunc(t.Backends, is) {
		c.seen = now
		return c.last
	}
	n := rand.IntN(service.Shares(c.target.Backends))
	for _, b := range c.target.Backends {
		if n -= b.Shares(); n < 0 {
			c.last, c.seen = b.AddrPort, now
			break
		}
	}
	return c.last
}

// serves reports whether flows to a backend are left alone.
func (c *chooser) serves(b netip.AddrPort) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.target.Serving, b)
}

// dialTimeout bounds how long a backend may take to accept.
const dialTimeout = 5 * time.Second

func network(k key) string {
	n := map[service.Protocol]string{service.TCP: "tcp", service.UDP: "udp"}[k.Protocol]
	if k.Family == service.IPv6 {
		return n + "6"
	}
	return n + "4"
}

// closed reports whether an error is that of a listener which was closed.
func closed(err error) bool { return errors.Is(err, net.ErrClosed) }
