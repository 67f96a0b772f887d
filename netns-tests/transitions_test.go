package netnstests

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/nodeproxy/nodeproxy/dataplane"
	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

const (
	// transitionSteps is how many random changes a live loop goes through, and
	// freshEvery after how many of them the dataplane that it is compared with is
	// opened anew. In between that one compares all with the kernel, as at a start.
	transitionSteps = 300
	freshEvery      = 10
)

// steady is a Service that no step touches, while connections to it are opened
// and one is held.
var (
	steadyCluster  = netip.MustParseAddrPort("10.96.200.1:80")
	steadyExternal = netip.MustParseAddrPort("10.200.0.100:80")
	steadyPods     = []netip.Addr{netip.MustParseAddr("10.128.200.1"), netip.MustParseAddr("10.128.200.2")}
)

func steadyState() service.Changes {
	svc := &service.Service{
		Name: service.Name{Namespace: "default", Name: "steady"}, Type: service.TypeClusterIP,
		ClusterIPs: []netip.Addr{steadyCluster.Addr()}, ExternalIPs: []netip.Addr{steadyExternal.Addr()},
		Ports: []service.Port{{Name: "t", Protocol: service.TCP, Port: 80}, {Name: "u", Protocol: service.UDP, Port: 80}},
	}
	slice := &service.EndpointSlice{
		Name: service.Name{Namespace: "default", Name: "steady-x"}, Service: "steady",
		Ports: []service.EndpointPort{{Name: "t", Protocol: service.TCP, Number: 8080}, {Name: "u", Protocol: service.UDP, Number: 8080}},
	}
	for _, a := range steadyPods {
		slice.Endpoints = append(slice.Endpoints, service.Endpoint{Addr: a, Ready: true, Serving: true, NodeName: "node-a"})
	}
	return service.Changes{Complete: true, Services: []*service.Service{svc}, EndpointSlices: []*service.EndpointSlice{slice}}
}

// TestTransitions makes random changes, of anything, to what a live agent's
// loop is told. No connection to a Service that a step does not touch may fail,
// and after each step what is in the kernel is what a dataplane leaves that is
// started fresh on the same objects.
func TestTransitions(t *testing.T) { // its columns keep all CPUs busy: nothing else beside
	for _, mode := range refModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			e := newEquality(t, mode)
			gen, rng := synth.NewRandom(7), rand.New(rand.NewPCG(7, 7))
			cfg := e.config(gen.Config())
			cfg.ExternalIPs = nil
			objects := newObjects(steadyState())
			live := e.startLoop(t, cfg, objects.changes())
			source := map[netip.Addr]string{netip.MustParseAddr("10.128.0.9"): "pods", netip.MustParseAddr("203.0.113.3"): "outside"}
			for _, a := range steadyPods {
				source[a] = "endpoints"
			}
			e.put(t, source)
			e.serveState(t, steadyState(), source)
			defer e.background(t)() // before any cleanup
			var fresh dataplane.Dataplane
			for step := range transitionSteps {
				e.step.Store(int64(step))
				switch c := objects.step(gen, rng); {
				case step%25 == 24: // facts of the node change too: all is compared then
					cfg.Facts.NodePorts[0].All = !cfg.Facts.NodePorts[0].All
					cfg.Facts.NodePorts[0].Addrs = cfg.Facts.Local[0][:1]
					live.reconfigure(t, cfg, c)
				case !live.apply(t, c):
					continue
				}
				if step%freshEvery == 0 || fresh == nil {
					fresh = e.open(t)
				}
				e.compareWithFresh(t, step, fresh, cfg, objects)
				if t.Failed() {
					break
				}
			}
		})
	}
}

// liveLoop is an agent's loop on the node, without an agent's process.
type liveLoop struct {
	// mirror takes in the same, to tell whether a sync follows.
	mirror    *service.Resolver
	config    atomic.Pointer[service.Config]
	changes   chan service.Changes
	addresses chan []netip.Addr
	synced    chan error
}

func (e *equality) startLoop(t *testing.T, cfg service.Config, first service.Changes) *liveLoop {
	t.Helper()
	l := &liveLoop{
		mirror:  service.NewResolver(cfg),
		changes: make(chan service.Changes), addresses: make(chan []netip.Addr), synced: make(chan error, 1),
	}
	l.config.Store(&cfg)
	loop := &dataplane.Loop{
		Dataplane:  e.dp,
		Configure:  func(*service.Node, []netip.Addr) (service.Config, error) { return *l.config.Load(), nil },
		SyncPeriod: time.Hour, Log: slog.New(slog.DiscardHandler),
		Synced: func(r dataplane.Report) { l.synced <- r.Err },
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- e.in("node", func() error { return loop.Run(ctx, l.changes, l.addresses) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	l.addresses <- nil
	if !l.apply(t, first) {
		t.Fatal("the first objects change nothing")
	}
	return l
}

// apply takes changes in and waits until they are written, or reports that
// nothing follows from them.
func (l *liveLoop) apply(t *testing.T, c service.Changes) bool {
	t.Helper()
	changed, _ := l.mirror.Apply(c)
	l.changes <- c
	if len(changed) == 0 {
		return false
	}
	l.wait(t)
	return true
}

// reconfigure takes changes in, and facts of the node that make a full sync.
func (l *liveLoop) reconfigure(t *testing.T, cfg service.Config, c service.Changes) {
	t.Helper()
	l.apply(t, c)
	l.mirror.SetConfig(cfg)
	l.config.Store(&cfg)
	l.addresses <- nil
	l.wait(t)
}

func (l *liveLoop) wait(t *testing.T) {
	t.Helper()
	select {
	case err := <-l.synced:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no sync follows a change")
	}
}

// compareWithFresh gives a dataplane that compares everything the same objects;
// it must have nothing to change.
func (e *equality) compareWithFresh(t *testing.T, step int, fresh dataplane.Dataplane, cfg service.Config, objects *objects) {
	t.Helper()
	r := service.NewResolver(cfg)
	r.Apply(objects.changes())
	e.do(t, "node", func() error {
		before := e.kernelState()
		if err := fresh.Sync(context.Background(), r.Table(), nil); err != nil {
			return err
		}
		if diff := cmp.Diff(before, e.kernelState()); diff != "" {
			return fmt.Errorf("step %d: a fresh start changes the kernel's state (-live +fresh):\n%s", step, diff)
		}
		return nil
	})
}

var ruleCounters = regexp.MustCompile(`\[\d+:\d+\]`)

// kernelState is what the mode has in the kernel, as text. It runs in the
// node's namespace.
func (e *equality) kernelState() []string {
	if backend, ok := strings.CutPrefix(e.mode, "iptables-"); ok {
		var out []string
		for _, command := range []string{"iptables-", "ip6tables-"} {
			text, _ := exec.Command(command + backend + "-save").Output() // what is missing differs
			for line := range strings.Lines(string(text)) {
				if !strings.HasPrefix(line, "#") {
					out = append(out, ruleCounters.ReplaceAllString(line, ""))
				}
			}
		}
		return out
	}
	var out []string
	pins, _ := filepath.Glob(fmt.Sprintf("/sys/fs/bpf/nodeproxy/%s/v*/maps/*", e.instance)) // the pattern is right
	for _, path := range pins {
		name := filepath.Base(path)
		if !slices.Contains(syncedMaps, name) {
			continue
		}
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return append(out, err.Error())
		}
		var key, value []byte
		for it := m.Iterate(); it.Next(&key, &value); {
			out = append(out, fmt.Sprintf("%s %s = %s", name, hex.EncodeToString(key), hex.EncodeToString(value)))
		}
		m.Close()
	}
	slices.Sort(out)
	return out
}

// background dials the steady Service from a Pod and from outside, and holds a
// UDP flow, until the function that it returns is called, which judges.
func (e *equality) background(t *testing.T) (stop func()) {
	t.Helper()
	done := make(chan struct{})
	var wait sync.WaitGroup
	dials := make([]int, 3)
	loop := func(i int, once func() error) {
		wait.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(10 * time.Millisecond):
				}
				dials[i]++
				if err := once(); err != nil {
					t.Errorf("background flow %d, after %d times, at step %d: %v", i, dials[i], e.step.Load(), err)
					return
				}
			}
		})
	}
	for i, way := range []struct {
		place, from string
		to          netip.AddrPort
	}{{"pods", "10.128.0.9:0", steadyCluster}, {"outside", "203.0.113.3:0", steadyExternal}} {
		loop(i, func() error {
			_, err := e.dial(way.place, service.Packet{Source: netip.MustParseAddrPort(way.from), Destination: way.to, Protocol: service.TCP}, 2*time.Second)
			return err
		})
	}
	var held net.Conn
	e.do(t, "pods", func() (err error) {
		held, err = net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(10, 128, 0, 9)}, net.UDPAddrFromAddrPort(steadyCluster))
		return err
	})
	first := ""
	loop(2, func() error {
		buf := make([]byte, 128)
		held.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := held.Write([]byte("x")); err != nil {
			return err
		}
		n, err := held.Read(buf)
		if answer := string(buf[:n]); first == "" {
			first = answer
		} else if err == nil && answer != first {
			return fmt.Errorf("%q answers, and %q before", answer, first)
		}
		return err
	})
	return func() {
		close(done)
		wait.Wait()
		held.Close()
		t.Logf("background: %v connections and datagrams", dials)
		for i, n := range dials {
			if n < transitionSteps/10 {
				t.Errorf("background flow %d was begun %d times only", i, n)
			}
		}
	}
}

// objects are what there is in the cluster.
type objects struct {
	services map[service.Name]*service.Service
	slices   map[service.Name]*service.EndpointSlice
}

func newObjects(c service.Changes) *objects {
	o := &objects{map[service.Name]*service.Service{}, map[service.Name]*service.EndpointSlice{}}
	o.take(c)
	return o
}

// take is as [service.State.Apply]: what is deleted goes before what comes.
func (o *objects) take(c service.Changes) {
	for _, n := range c.DeletedServices {
		delete(o.services, n)
	}
	for _, n := range c.DeletedEndpointSlices {
		delete(o.slices, n)
	}
	for _, s := range c.Services {
		o.services[s.Name] = s
	}
	for _, s := range c.EndpointSlices {
		o.slices[s.Name] = s
	}
}

// changes are all objects, as a source lists them.
func (o *objects) changes() service.Changes {
	c := service.Changes{Complete: true}
	for _, s := range o.services {
		c.Services = append(c.Services, s)
	}
	for _, s := range o.slices {
		c.EndpointSlices = append(c.EndpointSlices, s)
	}
	return c
}

// step makes one to three random changes of random Services.
func (o *objects) step(gen *synth.Random, rng *rand.Rand) service.Changes {
	var c service.Changes
	for range 1 + rng.IntN(3) {
		svc := gen.Service(rng.IntN(25))
		switch slice := gen.Slice(svc, rng.IntN(3)); rng.IntN(4) {
		case 0:
			c.Services = append(c.Services, svc)
		case 1:
			c.EndpointSlices = append(c.EndpointSlices, slice)
		case 2:
			c.DeletedServices = append(c.DeletedServices, svc.Name)
		case 3:
			c.DeletedEndpointSlices = append(c.DeletedEndpointSlices, slice.Name)
		}
	}
	o.take(c)
	return c
}
