package iptables

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/service"
)

// The probe sends datagrams over loopback, where they are nobody else's: what
// is sent to translated has to arrive at listener, and what is sent to dropped
// must not leave. IPv6 has one loopback address, so ports tell them apart there.
var probes = [2]struct{ listener, translated, dropped netip.AddrPort }{
	{netip.MustParseAddrPort("127.110.112.1:10256"), netip.MustParseAddrPort("127.110.112.2:10256"), netip.MustParseAddrPort("127.110.112.3:10256")},
	{netip.MustParseAddrPort("[::1]:10256"), netip.MustParseAddrPort("[::1]:10254"), netip.MustParseAddrPort("[::1]:10253")},
}

// probeWait is how long a datagram may take over loopback.
const probeWait = time.Second

// probeMatch matches what is sent to one of the addresses of the probe.
func probeMatch(to netip.AddrPort) string {
	return " -d " + hostPrefix(to.Addr()) + " -p udp" + portsMatch(service.UDP, to.Port(), to.Port()) + comment("health probe")
}

// probeNAT and probeFilter are the rules that the probe meets, behind all others:
// so nothing but what is no Service's is compared with them.
func (r *ruleset) probeNAT() string {
	p := probes[r.family]
	return probeMatch(p.translated) + " -j DNAT --to-destination " + p.listener.String()
}

func (r *ruleset) probeFilter() string { return probeMatch(probes[r.family].dropped) + " -j DROP" }

// Probe proves the data path (pitfall P50) with datagrams that pass from the
// jumps in the OUTPUT chains through our own: one that has to be translated, and
// one that has to be dropped. It runs in the node's network namespace, may be
// called beside Sync, and tells nothing where it cannot listen.
func (d *Dataplane) Probe(ctx context.Context) error {
	var errs []error
	for f, fam := range d.families {
		if fam == nil {
			continue
		}
		if err := probe(ctx, service.Family(f)); err != nil {
			errs = append(errs, fmt.Errorf("probe of %s: %w", fam.kernel, err))
		}
	}
	return errors.Join(errs...)
}

func probe(ctx context.Context, f service.Family) error {
	p := probes[f]
	var lc net.ListenConfig
	l, err := lc.ListenPacket(ctx, "udp", p.listener.String())
	if errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil // somebody else has the port, or there is no such loopback
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", p.listener, err)
	}
	defer l.Close()
	if err := send(p.dropped); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("a datagram that filter rules should have dropped left the socket (error %v): are the jumps to NODEPROXY-NEW-FLOWS in place?", err)
	}
	if err := send(p.translated); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if err := l.SetReadDeadline(time.Now().Add(probeWait)); err != nil {
		return err
	}
	if _, _, err := l.ReadFrom(make([]byte, 1)); err != nil {
		return fmt.Errorf("a datagram that nat rules should have translated did not arrive: are the jumps to NODEPROXY-SERVICES in place? (%w)", err)
	}
	return nil
}

// send sends one byte from a new socket: the first packet of a flow.
func send(to netip.AddrPort) error {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte{0})
	return err
}
