package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// TestReachability dials every Pod from every place, by its own address, over
// everything that it serves.
func TestReachability(t *testing.T) {
	for _, bridge := range []bool{false, true} {
		t.Run(fmt.Sprintf("bridge=%v", bridge), func(t *testing.T) {
			l := labtest.Up(t, lab.Options{Bridge: bridge})
			for _, from := range lab.Places() {
				for _, pod := range lab.PlacesOf(lab.Pod) {
					for _, v6 := range []bool{false, true} {
						checkPod(t, l, from, pod, v6)
					}
				}
			}
		})
	}
}

func checkPod(t *testing.T, l *lab.Lab, from, pod lab.Place, v6 bool) {
	t.Helper()
	for network, port := range map[echo.Network]uint16{
		echo.TCP: echo.PortEcho, echo.UDP: echo.PortEcho, echo.HTTP: echo.PortHTTP,
	} {
		to := netip.AddrPortFrom(pod.Addr(v6), port)
		answer, err := l.Dial(t.Context(), from.Name, network, to)
		if err != nil {
			t.Errorf("%s -> %s over %s: %v", from.Name, to, network, err)
			continue
		}
		if answer.Name != pod.Name {
			t.Errorf("%s -> %s over %s: %s answered, want %s", from.Name, to, network, answer.Name, pod.Name)
		}
		// A bridged Pod sees its own node as the bridge, so only what is no
		// node or router is asked for its source.
		seen := answer.Source.Addr()
		if (from.Kind == lab.Client || from.Kind == lab.Pod) && from.Name != pod.Name && seen != from.Addr(v6) {
			t.Errorf("%s -> %s over %s: the Pod saw %s, want %s", from.Name, to, network, seen, from.Addr(v6))
		}
	}
}

// TestNodeSource checks which address a node has towards Pods: on routed
// veths its own, on both nodes.
func TestNodeSource(t *testing.T) {
	l := labtest.Up(t, lab.Options{})
	for _, node := range lab.PlacesOf(lab.Node) {
		for _, pod := range lab.PlacesOf(lab.Pod) {
			for _, v6 := range []bool{false, true} {
				to := netip.AddrPortFrom(pod.Addr(v6), echo.PortEcho)
				answer, err := l.Dial(t.Context(), node.Name, echo.TCP, to)
				if err != nil || answer.Source.Addr() != node.Addr(v6) {
					t.Errorf("%s -> %s: source %v, error %v; want source %s", node.Name, to, answer.Source, err, node.Addr(v6))
				}
			}
		}
	}
}

// TestClientReachesNodes checks that nodes are reachable and that nothing
// listens there: the answer is a reset, not silence. Service addresses are
// nobody's.
func TestClientReachesNodes(t *testing.T) {
	l := labtest.Up(t, lab.Options{})
	for _, node := range lab.PlacesOf(lab.Node) {
		for _, addr := range node.Addrs() {
			_, err := l.Dial(t.Context(), "client", echo.TCP, netip.AddrPortFrom(addr, 30070))
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("client -> %s port 30070: %v, want refused", addr, err)
			}
		}
	}
	for _, addr := range []string{"10.96.0.10:80", "[fd00:10:96::10]:80"} {
		_, err := l.Dial(t.Context(), "client", echo.TCP, netip.MustParseAddrPort(addr))
		if !errors.Is(err, syscall.ENETUNREACH) && !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("client -> %s: %v, want unreachable", addr, err)
		}
	}
}

// TestDo checks that Go code runs within a place and comes back, also by way
// of a panic.
func TestDo(t *testing.T) {
	l := labtest.Up(t, lab.Options{})
	home := links(t)
	err := l.Do("pod-b1", func() error {
		answer, err := echo.Dial(t.Context(), echo.Request{
			Network: echo.UDP, To: netip.MustParseAddrPort("10.244.1.11:7000"),
		})
		if err == nil && answer.Source.Addr() != lab.MustPlace("pod-b1").IPv4 {
			err = fmt.Errorf("answer %v", answer)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	func() {
		defer func() { _ = recover() }()
		_ = l.Do("client", func() error { panic("on purpose") })
	}()
	if diff := cmp.Diff(home, links(t)); diff != "" {
		t.Errorf("not back in the own namespace:\n%s", diff)
	}
	if err := l.Do("moon", func() error { return nil }); err == nil || !strings.Contains(err.Error(), "valid are client, router") {
		t.Errorf("unknown place: %v", err)
	}
}

// TestConn keeps connections open from afar, many at a time.
func TestConn(t *testing.T) {
	l := labtest.Up(t, lab.Options{})
	remote, err := l.Dialer("client")
	if err != nil {
		t.Fatal(err)
	}
	for _, network := range []echo.Network{echo.TCP, echo.UDP} {
		conn, err := remote.Open(t.Context(), echo.Request{
			Network: network, To: netip.MustParseAddrPort("10.244.2.11:7000"),
			From: netip.MustParseAddrPort("192.168.78.10:40001"),
		})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			answer, err := conn.Ping(t.Context())
			if err != nil || answer.Source.Port() != 40001 {
				t.Errorf("%s: answer %v, error %v; want source port 40001", network, answer, err)
			}
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if _, err := conn.Ping(t.Context()); err == nil {
			t.Errorf("%s: a ping of a closed connection succeeded", network)
		}
	}
	_, err = remote.Dial(t.Context(), echo.Request{Network: echo.UDP, To: netip.MustParseAddrPort("10.244.2.11:9")})
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("UDP to a closed port: %v, want refused", err)
	}
}

// TestMTU checks that the router tells senders of too much, either way,
// and that nothing is lost: a path that was narrowed carries a long stream.
func TestMTU(t *testing.T) {
	l := labtest.Up(t, lab.Options{})
	for _, set := range []func(int) error{l.SetMTU, l.SetClientMTU} {
		if err := set(1300); err != nil {
			t.Fatal(err)
		}
	}
	for _, host := range []string{"10.244.1.11", "fd00:10:244:1::11"} {
		for _, reverse := range [][]string{nil, {"-R"}} {
			to := netip.AddrPortFrom(netip.MustParseAddr(host), lab.PortIPerf)
			result, err := l.IPerf(t.Context(), "client", to, time.Second, reverse...)
			if err != nil || result.BitsPerSecond < 1e6 {
				t.Errorf("iperf3 %v to %s: %+v, error %v", reverse, to, result, err)
			}
		}
	}
	routes, err := l.Command(t.Context(), "client", "ip", "route", "get", "10.244.1.11").Output()
	if err != nil || !strings.Contains(string(routes), "mtu 1300") {
		t.Errorf("the client has not learned the path's MTU: %s, error %v", routes, err)
	}
}

func TestUpTwice(t *testing.T) {
	l := labtest.Up(t, lab.Options{})
	if _, err := lab.Up(t.Context(), l.Options()); !errors.Is(err, lab.ErrExists) {
		t.Errorf("second Up: %v, want ErrExists", err)
	}
	again, err := lab.Open(l.Name())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(l.Options(), again.Options()); diff != "" {
		t.Errorf("Open (-built +opened):\n%s", diff)
	}
	labtest.Up(t, lab.Options{}) // another, beside it
}

// TestForeignFiles checks that Up does not take over files that were there.
func TestForeignFiles(t *testing.T) {
	labtest.RequireRoot(t)
	before := traces(t)
	dir := t.TempDir()
	theirs := filepath.Join(dir, "manifests", "theirs.yaml")
	if err := errors.Join(os.Mkdir(filepath.Dir(theirs), 0o755), os.WriteFile(theirs, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	_, err := lab.Up(t.Context(), lab.Options{Name: labtest.Name(), Dir: dir, Binary: labtest.Binary(t)})
	if err == nil {
		t.Error("Up took over a directory that has manifests")
	}
	if _, err := os.Stat(theirs); err != nil {
		t.Error(err)
	}
	checkTraces(t, before)
}

// TestDownLeavesNothing compares the machine before and after, with a
// directory of its own and processes of every kind running.
func TestDownLeavesNothing(t *testing.T) {
	labtest.RequireRoot(t)
	before := traces(t)
	dir := filepath.Join(t.TempDir(), "lab")
	l, err := lab.Up(t.Context(), lab.Options{Name: labtest.Name(), Dir: dir, Bridge: true, Binary: labtest.Binary(t)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Start("pod-a1", "stubborn", "sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000"); err != nil {
		t.Error(err)
	}
	if _, err := l.Dialer("node-a"); err != nil {
		t.Error(err)
	}
	if cgroup, err := l.Cgroup("node-b"); err != nil {
		t.Error(err)
	} else if err := os.MkdirAll(filepath.Join(cgroup, "made", "by", "hand"), 0o755); err != nil {
		t.Error(err)
	}
	if err := l.Down(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s is still there", dir)
	}
	checkTraces(t, before)
	if err := lab.Down(l.Name()); !errors.Is(err, lab.ErrNotFound) {
		t.Errorf("Down of a lab that is gone: %v, want ErrNotFound", err)
	}
}

// TestUpFails checks that an Up that fails late, or is cancelled, cleans up.
func TestUpFails(t *testing.T) {
	labtest.RequireRoot(t)
	before := traces(t)
	_, err := lab.Up(t.Context(), lab.Options{Name: labtest.Name(), Binary: "/bin/false"})
	if err == nil || !strings.Contains(err.Error(), "echo-pod-a1 ended") {
		t.Errorf("Up with a program that fails: %v", err)
	}
	checkTraces(t, before)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := lab.Up(ctx, lab.Options{Name: labtest.Name(), Binary: labtest.Binary(t)}); err == nil {
		t.Error("Up within 10 ms succeeded")
	}
	checkTraces(t, before)
}

// TestCrash kills `lab up` after ever longer times, until a few kills have hit
// it in the middle of its work, and takes down what it left.
func TestCrash(t *testing.T) {
	labtest.RequireRoot(t)
	binary := labtest.Binary(t)
	before := traces(t)
	left := 0
	for wait := 5 * time.Millisecond; wait < 2*time.Second && left < 5; wait += wait / 3 {
		name := labtest.Name()
		cmd := exec.Command(binary, "lab", "up", "--no-agent", "--name", name)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(wait)
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		if cmp.Diff(before, traces(t), cmpopts.EquateEmpty()) != "" {
			left++
		}
		if err := lab.Down(name); err != nil && !errors.Is(err, lab.ErrNotFound) {
			t.Errorf("Down after kill at %s: %v", wait, err)
		}
		checkTraces(t, before)
	}
	if left == 0 {
		t.Error("no kill left anything behind: this test has shown nothing")
	}
}

// TestProcesses starts, stops and kills.
func TestProcesses(t *testing.T) {
	l := labtest.Up(t, lab.Options{})
	p, err := l.Start("router", "sleeper", "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Start("router", "sleeper", "sleep", "1000"); err == nil {
		t.Error("two processes of one name")
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID))
	if err != nil || !strings.Contains(string(data), "nodeproxy-lab-"+l.Name()+"/router\n") {
		t.Errorf("cgroup of the process: %s, error %v", data, err)
	}
	if err := errors.Join(l.Stop("sleeper"), l.Stop("sleeper"), l.Kill("sleeper")); err != nil {
		t.Error(err)
	}
	if p.Running() {
		t.Error("still running after Stop")
	}
	err = l.Command(t.Context(), "pod-a1", "sh", "-c", "exit 3").Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("exit 3: %v", err)
	}
	if out, err := l.Command(t.Context(), "pod-a1", "echo", "hi").Output(); string(out) != "hi\n" || err != nil {
		t.Errorf("Output: %q, %v", out, err)
	}
	if err := l.Command(t.Context(), "moon", "true").Run(); err == nil {
		t.Error("a command ran on the moon")
	}
}

// TestAgentFails checks that an agent that does not come up says why.
func TestAgentFails(t *testing.T) {
	l := labtest.Up(t, lab.Options{})
	err := l.StartAgent(t.Context(), "node-a", "--no-such-flag")
	if err == nil || !strings.Contains(err.Error(), "no-such-flag") && !strings.Contains(err.Error(), "unknown command") {
		t.Errorf("agent with a wrong flag: %v", err)
	}
	if p, _, err := l.Agent("node-a"); err == nil && p.Running() {
		t.Error("it is left running")
	}
	if err := l.StartAgent(t.Context(), "pod-a1"); err == nil {
		t.Error("an agent started in a Pod")
	}
}

// traces is what the labs of this test binary have left on the machine.
func traces(t *testing.T) []string {
	t.Helper()
	list, err := labtest.Traces()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func checkTraces(t *testing.T, before []string) {
	t.Helper()
	if diff := cmp.Diff(before, traces(t), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("traces (-before +after):\n%s", diff)
	}
}

// links lists the links of this thread's network namespace.
func links(t *testing.T) []string {
	t.Helper()
	all, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, link := range all {
		names = append(names, link.Attrs().Name)
	}
	return names
}

// TestDownBesideIPNetns: the first "ip netns add" makes the directory of names a
// mount, over the names of labs that are up. It is tried where no directory is
// yet, in a mount namespace of its own.
func TestDownBesideIPNetns(t *testing.T) {
	labtest.RequireRoot(t)
	name := labtest.Name()
	script := `set -e
mount -t tmpfs none /run
"$1" lab up --no-agent --name "$2"
ip netns add "$2-others"
"$1" lab down --name "$2"
ls /run/netns
ip netns del "$2-others"`
	out, err := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh",
		labtest.Binary(t), name).CombinedOutput()
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), "\n"+name+"-others") || strings.Contains(string(out), "\nnp-"+name) {
		t.Errorf("%v:\n%s", err, out)
	}
}
