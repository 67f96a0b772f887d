package ebpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	mathbits "math/bits"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/service"
)

// stressTime is how long TestScarcePorts runs on each way, unless NODEPROXY_STRESS
// says another (10m for the long run).
const stressTime = 6 * time.Second

const (
	stressFirstPort = 40000
	stressPorts     = 64
)

// stress is the tally of TestScarcePorts.
type stress struct {
	opened, refused, sent  atomic.Int64
	wrong, lost, forgeries atomic.Int64
	first                  sync.Map // what went wrong first, by kind
	look                   func(port string) string
}

// fault counts, and keeps what the node knows of the first of a kind.
func (s *stress) fault(n *atomic.Int64, port int, format string, args ...any) {
	if n.Add(1) == 1 {
		s.first.Store(n, fmt.Sprintf(format, args...)+"\n"+s.look(fmt.Sprint(port)))
	}
}

// lookAt tells what conntrack and the cache have of a client's port.
func (n *testNet) lookAt(d *Dataplane, port string) string {
	var out strings.Builder
	_ = inNS(n.node, func() error {
		for _, family := range []string{"ipv4", "ipv6"} {
			entries, err := exec.Command("conntrack", "-L", "-f", family, "-p", "tcp", "--sport", port).Output()
			fmt.Fprintln(&out, string(entries), err)
		}
		return nil
	})
	flows := map[bpfTuple]bpfFlow{}
	if err := readMap(d.objs.Flows, flows); err != nil {
		fmt.Fprintln(&out, err)
	}
	for k, f := range flows {
		if text := fmt.Sprintf("%v -> %v", k, f.To); fmt.Sprint(mathbits.ReverseBytes16(k.Sport)) == port || fmt.Sprint(mathbits.ReverseBytes16(k.Dport)) == port ||
			fmt.Sprint(mathbits.ReverseBytes16(f.To.Sport)) == port || fmt.Sprint(mathbits.ReverseBytes16(f.To.Dport)) == port {
			fmt.Fprintf(&out, "%s: %+v\n", text, f)
		}
	}
	return out.String()
}

// TestScarcePorts: two clients outside and a Pod share 64 source ports, and make, use,
// close and reset connections to a Service and to its endpoint itself as fast as they
// can, while one packet in fifty is lost, one in 32 comes late, and a forger sends segments in their names.
// Nobody gets a byte of another's, and no connection that was answered is lost.
func TestScarcePorts(t *testing.T) {
	for _, way := range bothWays {
		t.Run(string(way), func(t *testing.T) {
			n := newTestNet(t)
			second := n.addSecondClient(t)
			for f := range 2 {
				echoAll(t, n.podA, join(podA[f], "8080"), f)
				echoAll(t, n.remote, join(podRemote[f], "8080"), f)
				n.loseSome(t, f)
			}
			held := []func() int{reorderSome(t, n.client), reorderSome(t, n.remote)}
			d := n.start(t, Options{PacketsOnly: true, Forwarding: way})
			backends := append(to(podA, "8080"), to(podRemote, "8080")...)
			syncAll(t, d, n.table(both(svc{name: "s", backends: backends, policy: service.PolicyCluster})...))
			s := stress{look: func(port string) string { return n.lookAt(d, port) }}
			n.runStress(t, &s, second)
			late := held[0]() + held[1]()
			t.Logf("%d connections and datagram flows, %d more could not be opened, %d exchanges, %d forged segments, %d frames out of order",
				s.opened.Load(), s.refused.Load(), s.sent.Load(), s.forgeries.Load(), late)
			s.first.Range(func(_, what any) bool { t.Log("the first: ", what); return true })
			if s.wrong.Load() > 0 || s.lost.Load() > 0 {
				t.Errorf("%d times bytes of another, %d connections lost", s.wrong.Load(), s.lost.Load())
			}
			if s.opened.Load() < 200 || s.forgeries.Load() < 100 || late < 100 {
				t.Error("so few prove nothing")
			}
		})
	}
}

// runStress has all clients work until the time is over.
func (n *testNet) runStress(t *testing.T, s *stress, second [2]string) {
	t.Helper()
	limit := stressTime
	if long, err := time.ParseDuration(os.Getenv("NODEPROXY_STRESS")); err == nil {
		limit = long
	}
	end := time.Now().Add(limit)
	var all sync.WaitGroup
	for f := range 2 {
		node, direct := join(nodeIP[f], "30080"), join(podA[f], "8080")
		for _, c := range []struct {
			ns   string
			from string
			to   []string
		}{
			{"client", clientIP[f], []string{node}}, {"client", second[f], []string{node}},
			{"podB", podB[f], []string{join(vip[f], "80"), direct, node}},
		} {
			ns := n.client
			if c.ns == "podB" {
				ns = n.podB
			}
			for worker := range 6 {
				all.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(f), uint64(worker)))
					in(t, ns, func() error {
						for time.Now().Before(end) {
							s.one(networks[worker%3/2][f], c.from, c.to[rng.IntN(len(c.to))], rng)
						}
						return nil
					})
				})
			}
		}
	}
	all.Go(func() {
		rng := rand.New(rand.NewPCG(3, 4))
		for time.Now().Before(end) {
			f, from := rng.IntN(2), clientIP
			if rng.IntN(2) == 0 {
				from = second
			}
			flags := []byte{rst, syn, fin | ack, rst | ack}[rng.IntN(4)]
			forged := frame{proto: service.TCP, flags: flags, seq: rng.Uint32(), ack: rng.Uint32()}.to(from[f],
				uint16(stressFirstPort+rng.IntN(stressPorts)), nodeIP[f], 30080)
			if n.sendTo(forged) == nil {
				s.forgeries.Add(1)
			}
			time.Sleep(time.Millisecond)
		}
	})
	all.Wait()
}

// one opens a flow from one of the scarce ports, exchanges tokens, and ends it as it
// comes: closed by either side, or reset.
func (s *stress) one(network, from, to string, rng *rand.Rand) {
	tcp := strings.HasPrefix(network, "tcp")
	port := stressFirstPort + rng.IntN(stressPorts)
	local := join(from, fmt.Sprint(port))
	d := net.Dialer{Timeout: 3 * time.Second, Control: reuse}
	if tcp {
		d.LocalAddr, _ = net.ResolveTCPAddr(network, local)
	} else {
		d.LocalAddr, _ = net.ResolveUDPAddr(network, local)
		d.Control = nil // one socket has a port: datagrams know no connection
	}
	c, err := d.Dial(network, to)
	if err != nil {
		s.refused.Add(1) // the port is in use, or rests
		time.Sleep(time.Millisecond)
		return
	}
	defer c.Close()
	if !tcp {
		drain(c)
	}
	s.opened.Add(1)
	owner := binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte(from)))
	answered := false
	for range 1 + rng.IntN(30) {
		token := bytes.Repeat(binary.BigEndian.AppendUint32(slices.Clone(owner), rng.Uint32()), 1+rng.IntN(60))
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if !tcp {
			c.SetDeadline(time.Now().Add(200 * time.Millisecond))
		}
		got := make([]byte, len(token))
		_, err := c.Write(token)
		if err == nil && tcp {
			_, err = io.ReadFull(c, got)
		} else if err == nil {
			_, err = c.Read(got)
		}
		switch {
		case err != nil && !tcp:
			return // datagrams may be lost
		case err != nil && answered:
			s.fault(&s.lost, port, "%s from %s to %s: %v", network, local, to, err)
			return
		case err != nil:
			return
		case !tcp && bytes.HasPrefix(got, owner):
			// A late answer to a socket that had the port before is this client's own.
		case !bytes.Equal(got, token):
			s.fault(&s.wrong, port, "%s from %s to %s: sent %x, got %x", network, local, to, token[:8], got[:min(8, len(got))])
			return
		}
		answered = true
		s.sent.Add(1)
	}
	if t, ok := c.(*net.TCPConn); ok && rng.IntN(3) == 0 {
		t.SetLinger(0)
	}
}

// drain discards the answers to the socket that had the port before.
func drain(c net.Conn) {
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	for buf := make([]byte, 2048); ; {
		if _, err := c.Read(buf); err != nil {
			return
		}
	}
}

// echoAll answers with what it gets, TCP and UDP.
func echoAll(t *testing.T, ns netns.NsHandle, at string, f int) {
	t.Helper()
	var l net.Listener
	var u net.PacketConn
	in(t, ns, func() (err error) {
		if l, err = net.Listen(networks[0][f], at); err != nil {
			return err
		}
		u, err = net.ListenPacket(networks[1][f], at)
		return err
	})
	t.Cleanup(func() { l.Close(); u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	go func() {
		buf := make([]byte, 2048)
		for {
			size, from, err := u.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				u.WriteTo(buf[:size], from)
			}
		}
	}()
}

// addSecondClient gives the client's machine a second address of each family.
func (n *testNet) addSecondClient(t *testing.T) [2]string {
	t.Helper()
	second := [2]string{"192.168.77.101", "fd00:77::101"}
	in(t, n.client, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for f, bits := range []int{24, 64} {
			ip := net.ParseIP(second[f])
			a := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(bits, []int{32, 128}[f])}, Flags: unix.IFA_F_NODAD}
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
		}
		return nil
	})
	return second
}

// loseSome drops one packet in fifty where the clients and the far endpoint receive.
func (n *testNet) loseSome(t *testing.T, f int) {
	t.Helper()
	family := []string{"ip", "ip6"}[f]
	for _, ns := range []netns.NsHandle{n.client, n.remote, n.podB} {
		in(t, ns, func() error {
			rules := fmt.Sprintf("table %[1]s loss {\n chain in {\n type filter hook prerouting priority -300\n meta l4proto {tcp, udp} numgen random mod 50 == 0 drop\n}\n}\n", family)
			cmd := exec.Command("nft", "-f", "-")
			cmd.Stdin = strings.NewReader(rules)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
}

// vanish closes a socket without a word to its peer.
func vanish(c net.Conn) error {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_REPAIR, 1) })
	return errors.Join(err, failed, c.Close())
}

// TestOpenedAgain: both ends of a connection vanish without a word, so that conntrack has
// it as established still. The client opens another from the same port: conntrack judges
// the new one's windows, so that its segments must not pass conntrack by.
func TestOpenedAgain(t *testing.T) {
	for _, way := range bothWays {
		t.Run(string(way), func(t *testing.T) {
			n := newTestNet(t)
			d := n.start(t, Options{PacketsOnly: true, Forwarding: way})
			syncAll(t, d, n.table(svc{name: "s", proto: service.TCP, backends: to(podA, "8080")}))
			for f := range 2 {
				accepted := make(chan net.Conn, 2)
				in(t, n.podA, func() error {
					l, err := net.Listen(networks[0][f], join(podA[f], "8080"))
					if err != nil {
						return err
					}
					t.Cleanup(func() { l.Close() })
					go func() {
						for c, err := l.Accept(); err == nil; c, err = l.Accept() {
							accepted <- c
							go io.Copy(c, c)
						}
					}()
					return nil
				})
				in(t, n.client, func() error {
					for again := range 3 {
						c := hold(t, networks[0][f], join(nodeIP[f], "30080"), join(clientIP[f], "41000"))
						if err := pingPong(c, 200); err != nil {
							t.Fatalf("%s, time %d: %v", famNames[f], again, err)
						}
						if fast := fastHalves(t, d); way == ForwardingFast && fast < 2 {
							t.Errorf("%s, time %d: %d halves on the fast way", famNames[f], again, fast)
						}
						if err := errors.Join(vanish(c), vanish(<-accepted)); err != nil {
							return err
						}
					}
					return nil
				})
			}
		})
	}
}

// pingPong sends and reads the same, over and over.
func pingPong(c net.Conn, times int) error {
	for i := range times {
		c.SetDeadline(time.Now().Add(2 * time.Second))
		got, sent := make([]byte, 1000), bytes.Repeat([]byte{byte(i)}, 1000)
		if _, err := c.Write(sent); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
			return fmt.Errorf("exchange %d: %w", i, err)
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}
