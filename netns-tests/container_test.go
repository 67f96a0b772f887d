package netnstests

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// container is a network namespace on a node that is none of the lab's places; it
// has no name, and ends with its processes.
type container struct {
	lab    *lab.Lab
	node   string
	pid    string // of the process that holds it
	remote *echo.Remote
	joined int
}

// newContainer makes one, in which something answers under a name as Pods do.
func newContainer(t *testing.T, l *lab.Lab, node, name string) *container {
	t.Helper()
	c := &container{lab: l, node: node}
	holder := c.start(t, nil, nil, "unshare", "--net", "sleep", "infinity")
	c.pid = strconv.Itoa(holder)
	var own string
	if err := l.Do(node, func() (err error) { own, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error {
		if now, err := os.Readlink("/proc/" + c.pid + "/ns/net"); err != nil || now == own {
			return fmt.Errorf("no namespace of its own: %w", errOrNone(err))
		}
		return nil
	})
	c.run(t, "ip", "link", "set", "lo", "up")
	in, out := pipes(t)
	c.start(t, in.r, out.w, "nsenter", "-t", c.pid, "-n", l.Options().Binary, "lab", "dialer")
	c.remote = echo.NewRemote(in.w, out.r)
	var said safeBuffer
	c.start(t, nil, &said, "nsenter", "-t", c.pid, "-n", l.Options().Binary, "lab", "echo", "--name", name)
	eventually(t, patience, said.has("listening"))
	return c
}

type pipe struct {
	r io.Reader
	w io.WriteCloser
}

func pipes(t *testing.T) (in, out pipe) {
	t.Helper()
	for _, p := range []*pipe{&in, &out} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		p.r, p.w = r, w
	}
	return in, out
}

// start runs a process on the node until the test ends, and returns its id.
func (c *container) start(t *testing.T, in io.Reader, out io.Writer, argv ...string) int {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := c.lab.Command(ctx, c.node, argv...)
	cmd.Stdin, cmd.Stdout = in, out
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
	})
	return cmd.Process.Pid
}

// run runs a command inside.
func (c *container) run(t *testing.T, argv ...string) {
	t.Helper()
	inPlace(t, c.lab, c.node, append([]string{"nsenter", "-t", c.pid, "-n"}, argv...)...)
}

// join links it to a bridge of the node.
func (c *container) join(t *testing.T, bridge, v4, gateway4, v6, gateway6 string) {
	t.Helper()
	host := fmt.Sprintf("box%d", c.joined)
	inPlace(t, c.lab, c.node, "ip", "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", c.pid)
	inPlace(t, c.lab, c.node, "ip", "link", "set", host, "master", bridge, "up")
	c.address(t, "eth0", v4, gateway4, v6, gateway6)
}

// address gives an interface inside addresses and default routes.
func (c *container) address(t *testing.T, dev, v4, gateway4, v6, gateway6 string) {
	t.Helper()
	c.joined++
	c.run(t, "ip", "addr", "add", v4, "dev", dev)
	c.run(t, "ip", "-6", "addr", "add", v6, "dev", dev, "nodad")
	c.run(t, "ip", "link", "set", dev, "up")
	c.run(t, "ip", "route", "add", "default", "via", gateway4)
	c.run(t, "ip", "-6", "route", "add", "default", "via", gateway6)
}

// opens wants one of names to answer what the container asks, and to see an
// address as its source; any, where that is invalid.
func (c *container) opens(network echo.Network, to netip.AddrPort, source netip.Addr, names ...string) check {
	return check{fmt.Sprintf("a container to %s over %s", to, network), func(ctx context.Context) error {
		answer, err := c.remote.Dial(ctx, echo.Request{Network: network, To: to})
		switch {
		case err != nil:
			return err
		case !strings.Contains(" "+strings.Join(names, " ")+" ", " "+answer.Name+" "):
			return fmt.Errorf("%q answered, want one of %q", answer.Name, names)
		case source.IsValid() && answer.Source.Addr() != source:
			return fmt.Errorf("%s saw %s, want %s", answer.Name, answer.Source.Addr(), source)
		}
		return nil
	}}
}

// serveAt answers over TCP and UDP at one address of a place until the test ends.
func serveAt(t *testing.T, l *lab.Lab, place string, at netip.AddrPort, name string) {
	t.Helper()
	var tcp net.Listener
	var udp net.PacketConn
	err := l.Do(place, func() (err error) {
		if tcp, err = net.Listen("tcp", at.String()); err != nil {
			return err
		}
		udp, err = net.ListenPacket("udp", at.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close(); udp.Close() })
	go serveTCP(tcp, name)
	go serveUDP(udp, name)
}

// fields splits a command into words, with some replaced.
func fields(command string, words ...string) []string {
	return strings.Fields(strings.NewReplacer(words...).Replace(command))
}
