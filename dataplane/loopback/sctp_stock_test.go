//go:build stock

// SCTP sockets, which the machine that develops this has not. make test-vm
// builds with this tag.

package loopback

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/dataplane"
	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
	"github.com/nodeproxy/nodeproxy/dataplane/iptables"
	"github.com/nodeproxy/nodeproxy/internal/nettest"
	"github.com/nodeproxy/nodeproxy/service"
)

const nodePort, targetPort = 30132, 8132

// TestP24LoopbackSCTP opens associations with a node port at 127.0.0.1 and ::1,
// in both modes. Messages of every size keep their stream, their order and their
// payload protocol; without endpoints the port refuses.
func TestP24LoopbackSCTP(t *testing.T) {
	nettest.RequireRoot(t) // in the machine's own namespace: relays work on threads of their own
	for f, at := range loopbacks {
		serveEcho(t, netip.AddrPortFrom(at, targetPort), fmt.Sprint("backend ", f))
	}
	for name, open := range map[string]func(*testing.T) (dataplane.Dataplane, error){
		"iptables": func(t *testing.T) (dataplane.Dataplane, error) {
			t.Cleanup(func() { iptables.Cleanup(context.Background()) })
			dp, err := iptables.New(context.Background(), iptables.Options{Backend: iptables.BackendNFT, MasqueradeBit: iptables.DefaultMasqueradeBit})
			return New(dp, slog.Default(), service.TCP, service.UDP, service.SCTP), err
		},
		"ebpf": func(t *testing.T) (dataplane.Dataplane, error) {
			dp, err := ebpf.New(ebpf.Options{Instance: "loopback-sctp"})
			t.Cleanup(func() { ebpf.Cleanup(ebpf.Options{Instance: "loopback-sctp"}) })
			return New(dp, slog.Default(), service.SCTP), err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dp, err := open(t) // whose rules or programs go before the other mode comes
			if err != nil {
				t.Fatal(err)
			}
			defer dp.Close()
			syncTo(t, dp, true)
			for f, at := range loopbacks {
				if err := exchange(netip.AddrPortFrom(at, nodePort), fmt.Sprint("backend ", f)); err != nil {
					t.Errorf("%s: %v", at, err)
				}
			}
			syncTo(t, dp, false)
			for _, at := range loopbacks {
				if err := exchange(netip.AddrPortFrom(at, nodePort), ""); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("%s without endpoints: %v, want refused", at, err)
				}
			}
		})
	}
}

var loopbacks = [2]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}

func syncTo(t *testing.T, dp dataplane.Dataplane, ready bool) {
	t.Helper()
	opts := service.Options{NodeName: "n", LocalhostNodePorts: true}
	cfg, err := opts.Config(nil, service.Host{Addresses: loopbacks[:]})
	if err != nil {
		t.Fatal(err)
	}
	name := service.Name{Namespace: "default", Name: "s"}
	all := service.Changes{Complete: true, Services: []*service.Service{{
		Name: name, Type: service.TypeNodePort, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.9"), netip.MustParseAddr("fd00:96::9")},
		Ports: []service.Port{{Protocol: service.SCTP, Port: 132, NodePort: nodePort}},
	}}}
	for f, a := range loopbacks {
		all.EndpointSlices = append(all.EndpointSlices, &service.EndpointSlice{
			Name: service.Name{Namespace: "default", Name: fmt.Sprint("s-", f)}, Service: "s", Family: service.Family(f),
			Ports:     []service.EndpointPort{{Protocol: service.SCTP, Number: targetPort}},
			Endpoints: []service.Endpoint{{Addr: a, Ready: ready, Serving: ready, NodeName: "n"}},
		})
	}
	r := service.NewResolver(cfg)
	r.Apply(all)
	if err := dp.Sync(t.Context(), r.Table(), nil); err != nil {
		t.Fatal(err)
	}
}

// messages are what a client sends, by stream.
var messages = []struct {
	stream uint16
	ppid   uint32
	text   string
}{{0, 46, "hello"}, {7, 0, strings.Repeat("a", 1400)}, {200, 1 << 30, strings.Repeat("b", 60_000)}, {7, 3, "bye"}}

// exchange sends messages, and wants each back as it was, behind the name.
func exchange(to netip.AddrPort, name string) error {
	c, err := dialSCTP(to)
	if err != nil {
		return err
	}
	defer c.Close()
	return withFD(c, func(fd int) error {
		if err := errors.Join(unix.SetNonblock(fd, false), unix.SetsockoptInt(fd, unix.IPPROTO_SCTP, sctpRecvRcvInfo, 1)); err != nil {
			return err
		}
		for _, m := range messages {
			if _, err := unix.SendmsgN(fd, []byte(m.text), sndInfo(m.stream, m.ppid), nil, 0); err != nil {
				return fmt.Errorf("send on stream %d: %w", m.stream, err)
			}
			text, stream, ppid, err := receive(fd)
			if err != nil || text != name+m.text || stream != m.stream || ppid != m.ppid {
				return fmt.Errorf("got %d bytes beginning %.20q on stream %d with %d, want those on %d with %d: %w", len(text), text, stream, ppid, m.stream, m.ppid, err)
			}
		}
		return nil
	})
}

// sndInfo is the control message that gives a message its stream and protocol.
func sndInfo(stream uint16, ppid uint32) []byte {
	info := make([]byte, unix.CmsgSpace(16))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&info[0]))
	h.Level, h.Type = unix.IPPROTO_SCTP, cmsgSndInfo
	h.SetLen(unix.CmsgLen(16))
	binary.NativeEndian.PutUint16(info[unix.CmsgLen(0):], stream)
	binary.NativeEndian.PutUint32(info[unix.CmsgLen(4):], ppid)
	return info
}

// receive returns one whole message.
func receive(fd int) (text string, stream uint16, ppid uint32, err error) {
	limit := unix.NsecToTimeval(int64(10 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return "", 0, 0, err
	}
	for {
		buf, control := make([]byte, 100_000), make([]byte, 256)
		n, nc, flags, _, err := unix.Recvmsg(fd, buf, control, 0)
		if err != nil || n == 0 {
			return "", 0, 0, fmt.Errorf("receive: %w", err)
		}
		text += string(buf[:n])
		if flags&unix.MSG_EOR == 0 {
			continue
		}
		list, err := unix.ParseSocketControlMessage(control[:nc])
		if err != nil || len(list) != 1 || list[0].Header.Type != cmsgRcvInfo {
			return "", 0, 0, fmt.Errorf("control messages %v: %w", list, err)
		}
		return text, binary.NativeEndian.Uint16(list[0].Data), binary.NativeEndian.Uint32(list[0].Data[8:]), nil
	}
}

// serveEcho sends back what it gets, behind a name, on the stream that it came.
func serveEcho(t *testing.T, at netip.AddrPort, name string) {
	t.Helper()
	fd, err := sctpSocket(at)
	if err == nil {
		err = errors.Join(unix.Bind(fd, sockaddr(at)), unix.Listen(fd, 16))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Shutdown(fd, unix.SHUT_RDWR); unix.Close(fd) })
	go func() {
		for {
			c, _, err := unix.Accept(fd)
			if err != nil {
				return
			}
			go func() {
				defer unix.Close(c)
				unix.SetsockoptInt(c, unix.IPPROTO_SCTP, sctpRecvRcvInfo, 1)
				for {
					text, stream, ppid, err := receive(c)
					if err != nil {
						return
					}
					if _, err := unix.SendmsgN(c, []byte(name+text), sndInfo(stream, ppid), nil, 0); err != nil {
						return
					}
				}
			}()
		}
	}()
}
