package ebpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// promoter opens the fast way to TCP connections that conntrack owns. On the fast
// way conntrack does not see each segment. It would take a later FIN for invalid, so
// it is first told to be liberal about the windows of that one connection, as the
// kernel's own flowtables do (nf_flow_table_core.c). Programs cannot do so.
//
// While no agent runs, connections that are not on the fast way stay with the stack.
type promoter struct {
	objs   *objects
	reader *ringbuf.Reader
}

func newPromoter(objs *objects) (*promoter, error) {
	reader, err := ringbuf.NewReader(objs.Promotions)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", bpfMapPromotions, err)
	}
	return &promoter{objs, reader}, nil
}

// serveTracked starts what conntrack's flows need of the agent: the promoter, and who
// follows netfilter.
func (d *Dataplane) serveTracked(ctx context.Context) error {
	if !d.features.conntrack {
		return nil
	}
	p, err := newPromoter(d.objs)
	if err != nil {
		return err
	}
	changes, err := nl.SubscribeAt(d.ns, netns.None(), unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return errors.Join(fmt.Errorf("follow nf_tables: %w", err), p.reader.Close())
	}
	d.goInNamespace(func() {
		p.run(ctx, func(err error) { d.o.Logger.Warn("connections stay with the stack", "error", err) })
	})
	d.goInNamespace(func() { d.followNetfilter(ctx, changes) })
	d.goInNamespace(func() { d.followPressure(ctx) })
	return nil
}

// goInNamespace runs f on a thread in the node's network namespace until Close, which
// waits for it.
func (d *Dataplane) goInNamespace(f func()) {
	d.done.Add(1)
	go func() {
		defer d.done.Done()
		runtime.LockOSThread() // not unlocked: the thread ends in the namespace
		if err := netns.Set(d.ns); err != nil {
			d.o.Logger.Error("enter the node's network namespace", "error", err)
			return
		}
		f()
	}()
}

// run serves the programs' questions until ctx ends. It runs in the node's network
// namespace. What goes wrong with one connection leaves that with the stack.
func (p *promoter) run(ctx context.Context, failed func(error)) {
	stop := context.AfterFunc(ctx, func() { _ = p.reader.Close() }) // ends Read
	defer stop()
	var record ringbuf.Record
	for {
		err := p.reader.ReadInto(&record)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err == nil {
			err = p.promote(record.RawSample)
		}
		if err != nil && ctx.Err() == nil {
			failed(err)
		}
	}
}

func (p *promoter) promote(sample []byte) error {
	if len(sample) < int(unsafe.Sizeof(bpfPromotion{})) {
		return fmt.Errorf("map %s: a record of %d bytes", bpfMapPromotions, len(sample))
	}
	flow := *(*bpfPromotion)(unsafe.Pointer(unsafe.SliceData(sample))) //nolint:gosec // its size was just checked
	err := beLiberal(flow.T)
	if errors.Is(err, unix.ENOENT) {
		return nil // it has ended meanwhile
	}
	if err != nil {
		return fmt.Errorf("conntrack: be liberal about one connection: %w", err)
	}
	if _, err := p.objs.Accelerate.Run(&ebpf.RunOptions{Context: flow}); err != nil {
		return fmt.Errorf("open the fast way: %w", err)
	}
	return nil
}

// Of linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_tcp.h.
const (
	ctMessageNew           = unix.NFNL_SUBSYS_CTNETLINK << 8 // with IPCTNL_MSG_CT_NEW, which is 0
	ctTupleOrig            = 1
	ctProtoInfo            = 4
	ctTupleIP              = 1
	ctTupleProto           = 2
	ctIPv4Src              = 1
	ctIPv4Dst              = 2
	ctIPv6Src              = 3
	ctIPv6Dst              = 4
	ctProtoNum             = 1
	ctProtoSrcPort         = 2
	ctProtoDstPort         = 3
	ctProtoInfoTCP         = 1
	ctProtoInfoTCPFlagsOut = 4 // CTA_PROTOINFO_TCP_FLAGS_ORIGINAL
	ctProtoInfoTCPFlagsIn  = 5 // CTA_PROTOINFO_TCP_FLAGS_REPLY
	ctTCPBeLiberal         = 0x08
)

// beLiberal changes the entry whose original direction is t, of TCP, and nothing
// else of it. ENOENT if there is none.
func beLiberal(t bpfTuple) error {
	src, dst := unmapAddr(t.Src), unmapAddr(t.Dst)
	family, srcType, dstType := unix.AF_INET, ctIPv4Src, ctIPv4Dst
	if !src.Is4() {
		family, srcType, dstType = unix.AF_INET6, ctIPv6Src, ctIPv6Dst
	}
	port := func(n uint16) []byte { return (*[2]byte)(unsafe.Pointer(&n))[:] } // in network order already
	const nested = unix.NLA_F_NESTED
	tuple := nl.NewRtAttr(nested|ctTupleOrig, nil)
	ip := tuple.AddRtAttr(nested|ctTupleIP, nil)
	ip.AddRtAttr(srcType, src.AsSlice())
	ip.AddRtAttr(dstType, dst.AsSlice())
	proto := tuple.AddRtAttr(nested|ctTupleProto, nil)
	proto.AddRtAttr(ctProtoNum, []byte{t.Proto})
	proto.AddRtAttr(ctProtoSrcPort, port(t.Sport))
	proto.AddRtAttr(ctProtoDstPort, port(t.Dport))
	info := nl.NewRtAttr(nested|ctProtoInfo, nil)
	tcp := info.AddRtAttr(nested|ctProtoInfoTCP, nil)
	liberal := []byte{ctTCPBeLiberal, ctTCPBeLiberal} // flags and mask
	tcp.AddRtAttr(ctProtoInfoTCPFlagsOut, liberal)
	tcp.AddRtAttr(ctProtoInfoTCPFlagsIn, liberal)

	req := nl.NewNetlinkRequest(ctMessageNew, unix.NLM_F_ACK)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(family), Version: nl.NFNETLINK_V0})
	req.AddData(tuple)
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	return err
}
