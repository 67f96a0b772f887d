package ebpf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// losesEndpoints tells whether writes take endpoints away from a Service.
func losesEndpoints(writes []write) bool {
	for _, w := range writes {
		if w.m != mapMembers {
			continue
		}
		if flags, ok := w.value.(uint32); !ok || flags&uint32(bpfMemberMEMBER_SERVING) == 0 {
			return true
		}
	}
	return false
}

// terminate ends sockets whose backends are gone, each time it is asked to.
// What is to be ended is read from the kernel, so that requests can be merged
// and none is lost by a failure.
func (d *Dataplane) terminate(ctx context.Context) {
	defer d.done.Done()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.lost:
		}
		if n, err := terminateGone(d.objs, d.o.Terminate); err != nil {
			d.o.Logger.Warn("end sockets of backends that are gone", "error", err)
		} else if n > 0 {
			d.o.Logger.Info("ended sockets of backends that are gone", "sockets", n)
		}
	}
}

// terminateGone ends what it can and returns how many sockets that were.
func terminateGone(objs *bpfObjects, kind Terminate) (int, error) {
	gone, err := listGone(objs)
	if err != nil {
		return 0, err
	}
	byNS := map[uint64][]bpfGone{}
	for _, g := range gone {
		if g.Proto == unix.IPPROTO_UDP || kind == TerminateAll {
			byNS[g.Netns] = append(byNS[g.Netns], g)
		}
	}
	if len(byNS) == 0 {
		return 0, nil
	}
	type result struct {
		n   int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread ends in another namespace
		n, err := destroyIn(byNS)
		done <- result{n, err}
	}()
	r := <-done
	return r.n, r.err
}

func listGone(objs *bpfObjects) ([]bpfGone, error) {
	it, err := link.AttachIter(link.IterOptions{Program: objs.ListGone, Map: objs.Sockets})
	if err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	out := make([]bpfGone, len(b)/binary.Size(bpfGone{}))
	if err := binary.Read(bytes.NewReader(b), binary.NativeEndian, out); err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	return out, nil
}

// destroyIn goes through the namespaces of all processes, and those with names,
// until it has found the ones that sockets are in.
func destroyIn(byNS map[uint64][]bpfGone) (int, error) {
	var errs []error
	n := 0
	seen := map[uint64]bool{}
	for _, pattern := range []string{"/proc/[0-9]*/ns/net", "/run/netns/*"} {
		paths, _ := filepath.Glob(pattern) // the patterns are right
		for _, path := range paths {
			var st unix.Stat_t
			if len(byNS) == 0 {
				return n, errors.Join(errs...)
			}
			if unix.Stat(path, &st) != nil || seen[st.Ino] {
				continue // its process has ended, or known
			}
			seen[st.Ino] = true
			ended, err := destroyAt(path, byNS)
			n += ended
			errs = append(errs, err)
		}
	}
	return n, errors.Join(errs...)
}

// destroyAt ends the sockets of one namespace and takes them off the list.
func destroyAt(path string, byNS map[uint64][]bpfGone) (int, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return 0, nil // gone meanwhile, and its sockets with it
	}
	defer ns.Close()
	if err := netns.Set(ns); err != nil {
		return 0, fmt.Errorf("enter %s: %w", path, err)
	}
	cookie, err := netnsCookie()
	if err != nil {
		return 0, err
	}
	var errs []error
	n := 0
	for _, g := range byNS[cookie] {
		err := destroy(g)
		if err == nil {
			n++
		} else if !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	delete(byNS, cookie)
	return n, errors.Join(errs...)
}

// diagRequest is struct inet_diag_req_v2 with its id.
type diagRequest struct {
	family, protocol, ext, pad byte
	states                     uint32
	sport, dport               uint16 // network
	src, dst                   [4]uint32
	ifindex                    uint32
	cookie                     [2]uint32
}

// Len and Serialize implement [nl.NetlinkRequestData].
func (r *diagRequest) Len() int { return 56 }

func (r *diagRequest) Serialize() []byte {
	b := []byte{r.family, r.protocol, r.ext, r.pad}
	ne := binary.NativeEndian
	b = ne.AppendUint32(b, r.states)
	b = ne.AppendUint16(ne.AppendUint16(b, r.sport), r.dport)
	for _, words := range [][]uint32{r.src[:], r.dst[:], {r.ifindex}, r.cookie[:]} {
		for _, w := range words {
			b = ne.AppendUint32(b, w)
		}
	}
	return b
}

// destroy ends a socket of the thread's namespace: whoever uses it is told
// ECONNABORTED.
func destroy(g bpfGone) error {
	r := &diagRequest{family: unix.AF_INET6, protocol: byte(g.Proto), states: ^uint32(0),
		sport: g.Sport, dport: g.Dport, src: g.Src.W, dst: g.Dst.W, cookie: [2]uint32{^uint32(0), ^uint32(0)}}
	if unmapAddr(g.Dst).Is4() {
		r.family = unix.AF_INET
		r.src, r.dst = [4]uint32{g.Src.W[3]}, [4]uint32{g.Dst.W[3]}
	}
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddData(r)
	if _, err := req.Execute(unix.NETLINK_INET_DIAG, 0); err != nil {
		return fmt.Errorf("end socket towards %s: %w", unmapAddr(g.Dst), err)
	}
	return nil
}
