package ebpf

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// reorderSome holds one in 32 of the frames that leave a namespace by eth0 for up to four
// milliseconds, so that later ones come first. A program at egress sends them into a
// veth, at whose other end they are read, held, and sent on. The returned function says
// how many there were.
func reorderSome(t *testing.T, ns netns.NsHandle) (held func() int) {
	t.Helper()
	count := make(chan int, 1)
	count <- 0
	var in0, out *packetSocket
	in(t, ns, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "hold0"}, PeerName: "hold1"}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		peer, err := netlink.LinkByName("hold1")
		if err == nil {
			err = errors.Join(netlink.LinkSetUp(veth), netlink.LinkSetUp(peer), holdAtEgress(eth0, veth.Attrs().Index))
		}
		if err == nil {
			in0, err = openPacketSocket(peer.Attrs().Index)
		}
		if err == nil {
			out, err = openPacketSocket(eth0.Attrs().Index)
		}
		return err
	})
	t.Cleanup(func() { _ = unix.Shutdown(in0.fd, unix.SHUT_RD); unix.Close(in0.fd); unix.Close(out.fd) })
	go func() {
		buf := make([]byte, 1<<17)
		for {
			n, err := unix.Read(in0.fd, buf)
			if err != nil {
				return
			}
			frame := append([]byte(nil), buf[:n]...)
			time.AfterFunc(time.Duration(rand.IntN(4000))*time.Microsecond, func() {
				if _, err := unix.Write(out.fd, frame); err == nil {
					count <- <-count + 1
				}
			})
		}
	}()
	return func() int { n := <-count; count <- n; return n }
}

// holdAtEgress redirects some frames of an interface to another.
func holdAtEgress(l netlink.Link, to int) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: asm.Instructions{
		asm.FnGetPrandomU32.Call(),
		asm.And.Imm(asm.R0, 31),
		asm.JNE.Imm(asm.R0, 0, "pass"),
		asm.Mov.Imm(asm.R1, int32(to)),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("pass"),
		asm.Return(),
	}})
	if err != nil {
		return err
	}
	defer prog.Close()
	at := netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
	return errors.Join(netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: at}), netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
		Fd:          prog.FD(), Name: "hold", DirectAction: true,
	}))
}

// packetSocket reads and writes frames of an interface, each after what the kernel has
// to know of its checksum and segments (struct virtio_net_hdr).
type packetSocket struct{ fd int }

func openPacketSocket(index int) (*packetSocket, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	all := uint16(unix.ETH_P_ALL)<<8 | unix.ETH_P_ALL>>8
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}))
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &packetSocket{fd}, nil
}
