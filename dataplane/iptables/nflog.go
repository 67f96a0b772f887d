package iptables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

// refusal is why a rule refuses packets; 0 for one that does not, or that has
// nobody to tell.
type refusal uint8

const (
	noEndpoints refusal = iota + 1
	policy
	sourceRange
	unknownPort
)

// refusals are their names, as ebpf mode's, and what becomes of the packets.
var refusals = map[refusal]struct{ reason, verdict string }{
	noEndpoints: {"no_endpoints", "reject"}, policy: {"policy", "drop"},
	sourceRange: {"source_range", "drop"}, unknownPort: {"unknown_port", "reject"},
}

const (
	// logGroup is the group of nfnetlink_log that our rules write to, which
	// belongs to the network namespace, as the one agent in it does.
	logGroup = 10256
	// logPrefix begins what our rules write beside a packet.
	logPrefix = "nodeproxy "
	// logBytes of a packet are enough for its headers.
	logBytes = 128
	// logRate is how many packets a second one rule may log; the others are told
	// by its counter.
	logRate = 100
)

// rule renders what logs a packet and lets it go on, to the rule that refuses
// it.
func (r refusal) rule() string {
	return fmt.Sprintf(` -m limit --limit %d/second --limit-burst %d -j NFLOG --nflog-group %d --nflog-size %d --nflog-prefix "%s%s"`,
		logRate, logRate, logGroup, logBytes, logPrefix, refusals[r].reason)
}

// From linux/netfilter/nfnetlink_log.h.
const (
	nfulnlMsgPacket = 0
	nfulnlMsgConfig = 1

	nfulaPacketHdr = 1
	nfulaPayload   = 9
	nfulaPrefix    = 10

	nfulaCfgCmd     = 1
	nfulaCfgMode    = 2
	nfulaCfgTimeout = 4
	nfulaCfgQThresh = 5

	nfulnlCfgCmdBind = 1
	nfulnlCopyPacket = 2
)

// openLog listens to what our rules log in this thread's network namespace.
func openLog() (*nl.NetlinkSocket, error) {
	socket, err := nl.Subscribe(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("listen to nfnetlink_log: %w", err)
	}
	mode := append(binary.BigEndian.AppendUint32(nil, logBytes), nfulnlCopyPacket, 0)
	for _, attrs := range [][]*nl.RtAttr{
		{nl.NewRtAttr(nfulaCfgCmd, []byte{nfulnlCfgCmdBind})},
		{nl.NewRtAttr(nfulaCfgMode, mode), // and at once, not a hundred together
			nl.NewRtAttr(nfulaCfgQThresh, binary.BigEndian.AppendUint32(nil, 1)),
			nl.NewRtAttr(nfulaCfgTimeout, binary.BigEndian.AppendUint32(nil, 1))},
	} {
		if err := configureLog(socket, attrs); err != nil {
			socket.Close()
			return nil, fmt.Errorf("listen to group %d of nfnetlink_log: %w", logGroup, err)
		}
	}
	if err := socket.SetReceiveTimeout(&pollTimeout); err != nil {
		socket.Close()
		return nil, fmt.Errorf("listen to nfnetlink_log: %w", err)
	}
	return socket, nil
}

func configureLog(socket *nl.NetlinkSocket, attrs []*nl.RtAttr) error {
	const group = logGroup>>8 | logGroup&0xff<<8 // big endian, in a field that is written as the host has it
	resID := uint16(logGroup)
	if nl.NativeEndian() == binary.LittleEndian {
		resID = group
	}
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_ULOG<<8|nfulnlMsgConfig, unix.NLM_F_ACK)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0, ResId: resID})
	for _, a := range attrs {
		req.AddData(a)
	}
	if err := socket.Send(req); err != nil {
		return err
	}
	for {
		messages, _, err := socket.Receive()
		if err != nil {
			return err
		}
		for _, m := range messages {
			if m.Header.Type == unix.NLMSG_ERROR && m.Header.Seq == req.Seq && len(m.Data) >= 4 {
				if errno := -int32(binary.NativeEndian.Uint32(m.Data)); errno != 0 {
					return syscall.Errno(errno)
				}
				return nil
			}
		}
	}
}

// logged is a packet that a rule logged.
type logged struct {
	reason refusal
	tuple
}

// parseLogged reads a message of nfnetlink_log; false for one that is not ours,
// or no packet of a Service's protocol.
func parseLogged(m syscall.NetlinkMessage) (l logged, ok bool) {
	if m.Header.Type != unix.NFNL_SUBSYS_ULOG<<8|nfulnlMsgPacket || len(m.Data) < nl.SizeofNfgenmsg {
		return l, false
	}
	eachAttr(m.Data[nl.SizeofNfgenmsg:], func(kind uint16, value []byte) {
		switch kind {
		case nfulaPrefix:
			name := strings.TrimRight(string(value), "\x00")
			for r, words := range refusals {
				if name == logPrefix+words.reason {
					l.reason = r
				}
			}
		case nfulaPayload:
			l.tuple, ok = parseHeaders(value)
		}
	})
	return l, ok && l.reason != 0
}

// parseHeaders reads the addresses, protocol and ports of an IP packet. Behind
// extension headers it does not look.
func parseHeaders(b []byte) (t tuple, ok bool) {
	var l4 []byte
	var src, dst netip.Addr
	switch {
	case len(b) >= 20 && b[0]>>4 == 4 && len(b) >= int(b[0]&15)*4:
		src, _ = netip.AddrFromSlice(b[12:16])
		dst, _ = netip.AddrFromSlice(b[16:20])
		t.protocol, l4 = b[9], b[int(b[0]&15)*4:]
	case len(b) >= 40 && b[0]>>4 == 6:
		src, _ = netip.AddrFromSlice(b[8:24])
		dst, _ = netip.AddrFromSlice(b[24:40])
		t.protocol, l4 = b[6], b[40:]
	}
	switch service.Protocol(t.protocol) {
	case service.TCP, service.UDP, service.SCTP: // the ports of all are in the same place
	default:
		return t, false
	}
	if len(l4) < 4 {
		return t, false
	}
	t.from = netip.AddrPortFrom(src, binary.BigEndian.Uint16(l4))
	t.to = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(l4[2:]))
	return t, true
}

// setWatched makes the rules that refuse packets log them, or not any more. It
// belongs to the goroutine that calls Sync.
func (d *Dataplane) setWatched(ctx context.Context, on bool) error {
	d.settings.watched = on
	var errs []error
	for _, fam := range d.families {
		if fam == nil || fam.rules == nil || fam.unsure {
			continue // the next sync, a full one, writes it
		}
		fam.rules.setWatched(on)
		if input := restoreInput(fam.rules.flush(), nil, nil); len(input) > 0 {
			if err := fam.kernel.restoreInput(ctx, input); err != nil {
				fam.unsure = true
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// Watch is as that of a [Reader], and tells of each refused packet on its own,
// with its source: while it runs, rules log what they refuse. owner runs a
// function on the goroutine that calls Sync.
func (d *Dataplane) Watch(ctx context.Context, owner func(func()) error, ready func(), emit func(view.Event)) error {
	log, err := d.startLog(ctx, owner)
	if err != nil {
		d.opts.Log.Warn("refused packets cannot be shown to `nodeproxy watch`; they are counted instead", "error", err)
		return d.Reader().Watch(ctx, ready, emit)
	}
	defer log.Close()
	defer d.stopLog(owner)
	return d.Reader().watch(ctx, log, ready, emit)
}

func (d *Dataplane) startLog(ctx context.Context, owner func(func()) error) (*nl.NetlinkSocket, error) {
	log, err := openLog()
	if err != nil {
		return nil, err
	}
	var failed error
	if err := owner(func() { failed = d.setWatched(ctx, true) }); err != nil || failed != nil {
		log.Close()
		d.stopLog(owner)
		return nil, errors.Join(err, failed)
	}
	return log, nil
}

// stopLog ends the logging. If the owner has ended, Close does.
func (d *Dataplane) stopLog(owner func(func()) error) {
	_ = owner(func() {
		ctx, cancel := context.WithTimeout(context.Background(), closePatience)
		defer cancel()
		if err := d.setWatched(ctx, false); err != nil {
			d.opts.Log.Error("rules still log what they refuse; the next full sync mends it", "error", err)
		}
	})
}
