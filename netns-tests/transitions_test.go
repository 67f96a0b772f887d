package netnstests

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/nodeproxy/nodeproxy/dataplane"
	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

const (
	// transitionSteps is how many random changes a live agent goes through, and
	// freshEvery after how many of them the dataplane that it is compared with is
	// opened anew. In between that one compares all with the kernel, as at a start.
	// restartEvery is how often the agent is killed and started again.
	transitionSteps = 300
	freshEvery      = 10
	restartEvery    = 40
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

// TestTransitions makes random changes, of anything, to the manifests, the Node
// and the interfaces of a live agent. No connection to a Service that a step does
// not touch may fail, and after each step what is in the kernel is what a
// dataplane leaves that is started fresh on the same objects. The agent itself is
// killed now and then; its next start changes nothing either.
func TestTransitions(t *testing.T) { // its columns keep all CPUs busy: nothing else beside
	for _, mode := range refModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			e := &equality{refNet: newRefNet(t, mode, synthLocal)}
			gen, rng := synth.NewRandom(7), rand.New(rand.NewPCG(7, 7))
			objects := newObjects(steadyState())
			source := map[netip.Addr]string{netip.MustParseAddr("10.128.0.9"): "pods", netip.MustParseAddr("203.0.113.3"): "outside"}
			for _, a := range steadyPods {
				source[a] = "endpoints"
			}
			e.put(t, source)
			e.serveState(t, steadyState(), source)
			live := e.startAgent(t, objects)
			defer e.background(t)() // before any cleanup
			var fresh dataplane.Dataplane
			synced := 0
			for step := range transitionSteps {
				e.step.Store(int64(step))
				objects.step(gen, rng)
				switch step % 25 {
				case 12:
					live.changeZone()
				case 24:
					live.toggleAddress(t)
				}
				if step%restartEvery == restartEvery-1 {
					live.restart(t)
				} else if !live.apply(t) {
					continue
				}
				if synced++; step%freshEvery == 0 || fresh == nil {
					fresh = e.open(t)
				}
				e.compareWithFresh(t, step, fresh, live.mirror.Table())
				if t.Failed() {
					break
				}
			}
			t.Logf("%d of %d steps changed what the node does", synced, transitionSteps)
			if synced < transitionSteps/2 {
				t.Error("too few")
			}
		})
	}
}

// compareWithFresh gives a dataplane that compares everything the same objects;
// it must have nothing to change.
func (e *equality) compareWithFresh(t *testing.T, step int, fresh dataplane.Dataplane, table *service.Table) {
	t.Helper()
	e.do(t, "node", func() error {
		before := e.kernelState()
		if err := fresh.Sync(context.Background(), table, nil); err != nil {
			return err
		}
		if diff := cmp.Diff(before, e.kernelState()); diff != "" {
			return fmt.Errorf("step %d: a fresh start changes the kernel's state (-live +fresh):\n%s", step, diff)
		}
		return nil
	})
}

// probeEntry is in every key that an agent's probe of the data path writes for a
// moment: [100::1].
const probeEntry = "01000000000000000000000000000001"

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
			if text := hex.EncodeToString(key); !strings.Contains(text, probeEntry) {
				out = append(out, fmt.Sprintf("%s %s = %s", name, text, hex.EncodeToString(value)))
			}
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

// step makes one to three random changes of random Services; what it deletes is
// there, if any is.
func (o *objects) step(gen *synth.Random, rng *rand.Rand) {
	var c service.Changes
	for range 1 + rng.IntN(3) {
		svc := gen.Service(rng.IntN(25))
		switch slice := gen.Slice(svc, rng.IntN(3)); rng.IntN(6) {
		case 0, 1:
			c.Services = append(c.Services, svc)
		case 2, 3:
			c.EndpointSlices = append(c.EndpointSlices, slice)
		case 4:
			c.DeletedServices = append(c.DeletedServices, one(rng, o.services))
		case 5:
			c.DeletedEndpointSlices = append(c.DeletedEndpointSlices, one(rng, o.slices))
		}
	}
	o.take(c)
}

// one picks a name that is not steady's.
func one[T any](rng *rand.Rand, of map[service.Name]T) service.Name {
	names := slices.SortedFunc(maps.Keys(of), service.Name.Compare)
	names = slices.DeleteFunc(names, func(n service.Name) bool { return strings.HasPrefix(n.Name, "steady") })
	if len(names) == 0 {
		return service.Name{}
	}
	return names[rng.IntN(len(names))]
}
