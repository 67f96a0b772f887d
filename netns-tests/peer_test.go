package netnstests

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// TestP54PeerNameIsWhatWasDialled asks sockets for their peers: TCP, UDP that
// is connected and UDP that is not, of both families, and IPv4 on IPv6
// sockets; and again when the endpoint is gone.
func TestP54PeerNameIsWhatWasDialled(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false, "--terminate-sockets", "none")
		s := find("single")
		apply(t, l, s, find("remote"))
		startAgents(t, l)
		type asked struct {
			text string
			more *bufio.Scanner
			next func()
			want string
		}
		var all []asked
		for _, from := range []string{"pod-a2", "node-a"} {
			for _, kind := range []string{"tcp", "udp", "udp-unconnected"} {
				for _, family := range []string{"4", "6", "mapped"} {
					to := s.addr("cluster", 80, family == "6")
					cmd := l.Command(t.Context(), from, os.Args[0], "peer-names", kind, family, to.String())
					in, inErr := cmd.StdinPipe()
					out, outErr := cmd.StdoutPipe()
					cmd.Stderr = os.Stderr
					if err := cmd.Start(); inErr != nil || outErr != nil || err != nil {
						t.Fatal(inErr, outErr, err)
					}
					t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
					all = append(all, asked{from + " " + kind + " over " + family, bufio.NewScanner(out),
						func() { fmt.Fprintln(in) }, to.String()})
				}
			}
		}
		check := func(when string) {
			for _, a := range all {
				a.more.Scan()
				if got := a.more.Text(); got != a.want {
					t.Errorf("%s, %s: the peer is %q, want %q", a.text, when, got, a.want)
				}
			}
		}
		check("at first")
		s.endpoints = pods("pod-b1")
		apply(t, l, s)
		eventually(t, patience, func() error { return answers(t, l, s.name, "pod-b1") })
		for _, a := range all {
			a.next()
		}
		check("after its endpoint is gone")
	})
}

// peerNames is run in a place of the lab: it prints the peer that a socket has,
// or that an answer comes from, and again for each line that it reads.
func peerNames(kind, family, to string) int {
	fail := func(err error) int { fmt.Println(err); return 1 }
	target := netip.MustParseAddrPort(to)
	domain := unix.AF_INET6
	var addr unix.Sockaddr = &unix.SockaddrInet6{Port: int(target.Port()), Addr: target.Addr().As16()}
	if family == "4" {
		domain, addr = unix.AF_INET, &unix.SockaddrInet4{Port: int(target.Port()), Addr: target.Addr().As4()}
	}
	protocol := unix.SOCK_DGRAM
	if kind == string(echo.TCP) {
		protocol = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(domain, protocol, 0)
	if err != nil {
		return fail(err)
	}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}) // then the test shows EAGAIN
	connected := kind != "udp-unconnected"
	if connected {
		if err := unix.Connect(fd, addr); err != nil {
			return fail(err)
		}
	}
	input := bufio.NewScanner(os.Stdin)
	for more := true; more; more = input.Scan() {
		var peer unix.Sockaddr
		if connected {
			peer, err = unix.Getpeername(fd)
		} else if err = unix.Sendto(fd, []byte("who"), 0, addr); err == nil {
			for err = unix.EINTR; err == unix.EINTR; { // the runtime's signals
				_, peer, err = unix.Recvfrom(fd, make([]byte, 1500), 0)
			}
		}
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(socketAddress(peer))
	}
	return 0
}

func socketAddress(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// TestP51OutsideTheCgroup dials from a Pod, but not from its cgroup, as a
// virtual machine does: no program sees its sockets, the packet path has to do
// it all. And a proxy in the Pod, sent to by REDIRECT, sees the Service.
func TestP51OutsideTheCgroup(t *testing.T) {
	eachEBPF(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"), find("empty"))
		startAgents(t, l)
		outside := func(target string, v6 bool) (answer echo.Answer, err error) {
			_, to := parseTarget(target, v6)
			err = l.Do("pod-a2", func() (err error) {
				answer, err = echo.Dial(t.Context(), echo.Request{Network: echo.TCP, To: to})
				return err
			})
			return answer, err
		}
		for _, v6 := range []bool{false, true} {
			for _, target := range []string{"web cluster", "web node-b", "web external", "web balancer"} {
				if answer, err := outside(target, v6); err != nil || !strings.Contains(everyPod, answer.Name) {
					t.Errorf("%s: %v, %v", target, answer, err)
				}
			}
			if _, err := outside("empty cluster", v6); !(flow{from: lab.MustPlace("pod-a2")}).isRefusal(err) {
				t.Errorf("no endpoints: %v, want refused", err)
			}
		}
		serve(t, l, "pod-a2", 15001, "sidecar")
		inPlace(t, l, "pod-a2", "iptables-nft", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-d", "10.96.0.1", "--dport", "80",
			"-j", "REDIRECT", "--to-ports", "15001")
		if answer, err := outside("web cluster", false); err != nil || answer.Name != "sidecar" {
			t.Errorf("with REDIRECT: %v, %v; want the sidecar's answer", answer, err)
		}
	})
}
