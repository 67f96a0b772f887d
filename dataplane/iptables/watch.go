package iptables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sync/errgroup"
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

// pollTimeout is how long a read of events may wait, so that the end is noticed.
var pollTimeout = unix.Timeval{Usec: 200_000}

// Watch tells emit of every flow that conntrack begins for a Service, and, by
// the counters of our rules, how many packets each frontend refused, until ctx
// ends. ready is called once nothing is missed any more. It changes nothing.
func (r *Reader) Watch(ctx context.Context, ready func(), emit func(view.Event)) error {
	return r.watch(ctx, nil, ready, emit)
}

// watch is Watch, with the socket to which rules log what they refuse, if they
// do.
func (r *Reader) watch(ctx context.Context, log *nl.NetlinkSocket, ready func(), emit func(view.Event)) error {
	flows, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_CONNTRACK_NEW)
	if err != nil {
		return fmt.Errorf("listen to conntrack: %w", err)
	}
	defer flows.Close()
	if err := flows.SetReceiveTimeout(&pollTimeout); err != nil {
		return fmt.Errorf("listen to conntrack: %w", err)
	}
	w := &watcher{reader: r, emit: emit, logs: log != nil, shown: map[string]uint64{}, owed: map[string]int64{}}
	if err := w.look(ctx); err != nil {
		return err
	}
	ready()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return w.receive(ctx, flows, "conntrack", func(m syscall.NetlinkMessage) { w.flow(m.Data) })
	})
	if log != nil {
		group.Go(func() error { return w.receive(ctx, log, "nfnetlink_log", w.refused) })
	}
	group.Go(func() error {
		for tick := time.Tick(lookEvery); ; {
			select {
			case <-ctx.Done():
				return nil
			case <-tick:
			}
			if err := w.look(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
	})
	return group.Wait()
}

// receive hands over what comes by a socket until ctx ends.
func (w *watcher) receive(ctx context.Context, from *nl.NetlinkSocket, what string, take func(syscall.NetlinkMessage)) error {
	for ctx.Err() == nil {
		messages, _, err := from.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			w.mu.Lock()
			w.emit(view.Event{Time: time.Now(), Verdict: "lost", Reason: "too_many"})
			w.mu.Unlock()
		case err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("listen to %s: %w", what, err)
		}
		w.mu.Lock()
		for _, m := range messages {
			take(m)
		}
		w.mu.Unlock()
	}
	return nil
}

// watcher is one call of Watch.
type watcher struct {
	reader *Reader
	logs   bool // rules log what they refuse

	mu        sync.Mutex // of what follows
	emit      func(view.Event)
	directory *directory
	listed    time.Time
	counted   map[string]uint64 // packets that frontends refused, at the last look
	shown     map[string]uint64 // of them since then, one by one
	owed      map[string]int64  // counted and not shown; negative: not counted yet
	waiting   []logged          // for a directory in which their Service is
}

// look reads the rules, and tells what was refused since the last time, but for
// what was shown already.
func (w *watcher) look(ctx context.Context) error {
	all, err := w.reader.read(ctx)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.directory == nil || time.Since(w.listed) > directoryAge || len(w.waiting) > 0 {
		w.directory, w.listed = newDirectory(all), time.Now()
	}
	for _, l := range w.waiting {
		w.tell(l, true)
	}
	w.waiting = nil
	now := map[string]uint64{}
	for _, s := range all {
		filtered := s.filtered()
		for _, e := range s.entrances("filter") {
			key := e.key(s.family)
			now[key] = e.packets
			if w.counted == nil {
				continue
			}
			if n := w.untold(key, more(e.packets, w.counted[key])); n > 0 {
				w.emit(e.refusal(s.family, n, filtered[key]))
			}
		}
	}
	w.counted, w.shown = now, map[string]uint64{}
	return nil
}

// untold is how many packets of a frontend have to be told of as a number. One
// that is logged may be counted before it is read here, so what is missing has
// until the next look.
func (w *watcher) untold(key string, n uint64) uint64 {
	if !w.logs {
		return n
	}
	before := w.owed[key]
	owed := before + int64(n) - int64(w.shown[key])
	late := max(0, min(before, owed))
	gone := min(0, max(before, owed)) // shown, and their counter was lost as the chain was written
	if w.owed[key] = owed - late - gone; w.owed[key] == 0 {
		delete(w.owed, key)
	}
	return uint64(late)
}

// key names a frontend.
func (e *entrance) key(f service.Family) string { return fmt.Sprint(f, e.owner, e.addr, e.first) }

// filtered are the frontends that have source ranges, by key.
func (s *ourRules) filtered() map[string]bool {
	out := map[string]bool{}
	for _, e := range s.entrances("nat") {
		if strings.HasPrefix(e.target, chainLB) {
			out[e.key(s.family)] = true
		}
	}
	return out
}

// refusal is what a closed frontend did to n packets.
func (e *entrance) refusal(f service.Family, n uint64, filtered bool) view.Event {
	to := e.addr
	if !to.IsValid() {
		to = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[f]
	}
	why := noEndpoints
	switch {
	case strings.HasPrefix(e.target, chainFw), e.target == "DROP" && filtered:
		why = sourceRange
	case e.target == "DROP":
		why = policy
	}
	return view.Event{Time: time.Now(), Verdict: refusals[why].verdict, Reason: refusals[why].reason, Service: e.owner.name,
		Protocol: e.owner.protocol.String(), Destination: netip.AddrPortFrom(to, e.first), Packets: n}
}

// refused tells of a packet that a rule has logged.
func (w *watcher) refused(m syscall.NetlinkMessage) {
	if l, ok := parseLogged(m); ok {
		w.tell(l, false)
	}
}

// maxWaiting bounds what waits for a new directory.
const maxWaiting = 1024

// tell shows a refused packet. If its Service is not known, it waits for the
// next look at the rules: the Service may be new.
func (w *watcher) tell(l logged, anyhow bool) {
	e, known := w.directory.entrance(l.to, service.Protocol(l.protocol))
	if !known && l.reason != unknownPort && !anyhow && len(w.waiting) < maxWaiting {
		w.waiting = append(w.waiting, l)
		return
	}
	out := view.Event{Time: time.Now(), Verdict: refusals[l.reason].verdict, Reason: refusals[l.reason].reason,
		Protocol: service.Protocol(l.protocol).String(), Source: l.from, Destination: l.to}
	if known {
		out.Service = e.owner.name
		w.shown[e.key(service.FamilyOf(l.to.Addr()))]++
	}
	w.emit(out)
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
