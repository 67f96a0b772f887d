package ebpf

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/service"
)

// Commands of the ethtool ioctl that switch an offload.
const (
	ethtoolRxChecksum = 0x15
	ethtoolTxChecksum = 0x17
	ethtoolTSO        = 0x1f
	ethtoolGSO        = 0x24
	ethtoolGRO        = 0x2c
)

// ethtool switches an offload of a device in the thread's namespace.
func ethtool(dev string, command uint32, on bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ command, data uint32 }{command: command}
	if on {
		value.data = 1
	}
	var ifr struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		pad  [16]byte
	}
	copy(ifr.name[:], dev)
	ifr.data = unsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr))); errno != 0 {
		return fmt.Errorf("ethtool %s %#x: %w", dev, command, errno)
	}
	return nil
}

// csumErrors sums what a namespace's receivers counted as wrong checksums.
func csumErrors(t testing.TB, ns netns.NsHandle) (n int) {
	t.Helper()
	in(t, ns, func() error {
		for _, file := range []string{"snmp", "snmp6"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			var names []string
			for line := range strings.Lines(string(b)) {
				fields := strings.Fields(line)
				for i, f := range fields {
					var v int
					switch {
					case file == "snmp6" && i == 0 && strings.HasSuffix(f, "InCsumErrors") && len(fields) > 1:
						fmt.Sscan(fields[1], &v)
					case file == "snmp" && i < len(names) && names[0] == fields[0] && names[i] == "InCsumErrors":
						fmt.Sscan(f, &v)
					}
					n += v
				}
				names = fields
			}
		}
		return nil
	})
	return n
}

// withoutChecksum makes a UDP socket send and take datagrams without one.
func withoutChecksum(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		const noCheck6Tx, noCheck6Rx = 101, 102
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, noCheck6Tx, 1)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, noCheck6Rx, 1)
	})
}

// TestP19Offloads: with every combination of checksum offload, GSO and GRO, all
// that is sent through a node port arrives, and no receiver finds a sum wrong.
func TestP19Offloads(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	for f := range 2 {
		echoWithoutChecksum(t, n.podA, networks[1][f], join(podA[f], "8081"))
	}
	d := n.start(t, Options{PacketsOnly: true})
	syncAll(t, d, n.table(append(both(svc{name: "s", backends: to(podA, "8080")}),
		svc{name: "zero", proto: service.UDP, port: 81, nodePort: 30081, backends: to(podA, "8081")})...))
	devices := []struct {
		ns  netns.NsHandle
		dev string
	}{{n.client, "eth0"}, {n.node, "eth0"}, {n.node, "poda"}, {n.podA, "eth0"}}
	for bits := range 8 {
		sum, gso, gro := bits&1 != 0, bits&2 != 0, bits&4 != 0
		t.Run(fmt.Sprintf("checksum %v, GSO %v, GRO %v", sum, gso, gro), func(t *testing.T) {
			for _, at := range devices {
				in(t, at.ns, func() error {
					for command, on := range map[uint32]bool{ethtoolTxChecksum: sum, ethtoolRxChecksum: sum} {
						if err := ethtool(at.dev, command, on); err != nil {
							return err
						}
					}
					ethtool(at.dev, ethtoolTSO, gso && sum) // refused without checksums, which says the same
					ethtool(at.dev, ethtoolGRO, gro)
					return ethtool(at.dev, ethtoolGSO, gso)
				})
			}
			before := csumErrors(t, n.client) + csumErrors(t, n.podA)
			for f := range 2 {
				for _, size := range []int{10, 100000} {
					a, err := askFrom(n.client, networks[0][f], join(nodeIP[f], "30080"), "", size)
					wantAnswer(t, a, err, "a", nodeIP[f])
				}
				for _, size := range []int{11, 1200} {
					a, err := askFrom(n.client, networks[1][f], join(nodeIP[f], "30080"), "", size)
					wantAnswer(t, a, err, "a", nodeIP[f])
				}
				in(t, n.client, func() error {
					dial := net.Dialer{Timeout: time.Second, Control: withoutChecksum}
					c, err := dial.Dial(networks[1][f], join(nodeIP[f], "30081"))
					if err != nil {
						return err
					}
					defer c.Close()
					a, err := exchange(c, 500)
					wantAnswer(t, a, err, "zero", nodeIP[f])
					return nil
				})
			}
			if got := csumErrors(t, n.client) + csumErrors(t, n.podA) - before; got != 0 {
				t.Errorf("%d wrong checksums", got)
			}
		})
	}
}

// echoWithoutChecksum answers as "zero".
func echoWithoutChecksum(t testing.TB, ns netns.NsHandle, network, addr string) {
	var c net.PacketConn
	in(t, ns, func() (err error) {
		l := net.ListenConfig{Control: withoutChecksum}
		c, err = l.ListenPacket(t.Context(), network, addr)
		return err
	})
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			size, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo([]byte(fmt.Sprintf("zero %s %d", from, size)), from)
		}
	}()
}
