package ebpf

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/nodeproxy/nodeproxy/service"
)

// TestP20Fragments sends datagrams of 8 kB through a node port.
func TestP20Fragments(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	d := n.start(t, Options{PacketsOnly: true})
	for _, where := range [][2]string{podA, podRemote} {
		syncAll(t, d, n.table(both(svc{name: "s", backends: to(where, "8080")})...))
		for f := range 2 {
			for range 10 {
				if _, err := askFrom(n.client, networks[1][f], join(nodeIP[f], "30080"), "", 8000); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

// giveAway has Pod a send the same to all that connect to its port 8080.
func (n *testNet) giveAway(t *testing.T, want []byte) {
	t.Helper()
	for f := range 2 {
		var l net.Listener
		in(t, n.podA, func() (err error) {
			l, err = net.Listen(networks[0][f], join(podA[f], "8080"))
			return err
		})
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { c.Write(want); c.Close() }()
			}
		}()
	}
}

// TestP16SmallMTU downloads a megabyte over a link of 1280 bytes: the node has
// to tell the Pod, in its own terms, and does so for all that it sends.
func TestP16SmallMTU(t *testing.T) {
	n := newTestNet(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	n.giveAway(t, want)
	in(t, n.node, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(l, 1280)
	})
	d := n.start(t, Options{PacketsOnly: true})
	for _, policy := range []service.Policy{service.PolicyCluster, service.PolicyLocal} {
		syncAll(t, d, n.table(svc{name: "s", policy: policy, backends: to(podA, "8080"), local: to(podA, "8080")}))
		for f := range 2 {
			in(t, n.client, func() error {
				c, err := net.DialTimeout(networks[0][f], join(nodeIP[f], "30080"), 2*time.Second)
				if err != nil {
					return err
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(2 * time.Second))
				got, err := io.ReadAll(c)
				if !bytes.Equal(got, want) {
					t.Errorf("%s %s: %d bytes of %d", famNames[f], policy, len(got), len(want))
				}
				return err
			})
		}
	}
	if d.metric(t, bpfReasonREASON_TOO_BIG) == 0 {
		t.Error("nothing was too big: the test proves nothing")
	}
}

// TestP17NoListener: the backend's ICMP error reaches a connected UDP client.
func TestP17NoListener(t *testing.T) {
	n := newTestNet(t)
	cg := cgroup(t)
	d := n.start(t, Options{CgroupPath: cg})
	syncAll(t, d, n.table(both(svc{name: "s", backends: to(nodeIP, "1")})...))
	for f := range 2 {
		for p := range 2 {
			wantRefused(t, func() error { _, err := ask(n.client, networks[p][f], join(lbIP[f], "80")); return err })
		}
	}
	syncAll(t, d, n.table(both(svc{name: "s", backends: to(podA, "1")})...))
	for f := range 2 {
		for p := range 2 {
			wantRefused(t, func() error { _, err := ask(n.client, networks[p][f], join(nodeIP[f], "30080")); return err })
			wantRefused(t, func() error { _, err := ask(n.podB, networks[p][f], join(vip[f], "80")); return err })
			wantRefused(t, func() error {
				_, err := askInCgroup(t, n.podB, cg, networks[p][f], join(vip[f], "80"))
				return err
			})
		}
	}
}

// TestP31SourcePortOfANodePort: a process of the host whose own port is a node
// port's gets its answers.
func TestP31SourcePortOfANodePort(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	d := n.start(t, Options{PacketsOnly: true})
	syncAll(t, d, n.table(both(svc{name: "s", backends: to(podA, "8080")})...))
	for f := range 2 {
		for p := range 2 {
			serve(t, n.client, networks[p][f], join(clientIP[f], "7000"), "outside")
			a, err := askFrom(n.node, networks[p][f], join(clientIP[f], "7000"), join(nodeIP[f], "30080"), 0)
			wantAnswer(t, a, err, "outside", nodeIP[f])
		}
	}
}

// TestP8RealSockets: one source port, two Services, one backend.
func TestP8RealSockets(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	d := n.start(t, Options{})
	first := svc{name: "first", backends: to(podRemote, "8080")}
	second := svc{name: "second", backends: to(podRemote, "8080"), port: 81, nodePort: 30081}
	syncAll(t, d, n.table(first, second))
	for f := range 2 {
		in(t, n.podB, func() error {
			var conns []net.Conn
			for _, port := range []string{"80", "81"} {
				dial := net.Dialer{Timeout: 2 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(podB[f]), Port: 5555}, Control: reuse}
				c, err := dial.Dial(networks[0][f], join(vip[f], port))
				if err != nil {
					return err
				}
				defer c.Close()
				conns = append(conns, c)
			}
			for _, c := range conns {
				a, err := exchange(c, 0)
				wantAnswer(t, a, err, "remote", podB[f])
			}
			return nil
		})
	}
}

// TestP40Restart: connections live through Close and New, on both paths, new
// ones never fail, and there is one program on each hook after it.
func TestP40Restart(t *testing.T) {
	for _, noTCX := range []bool{false, true} {
		n := newTestNet(t)
		n.serveAll(t)
		o := Options{PinRoot: bpffs(t) + "/nodeproxy", CgroupPath: cgroup(t), NoTCX: noTCX}
		d := n.start(t, o)
		table := n.table(both(svc{name: "s", backends: to(podA, "8080")})...)
		syncAll(t, d, table)
		var conn net.Conn
		in(t, n.client, func() (err error) {
			conn, err = net.Dial("tcp4", join(nodeIP[0], "30080"))
			return err
		})
		defer conn.Close()
		before := n.hooks(t, o.PinRoot)
		stop := n.load(t)
		for range 3 {
			d.Close()
			if a, err := ask(n.client, "tcp4", join(nodeIP[0], "30080")); err != nil || a.name != "a" {
				t.Errorf("without an agent: %v %v", a, err)
			}
			d = n.start(t, o)
			if a, err := askInCgroup(t, n.podB, o.CgroupPath, "tcp6", join(vip[1], "80")); err != nil || a.name != "a" {
				t.Errorf("before the first sync: %v %v", a, err)
			}
			syncAll(t, d, table)
			if _, err := exchange(conn, 0); err != nil {
				t.Errorf("established connection: %v", err)
			}
			if after := n.hooks(t, o.PinRoot); !slices.Equal(before, after) {
				t.Errorf("hooks before: %v, after: %v", before, after)
			}
		}
		if made, failed := stop(); failed > 0 || made < 50 {
			t.Errorf("of %d connections made meanwhile, %d failed", made, failed)
		}
	}
}

// load makes connections one after another until it is stopped, and tells how
// many, and how many failed.
func (n *testNet) load(t *testing.T) (stop func() (made, failed int)) {
	end, ended := make(chan struct{}), make(chan struct{})
	made, failed := 0, 0
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			default:
			}
			made++
			if _, err := ask(n.client, "tcp4", join(nodeIP[0], "30080")); err != nil {
				t.Log(err)
				failed++
			}
		}
	}()
	return func() (int, int) {
		close(end)
		<-ended
		return made, failed
	}
}

// hooks lists pins and filters, sorted.
func (n *testNet) hooks(t testing.TB, root string) (out []string) {
	t.Helper()
	filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			out = append(out, strings.TrimPrefix(path, root))
		}
		return nil
	})
	in(t, n.node, func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			for _, side := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
				filters, _ := netlink.FilterList(l, side)
				for _, f := range filters {
					out = append(out, l.Attrs().Name+" "+f.Type()+" "+f.(*netlink.BpfFilter).Name)
				}
			}
			qdiscs, _ := netlink.QdiscList(l)
			for _, q := range qdiscs {
				out = append(out, l.Attrs().Name+" "+q.Type())
			}
		}
		return err
	})
	slices.Sort(out)
	return out
}

// TestP43Cleanup leaves nothing of ours and all of others.
func TestP43Cleanup(t *testing.T) {
	for _, noTCX := range []bool{false, true} {
		n := newTestNet(t)
		root := bpffs(t)
		o := Options{PinRoot: root + "/nodeproxy", CgroupPath: cgroup(t), NoTCX: noTCX}
		other := o
		other.Instance = "other"
		before := n.hooks(t, root)
		d := n.start(t, o)
		e := n.start(t, other)
		all := n.hooks(t, root)
		d.Close()
		in(t, n.node, func() error { return Cleanup(o) })
		left := n.hooks(t, root)
		if len(left) <= len(before) || len(left) >= len(all) {
			t.Errorf("of two instances, one is left with %d of %d hooks and pins", len(left), len(all))
		}
		e.Close()
		in(t, n.node, func() error { return Cleanup(other) })
		in(t, n.node, func() error { return Cleanup(other) }) // again is no error
		if after := n.hooks(t, root); !slices.Equal(before, after) {
			t.Errorf("before: %v\nafter: %v", before, after)
		}
	}
}

// TestInterfacesComeAndGo: a Pod that is born later is served, one that dies
// leaves no pin.
func TestInterfacesComeAndGo(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	root := bpffs(t)
	o := Options{PinRoot: root + "/nodeproxy", PacketsOnly: true}
	d := n.start(t, o)
	syncAll(t, d, n.table(both(svc{name: "s", backends: to(podA, "8080")})...))
	before := n.hooks(t, root)
	late := newNS(t)
	veth(t, n.node, "podc", late, "eth0")
	in(t, n.node, func() error {
		if err := addAddr("podc", gateway[0]+"/32", int(netlink.SCOPE_LINK)); err != nil {
			return err
		}
		return addRoute("podc", "10.244.1.9/32", "")
	})
	in(t, late, func() error {
		if err := addAddr("eth0", "10.244.1.9/32", 0); err != nil {
			return err
		}
		return addRoute("eth0", anyNet[0], gateway[0])
	})
	deadline := time.Now().Add(2 * time.Second)
	for len(n.hooks(t, root)) == len(before) && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	a, err := ask(late, "tcp4", join(vip[0], "80"))
	wantAnswer(t, a, err, "a", "10.244.1.9")
	in(t, n.node, func() error {
		l, err := netlink.LinkByName("podc")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	for !slices.Equal(n.hooks(t, root), before) {
		if time.Now().After(deadline.Add(2 * time.Second)) {
			t.Fatalf("left: %v, before: %v", n.hooks(t, root), before)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
