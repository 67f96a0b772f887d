package ebpf

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/service"
)

// TestP12InsertRace: two threads send the first two datagrams of one socket at
// the same instant, and both are answered.
func TestP12InsertRace(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	d := n.start(t, Options{PacketsOnly: true, Sizes: Sizes{Flows: 32768}})
	syncAll(t, d, n.table(svc{name: "s", proto: service.UDP,
		backends: append(append(to(podA, "8080"), to(podB, "8080")...), to(podRemote, "8080")...)}))
	for f, rounds := range [2]int{10000, 2000} {
		lost := 0
		for range rounds {
			var c net.Conn
			in(t, n.client, func() (err error) {
				c, err = net.Dial(networks[1][f], join(vip[f], "80"))
				return err
			})
			if err := twoAtOnce(c); err != nil {
				lost++
			}
			c.Close()
		}
		if lost > 0 {
			t.Errorf("%s: of %d rounds %d lost an answer", famNames[f], rounds, lost)
		}
	}
}

func twoAtOnce(c net.Conn) error {
	var ready atomic.Int32
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i := range errs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ready.Add(1); ready.Load() < 2; {
			}
			_, errs[i] = c.Write([]byte("question"))
		}()
	}
	wg.Wait()
	c.SetReadDeadline(time.Now().Add(time.Second))
	buf := make([]byte, 256)
	for range 2 {
		if _, err := c.Read(buf); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

// TestP24Loopback: what comes from outside to a loopback address is not served,
// though the node's own processes are there (TestSocketPath), and no sysctl
// opens the way.
func TestP24Loopback(t *testing.T) {
	const routeLocalnet = "/proc/sys/net/ipv4/conf/all/route_localnet"
	b := newBench(t, Options{})
	var before, after []byte
	in(t, b.n.node, func() (err error) { before, err = os.ReadFile(routeLocalnet); return err })
	table := b.n.table(both(svc{name: "s", backends: to(podA, "8080")})...)
	loop := [2]string{"127.0.0.1", "::1"}
	for f := range 2 {
		table.Node.Local[f] = append(table.Node.Local[f], netip.MustParseAddr(loop[f]))
	}
	syncAll(t, b.d, table)
	eachCase(func(f int, proto service.Protocol, name string) {
		packet := frame{proto: proto, flags: syn}.to(clientIP[f], 40000, loop[f], 30080).bytes()
		if verdict, out := b.run(t, b.d.objs.Ingress, "eth0", packet); verdict != verdictNext || !bytes.Equal(out, packet) {
			t.Errorf("%s: verdict %d, want the packet left to the stack as it is", name, verdict)
		}
		var answers atomic.Int64
		b.n.sniff(t, "eth0", func(p []byte) {
			if src, _ := addressesOf(p); src.IsLoopback() {
				answers.Add(1)
			}
		})
		in(t, b.n.client, func() error { return sendFrame(packet, everybody) })
		time.Sleep(50 * time.Millisecond)
		if answers.Load() > 0 || len(b.flows(t)) > 0 {
			t.Errorf("%s: %d answers, %d halves of flows", name, answers.Load(), len(b.flows(t)))
		}
	})
	in(t, b.n.node, func() (err error) { after, err = os.ReadFile(routeLocalnet); return err })
	if !bytes.Equal(before, after) {
		t.Errorf("route_localnet was %s and is %s", before, after)
	}
}

// TestP26HostNetwork: clients and backends in the host's own network.
func TestP26HostNetwork(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	cg := cgroup(t)
	d := n.start(t, Options{CgroupPath: cg})
	for _, where := range []struct {
		ips        [2]string
		port, name string
	}{{podRemote, "8080", "remote"}, {podA, "8080", "a"}, {nodeIP, "9090", "host"}} {
		t.Run("backend "+where.name, func(t *testing.T) {
			syncAll(t, d, n.table(both(svc{name: "s", backends: to(where.ips, where.port)})...))
			eachFlow(t, func(t *testing.T, f int, network string, proto service.Protocol) {
				source := "" // the node has more than one: routing chooses
				if where.name != "a" {
					source = nodeIP[f]
				}
				for _, dst := range []string{join(vip[f], "80"), join(lbIP[f], "80"), join(nodeIP[f], "30080")} {
					a, err := askInCgroup(t, n.node, cg, network, dst)
					wantAnswer(t, a, err, where.name, source)
					if proto == service.UDP {
						a, err = askInCgroup(t, n.node, cg, network, dst, "unconnected")
						wantAnswer(t, a, err, where.name, source)
					}
				}
				a, err := askInCgroup(t, n.podB, cg, network, join(vip[f], "80"))
				wantAnswer(t, a, err, where.name, podB[f])
				a, err = ask(n.client, network, join(nodeIP[f], "30080"))
				wantAnswer(t, a, err, where.name, "")
			})
		})
	}
}

// TestP40Kill9 kills agents under load: no new connection fails and no old one.
func TestP40Kill9(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	// Nobody collects flows while no agent lives.
	o := Options{PinRoot: bpffs(t) + "/nodeproxy", CgroupPath: cgroup(t), Sizes: Sizes{Flows: 32768}}
	d := n.start(t, o)
	syncAll(t, d, n.table(both(svc{name: "s", backends: to(podA, "8080")})...))
	before := n.hooks(t, o.PinRoot)
	d.Close()
	var conns []net.Conn
	in(t, n.client, func() error {
		for i := range 200 {
			c, err := net.Dial(networks[0][i%2], join(nodeIP[i%2], "30080"))
			if err != nil {
				return err
			}
			conns = append(conns, c)
		}
		return nil
	})
	stop := n.load(t)
	for range 3 {
		cmd := n.agent(t, o)
		time.Sleep(50 * time.Millisecond)
		cmd.Process.Signal(unix.SIGKILL)
		cmd.Wait()
		if after := n.hooks(t, o.PinRoot); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("hooks before: %v, after: %v", before, after)
		}
	}
	if made, failed := stop(); failed > 0 || made < 20 {
		t.Errorf("of %d connections made meanwhile, %d failed", made, failed)
		d = n.start(t, o)
		for i, name := range reasonNames {
			t.Log(name, d.metric(t, bpfReason(i)))
		}
	}
	for _, c := range conns {
		if _, err := exchange(c, 0); err != nil {
			t.Errorf("a connection from before: %v", err)
		}
		c.Close()
	}
}

// agent starts this binary as an agent in the node, and waits until it serves.
func (n *testNet) agent(t testing.TB, o Options) *exec.Cmd {
	t.Helper()
	cmd := clientProcess(t, o.CgroupPath, "agent", o.PinRoot, o.CgroupPath, "serve")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in(t, n.node, cmd.Start)
	line, err := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != "agent <nil>" {
		t.Fatalf("agent: %q %v", line, err)
	}
	return cmd
}

// TestP41OtherLayout: an agent with another layout of maps takes over from the
// one before, with a larger table of flows: connections go on, none fails
// meanwhile, and what the other left is gone.
func TestP41OtherLayout(t *testing.T) {
	for _, noTCX := range []bool{false, true} {
		t.Run(fmt.Sprintf("without TCX %v", noTCX), func(t *testing.T) { otherLayout(t, noTCX) })
	}
}

func otherLayout(t *testing.T, noTCX bool) {
	n := newTestNet(t)
	n.serveAll(t)
	o := Options{PinRoot: bpffs(t) + "/nodeproxy", CgroupPath: cgroup(t), NoTCX: noTCX, Sizes: Sizes{Flows: 8192}}
	d := n.start(t, o)
	table := n.table(both(svc{name: "s", backends: append(to(podA, "8080"), to(podB, "8080")...)})...)
	syncAll(t, d, table)
	hooks := n.hooks(t, o.PinRoot)
	var conns []net.Conn
	in(t, n.client, func() error {
		for i := range 1000 {
			c, err := net.Dial(networks[0][i%2], join(nodeIP[i%2], "30080"))
			if err != nil {
				return err
			}
			conns = append(conns, c)
		}
		return nil
	})
	d.Close()
	p := pinsOf(&d.o)
	other := filepath.Join(p.root, "v0")
	if err := os.Rename(filepath.Dir(p.maps), other); err != nil {
		t.Fatal(err)
	}
	stop := n.load(t)
	o.Sizes.Flows = 16384
	d = n.start(t, o)
	time.Sleep(300 * time.Millisecond) // the source has nothing to say yet
	syncAll(t, d, table)
	time.Sleep(100 * time.Millisecond)
	if made, failed := stop(); failed > 0 || made < 20 {
		t.Errorf("of %d connections made meanwhile, %d failed", made, failed)
	}
	for _, c := range conns {
		if _, err := exchange(c, 0); err != nil {
			t.Errorf("a connection from before: %v", err)
		}
		c.Close()
	}
	if after := n.hooks(t, o.PinRoot); !slices.Equal(hooks, after) {
		t.Errorf("hooks before: %v, after: %v", hooks, after)
	}
	if _, err := os.Stat(other); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("another layout's pins: %v", err)
	}
}

// TestP45WrongCgroup: where the path that programs are attached to is not what
// its name says, start fails with the reason.
func TestP45WrongCgroup(t *testing.T) {
	n := newTestNet(t)
	root, cg, elsewhere := bpffs(t)+"/nodeproxy", cgroup(t), cgroup(t)
	t.Cleanup(func() {
		if err := inNS(n.node, func() error { return Cleanup(Options{PinRoot: root, CgroupPath: cg}) }); err != nil {
			t.Error(err)
		}
	})
	cmd := clientProcess(t, cg, "agent", root, cg)
	if err := unix.Mount(elsewhere, cg, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(cg, unix.MNT_DETACH) })
	var out []byte
	in(t, n.node, func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	if !strings.Contains(string(out), ErrNotSeen.Error()) || !strings.Contains(string(out), cg) {
		t.Errorf("agent: %s", out)
	}
}

// TestP48TwoUplinks: under rp_filter 1 node ports answer on either uplink, and
// also to a client whose packets come by the one that its route does not name.
func TestP48TwoUplinks(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	veth(t, n.client, "eth1", n.node, "eth1")
	in(t, n.client, func() error { return addAddr("eth1", "192.168.78.100/24", 0) })
	in(t, n.node, func() error {
		return errors.Join(addAddr("eth1", "192.168.78.11/24", 0),
			sysctl("net/ipv4/conf/all/rp_filter", "1"), sysctl("net/ipv4/conf/eth0/rp_filter", "1"), sysctl("net/ipv4/conf/eth1/rp_filter", "1"))
	})
	d := n.start(t, Options{PacketsOnly: true})
	for _, where := range []struct {
		ips  [2]string
		name string
	}{{podA, "a"}, {podRemote, "remote"}} {
		table := n.table(both(svc{name: "s", backends: to(where.ips, "8080")})...)
		table.Node.Local[0] = append(table.Node.Local[0], netip.MustParseAddr("192.168.78.11"))
		syncAll(t, d, table)
		for _, network := range []string{"tcp4", "udp4"} {
			for dst, sources := range map[string][]string{
				"192.168.77.11:30080": {"192.168.77.100:0", "192.168.78.100:0"},
				"192.168.78.11:30080": {"192.168.78.100:0", "192.168.77.100:0"},
			} {
				for _, src := range sources {
					a, err := askFrom(n.client, network, dst, src, 0)
					if err != nil || a.name != where.name {
						t.Errorf("%s from %s to %s: %v %v", network, src, dst, a, err)
					}
				}
			}
		}
	}
}
