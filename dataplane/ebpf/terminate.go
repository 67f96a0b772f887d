package ebpf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
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

// terminateShare is the part of the time, as one in so many, that looking for
// sockets may take on a node whose endpoints change all the time.
const terminateShare = 4

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
		start := time.Now()
		if n, err := terminateGone(d.objs, d.o.Terminate); err != nil {
			d.o.Logger.Warn("end sockets of backends that are gone", "error", err)
		} else if n > 0 {
			d.o.Logger.Info("ended sockets of backends that are gone", "sockets", n)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After((terminateShare - 1) * time.Since(start)):
		}
	}
}

// terminateGone goes through the namespaces of all processes, and those with
// names, ends what it can and returns how many sockets that were.
func terminateGone(objs *objects, kind Terminate) (int, error) {
	type result struct {
		n   int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread ends in another namespace
		n, err := terminateEverywhere(objs, kind)
		done <- result{n, err}
	}()
	r := <-done
	return r.n, r.err
}

func terminateEverywhere(objs *objects, kind Terminate) (int, error) {
	var errs []error
	n := 0
	eachNamespace(func(path string) {
		ended, err := terminateAt(path, objs, kind)
		n += ended
		errs = append(errs, err)
	})
	return n, errors.Join(errs...)
}

// isNamespace reports whether a path is a namespace. What else lies in a directory of
// names is not opened: a named pipe would be waited for.
func isNamespace(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

// terminateAt ends sockets in one namespace, and leaves the thread there.
func terminateAt(path string, objs *objects, kind Terminate) (int, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return 0, nil // gone meanwhile, and its sockets with it
	}
	defer ns.Close()
	if err := netns.Set(ns); errors.Is(err, unix.EINVAL) {
		return 0, nil // it was removed meanwhile
	} else if err != nil {
		return 0, fmt.Errorf("enter %s: %w", path, err)
	}
	lists := []*ebpf.Program{objs.ListGoneUDP}
	if kind == TerminateAll {
		lists = append(lists, objs.ListGoneTCP)
	}
	var errs []error
	n := 0
	for _, list := range lists {
		gone, err := listGone(list)
		errs = append(errs, err)
		for _, g := range gone {
			errs = append(errs, destroy(g))
			n++
		}
	}
	return n, errors.Join(errs...)
}

// listGone reads an iterator over the sockets of the thread's namespace.
func listGone(list *ebpf.Program) ([]bpfGone, error) {
	it, err := link.AttachIter(link.IterOptions{Program: list})
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

// diagRequest is struct inet_diag_req_v2 with its id.
type diagRequest struct {
	Family, Protocol, Ext, Pad byte
	States                     uint32
	Sport, Dport               uint16    // network
	Src, Dst                   [4]uint32 // an IPv4 address is the first word
	Ifindex                    uint32
	Cookie                     [2]uint32 // names one socket, whatever has its addresses later
}

// Len and Serialize implement [nl.NetlinkRequestData].
func (r *diagRequest) Len() int { return binary.Size(r) }

func (r *diagRequest) Serialize() []byte {
	var b bytes.Buffer
	binary.Write(&b, binary.NativeEndian, r) // of fixed size, so it cannot fail
	return b.Bytes()
}

// destroy ends a socket of the thread's namespace: the process that uses it is told
// ECONNABORTED. It is no error if it has ended by itself.
func destroy(g bpfGone) error {
	r := &diagRequest{Family: unix.AF_INET6, Protocol: byte(g.Proto), States: ^uint32(0),
		Sport: g.Sport, Dport: g.Dport, Src: g.Src.W, Dst: g.Dst.W,
		Cookie: [2]uint32{uint32(g.Cookie), uint32(g.Cookie >> 32)}}
	if unmapAddr(g.Dst).Is4() {
		r.Family = unix.AF_INET
		r.Src, r.Dst = [4]uint32{g.Src.W[3]}, [4]uint32{g.Dst.W[3]}
	}
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddData(r)
	if _, err := req.Execute(unix.NETLINK_INET_DIAG, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("end socket towards %s: %w", unmapAddr(g.Dst), err)
	}
	return nil
}
