package iptables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

const (
	// lookEvery is how often counters of refusing rules are read while somebody
	// watches, and directoryAge how old the list of frontends may be.
	lookEvery    = time.Second
	directoryAge = 10 * time.Second
)

// Watch tells emit of every flow that conntrack begins for a Service, and, by
// the counters of our rules, how many packets each frontend refused, until ctx
// ends. ready is called once nothing is missed any more.
func (r *Reader) Watch(ctx context.Context, ready func(), emit func(view.Event)) error {
	socket, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_CONNTRACK_NEW)
	if err != nil {
		return fmt.Errorf("listen to conntrack: %w", err)
	}
	defer socket.Close()
	if err := socket.SetReceiveTimeout(&unix.Timeval{Usec: 200_000}); err != nil {
		return fmt.Errorf("listen to conntrack: %w", err)
	}
	w := &watcher{reader: r, emit: emit}
	if err := w.look(ctx); err != nil {
		return err
	}
	ready()
	for ctx.Err() == nil {
		messages, _, err := socket.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			emit(view.Event{Time: time.Now(), Verdict: "lost", Reason: "too_many"})
		case err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("listen to conntrack: %w", err)
		}
		for _, m := range messages {
			w.flow(m.Data)
		}
		if time.Since(w.looked) > lookEvery {
			if err := w.look(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
	return nil
}

// watcher is one call of Watch.
type watcher struct {
	reader    *Reader
	emit      func(view.Event)
	directory *directory
	listed    time.Time
	refused   map[string]uint64 // packets at the last look
	looked    time.Time
}

// look reads the rules, and tells what was refused since the last time.
func (w *watcher) look(ctx context.Context) error {
	all, err := w.reader.read(ctx)
	if err != nil {
		return err
	}
	w.looked = time.Now()
	if w.directory == nil || time.Since(w.listed) > directoryAge {
		w.directory, w.listed = newDirectory(all), w.looked
	}
	now := map[string]uint64{}
	for _, s := range all {
		for _, e := range s.entrances("filter") {
			key := fmt.Sprint(s.family, e.owner, e.addr, e.first)
			now[key] = e.packets
			if n := more(e.packets, w.refused[key]); w.refused != nil && n > 0 {
				w.emit(e.refusal(s.family, n))
			}
		}
	}
	w.refused = now
	return nil
}

// refusal is what a closed frontend did to n packets.
func (e *entrance) refusal(f service.Family, n uint64) view.Event {
	to := e.addr
	if !to.IsValid() {
		to = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[f]
	}
	out := view.Event{Time: time.Now(), Verdict: "reject", Reason: "no_endpoints", Service: e.owner.name, Protocol: e.owner.protocol.String(),
		Destination: netip.AddrPortFrom(to, e.first), Packets: n}
	if e.target == "DROP" {
		out.Verdict, out.Reason = "drop", "policy"
	} else if strings.HasPrefix(e.target, chainFw) {
		out.Verdict, out.Reason = "drop", "source_range"
	}
	return out
}

// flow tells of a conntrack entry that has just been made.
func (w *watcher) flow(message []byte) {
	orig, reply, ok := parseTuples(message)
	if !ok || orig.to == reply.from {
		return
	}
	name, ok := w.directory.find(orig.to, service.Protocol(orig.protocol))
	if !ok {
		return
	}
	e := view.Event{Time: time.Now(), Verdict: "translate", Reason: "flow_new", Service: name, Protocol: service.Protocol(orig.protocol).String(),
		Source: orig.from, Destination: orig.to, Backend: &reply.from}
	if reply.to != orig.from {
		e.SeenAs = &reply.to
	}
	w.emit(e)
}

// tuple is one direction of a conntrack entry.
type tuple struct {
	from, to netip.AddrPort
	protocol uint8
}

// parseTuples reads both directions from a message of nfnetlink_conntrack, as
// linux/netfilter/nfnetlink_conntrack.h lays it out.
func parseTuples(message []byte) (orig, reply tuple, ok bool) {
	if len(message) < nl.SizeofNfgenmsg {
		return orig, reply, false
	}
	attrs, err := nl.ParseRouteAttr(message[nl.SizeofNfgenmsg:])
	if err != nil {
		return orig, reply, false
	}
	found := 0
	for _, a := range attrs {
		switch a.Attr.Type & nl.NLA_TYPE_MASK {
		case nl.CTA_TUPLE_ORIG:
			orig = parseTuple(a.Value)
			found |= 1
		case nl.CTA_TUPLE_REPLY:
			reply = parseTuple(a.Value)
			found |= 2
		}
	}
	return orig, reply, found == 3
}

func parseTuple(data []byte) (t tuple) {
	var src, dst netip.Addr
	var sport, dport uint16
	eachAttr(data, func(kind uint16, value []byte) {
		switch kind {
		case nl.CTA_TUPLE_IP:
			eachAttr(value, func(kind uint16, value []byte) {
				switch a, _ := netip.AddrFromSlice(value); kind { // the kernel's addresses are whole
				case nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC:
					src = a
				case nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST:
					dst = a
				}
			})
		case nl.CTA_TUPLE_PROTO:
			eachAttr(value, func(kind uint16, value []byte) {
				switch {
				case kind == nl.CTA_PROTO_NUM && len(value) > 0:
					t.protocol = value[0]
				case kind == nl.CTA_PROTO_SRC_PORT && len(value) > 1:
					sport = binary.BigEndian.Uint16(value)
				case kind == nl.CTA_PROTO_DST_PORT && len(value) > 1:
					dport = binary.BigEndian.Uint16(value)
				}
			})
		}
	})
	t.from, t.to = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return t
}

func eachAttr(data []byte, do func(kind uint16, value []byte)) {
	attrs, err := nl.ParseRouteAttr(data)
	if err != nil {
		return
	}
	for _, a := range attrs {
		do(a.Attr.Type&nl.NLA_TYPE_MASK, a.Value)
	}
}
