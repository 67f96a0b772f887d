package ebpf

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// This file holds the servers and clients of tests.

// serve answers at addr with "name source" until the test ends.
func serve(t testing.TB, ns netns.NsHandle, network, addr, name string) {
	t.Helper()
	if strings.HasPrefix(network, "udp") {
		var c net.PacketConn
		in(t, ns, func() (err error) {
			c, err = net.ListenPacket(network, addr)
			return err
		})
		t.Cleanup(func() { c.Close() })
		go func() {
			buf := make([]byte, 65536)
			for {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				c.WriteTo([]byte(fmt.Sprintf("%s %s %d", name, from, n)), from)
			}
		}()
		return
	}
	var l net.Listener
	in(t, ns, func() (err error) {
		l, err = net.Listen(network, addr)
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answerTCP(c, name)
		}
	}()
}

func answerTCP(c net.Conn, name string) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if _, err := fmt.Fprintf(c, "%s %s %d\n", name, c.RemoteAddr(), len(line)); err != nil {
			return
		}
	}
}

// ask dials from a namespace, outside of the test's cgroup, and returns what the
// server said: its name, the source that it saw, and how much it got.
func ask(ns netns.NsHandle, network, addr string) (answer, error) {
	return askFrom(ns, network, addr, "", 0)
}

type answer struct {
	name, source, peer string
}

func askFrom(ns netns.NsHandle, network, addr, local string, size int) (a answer, err error) {
	err = inNS(ns, func() error {
		a, err = askHere(network, addr, local, size)
		return err
	})
	return a, err
}

// reuse lets sockets share a source port.
func reuse(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
}

func askHere(network, addr, local string, size int) (answer, error) {
	d := net.Dialer{Timeout: 2 * time.Second}
	if local != "" {
		ap := netip.MustParseAddrPort(local)
		d.LocalAddr = net.TCPAddrFromAddrPort(ap)
		if strings.HasPrefix(network, "udp") {
			d.LocalAddr = net.UDPAddrFromAddrPort(ap)
		}
		d.Control = reuse
	}
	c, err := d.Dial(network, addr)
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	return exchange(c, size)
}

// exchange sends one line of at least size bytes and reads the answer.
func exchange(c net.Conn, size int) (answer, error) {
	c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write([]byte(strings.Repeat("x", max(size-1, 0)) + "\n")); err != nil {
		return answer{}, err
	}
	buf := make([]byte, 256)
	n, err := c.Read(buf)
	if err != nil {
		return answer{}, err
	}
	fields := strings.Fields(string(buf[:n]))
	if len(fields) < 2 {
		return answer{}, fmt.Errorf("answer %q", buf[:n])
	}
	host, _, _ := net.SplitHostPort(fields[1])
	return answer{fields[0], netip.MustParseAddr(host).Unmap().String(), c.RemoteAddr().String()}, nil
}

// askInCgroup does what ask does, in a process of its own in the cgroup.
func askInCgroup(t testing.TB, ns netns.NsHandle, cgroup, network, addr string, how ...string) (answer, error) {
	t.Helper()
	cmd := clientProcess(t, cgroup, append([]string{network, addr}, how...)...)
	var out []byte
	in(t, ns, func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	kind, rest, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if kind != "ok" {
		word, rest, _ := strings.Cut(rest, " ")
		took, err := time.ParseDuration(word)
		return answer{}, timedError{errors.Join(err, errors.New(rest)), took}
	}
	fields := strings.Fields(rest)
	return answer{fields[0], fields[1], fields[2]}, nil
}

// timedError is what a client process failed with, and how long that took it:
// its start is not the call's.
type timedError struct {
	error
	took time.Duration
}

// clientProcess is this binary as a client, in a cgroup.
func clientProcess(t testing.TB, cgroup string, what ...string) *exec.Cmd {
	t.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "NODEPROXY_TEST_ASK="+strings.Join(what, " "))
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	return cmd
}

// TestMain makes the test's binary a client, too.
func TestMain(m *testing.M) {
	want := os.Getenv("NODEPROXY_TEST_ASK")
	if want == "" {
		os.Exit(m.Run())
	}
	fields := strings.Fields(want)
	if fields[0] == "agent" {
		d, err := New(Options{PinRoot: fields[1], CgroupPath: fields[2]})
		serve := err == nil && len(fields) > 3
		if err == nil && !serve {
			err = d.Close()
		}
		fmt.Println("agent", err)
		if serve {
			time.Sleep(time.Hour) // until it is killed
		}
		os.Exit(0)
	}
	if len(fields) > 2 && fields[2] == "hold" {
		holdConnection(fields[0], fields[1])
		os.Exit(0)
	}
	if len(fields) > 2 && fields[2] == "many" {
		holdMany(fields[1])
		os.Exit(0)
	}
	ask := func() (answer, error) { return askHere(fields[0], fields[1], "", 0) }
	if len(fields) > 2 && fields[2] == "unconnected" {
		ask = func() (answer, error) { return askUnconnected(fields[0], fields[1:2]) }
	} else if len(fields) > 2 {
		ask = func() (answer, error) { return askHere(fields[0], fields[1], fields[2], 0) }
	}
	start := time.Now()
	a, err := ask()
	if err != nil {
		fmt.Println("error", time.Since(start), err)
	} else {
		fmt.Println("ok", a.name, a.source, a.peer)
	}
	os.Exit(0)
}

// holdConnection says "connected" once an answer came, and then why it ended.
func holdConnection(network, addr string) {
	c, err := net.Dial(network, addr)
	if err == nil {
		_, err = exchange(c, 0)
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("connected")
	c.SetDeadline(time.Time{})
	_, err = c.Read(make([]byte, 1))
	fmt.Println(err)
}

// askUnconnected sends from a socket that is not connected; peer is where the
// answer says it comes from.
func askUnconnected(network string, addrs []string) (a answer, err error) {
	c, err := net.ListenPacket(network, ":0")
	if err != nil {
		return a, err
	}
	defer c.Close()
	for _, addr := range addrs {
		to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr))
		if _, err := c.WriteTo([]byte("hello"), to); err != nil {
			return a, err
		}
		c.SetDeadline(time.Now().Add(2 * time.Second))
		buf := make([]byte, 256)
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return a, err
		}
		fields := strings.Fields(string(buf[:n]))
		host, _, _ := net.SplitHostPort(fields[1])
		a = answer{fields[0], netip.MustParseAddr(host).Unmap().String(), from.String()}
	}
	return a, nil
}
