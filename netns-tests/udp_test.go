package netnstests

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/manifest"
)

// udpFollows is how long UDP flows may take to follow a change (P9), in the
// median of all changes, for machines that are busy: it takes 0.1 to 0.4 s.
const udpFollows = time.Second

// TestP1P9UDPFollows sends from fixed source ports, 100 datagrams a second each,
// while endpoints come and go: conntrack would hold such a flow to a backend
// that is gone, or to none, for ever.
func TestP1P9UDPFollows(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		s := find("single")
		others := besideSingle(t, l)
		entries := conntrack(t, l, "node-a")

		f := &followers{senders: startFixedSenders(t, l, s), others: others}
		expect := func(step, want string) { t.Helper(); f.expect(t, step, want) }
		expect("at first", "pod-a1")
		for _, step := range []struct {
			name      string
			endpoints []manifest.Endpoint
			want      string
		}{
			{"endpoint replaced by one elsewhere", pods("pod-b1"), "pod-b1"},
			{"no endpoints", nil, ""},
			{"endpoint again", pods("pod-a1"), "pod-a1"},
			{"replaced on the same node", pods("pod-a2"), "pod-a2"},
		} {
			s.endpoints = step.endpoints
			apply(t, l, s)
			expect(step.name, step.want)
		}
		if err := l.Delete(s.name + ".yaml"); err != nil {
			t.Fatal(err)
		}
		expect("Service deleted", "")
		time.Sleep(200 * time.Millisecond) // entries are made that lead nowhere
		apply(t, l, s)
		expect("Service made again", "pod-a2")
		for _, node := range []string{"node-a", "node-b"} {
			if err := l.KillAgent(node); err != nil {
				t.Fatal(err)
			}
		}
		s.endpoints = pods("pod-b1")
		apply(t, l, s)
		expect("replaced while no agent runs", "pod-a2")
		startAgents(t, l)
		expect("agents started", "pod-b1")
		f.checkMedian(t)
		c.checkUntouched(t, entries, conntrack(t, l, "node-a"))
	})
}

// besideSingle starts agents on the Service "single" and two others, and opens
// flows to the others, which no change of the first may touch.
func besideSingle(t *testing.T, l *lab.Lab) []heldFlow {
	t.Helper()
	apply(t, l, find("single"), find("remote"), find("web"))
	startAgents(t, l)
	others := hold(t, l, 10, "client", "remote node-a", "web external")
	return append(others, hold(t, l, 10, "pod-a2", "remote cluster", "web cluster")...)
}

// TestP9UDPFollowsPolicies sends from fixed source ports while the policies of a
// Service change: established flows follow these too, as kube-proxy's do not.
func TestP9UDPFollowsPolicies(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		s := find("single")
		others := besideSingle(t, l)
		group := func(first uint16, routes ...[2]string) *followers {
			return &followers{senders: startSenders(t, l, s, first, routes), others: others}
		}
		rest := group(20000, [2]string{"pod-a2", "cluster"}, [2]string{"client", "node-a"}, [2]string{"client", "external"})
		elsewhere := group(20100, [2]string{"pod-b2", "cluster"})
		entry := group(20200, [2]string{"client", "node-b"})
		balancer := group(20300, [2]string{"client", "balancer"})
		all := []*followers{rest, elsewhere, entry, balancer}
		for _, step := range []struct {
			name  string
			edit  func(*corev1.Service, []*discoveryv1.EndpointSlice)
			ended *followers
		}{
			{"at first", nil, nil},
			{"internal policy Local, seen from elsewhere", internalLocal, elsewhere},
			{"internal policy Cluster again", nil, nil},
			{"external policy Local, by a node without endpoints", externalLocal, entry},
			{"external policy Cluster again", nil, nil},
			{"source ranges without the client", ranges("203.0.113.0/24", "2001:db8::/32"), balancer},
			{"without source ranges", nil, nil},
		} {
			s.edit = step.edit
			apply(t, l, s)
			if step.ended != nil {
				step.ended.expect(t, step.name, "")
			}
			for _, f := range all {
				if f != step.ended {
					f.expect(t, step.name+", the others", "pod-a1")
				}
			}
		}
		for _, f := range all {
			f.checkMedian(t)
		}
	})
}

// startFixedSenders sends to every kind of address of a Service, from
// everywhere, in both families.
func startFixedSenders(t *testing.T, l *lab.Lab, s svc) map[string]*fixedSender {
	t.Helper()
	return startSenders(t, l, s, 20000, [][2]string{
		{"pod-a2", "cluster"}, {"node-a", "cluster"}, {"client", "node-a"}, {"client", "node-b"},
		{"client", "external"}, {"client", "balancer"}, {"pod-b2", "node-a"},
	})
}

// startSenders sends from a place to an address of a Service, in both families.
func startSenders(t *testing.T, l *lab.Lab, s svc, port uint16, routes [][2]string) map[string]*fixedSender {
	t.Helper()
	senders := map[string]*fixedSender{}
	for i, route := range routes {
		for _, v6 := range []bool{false, true} {
			to := s.addr(route[1], 80, v6)
			name := fmt.Sprintf("%s -> %s", route[0], to)
			senders[name] = startFixedSender(t, l, route[0], to, port+2*uint16(i))
		}
	}
	return senders
}

// followers are flows that have to follow the changes of a Service, beside
// others that have not.
type followers struct {
	senders map[string]*fixedSender
	others  []heldFlow
	took    []time.Duration
}

// expect waits until one Pod answers all flows, or nobody does.
func (f *followers) expect(t *testing.T, step, want string) {
	t.Helper()
	changed := time.Now()
	for name, sender := range f.senders {
		eventually(t, time.Until(changed.Add(5*udpFollows)), func() error {
			if got := sender.last(); got != want {
				return fmt.Errorf("%s: %s: %q answers, want %q", step, name, got, want)
			}
			return nil
		})
	}
	f.took = append(f.took, time.Since(changed))
	t.Logf("%s: all %d flows within %s", step, len(f.senders), time.Since(changed))
	pingAll(t, f.others)
}

func (f *followers) checkMedian(t *testing.T) {
	t.Helper()
	slices.Sort(f.took)
	if median := f.took[len(f.took)/2]; median > udpFollows {
		t.Errorf("flows followed within %s in the median, want %s", median, udpFollows)
	}
}

// TestEndpointTerminates checks that a flow stays with an endpoint that is
// terminating, over both protocols, and that new ones go elsewhere.
func TestEndpointTerminates(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		s := find("single")
		apply(t, l, s)
		startAgents(t, l)
		held := hold(t, l, 10, "client", "single node-a")
		held = append(held, hold(t, l, 10, "pod-b1", "single cluster")...)
		s.endpoints = append(pods("pod-b1"), terminating(s.endpoints[0]))
		apply(t, l, s)
		eventually(t, patience, func() error { return answers(t, l, "single", "pod-b1") })
		pingAll(t, held)
	})
}

// TestAffinityEnds checks that a client may get another backend once the
// timeout of its Service has passed without a new flow.
func TestAffinityEnds(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		s := find("affinity")
		if err := l.Apply("affinity.yaml", withAffinityTimeout(s, 1)...); err != nil {
			t.Fatal(err)
		}
		startAgents(t, l)
		changed := 0
		for range 3 { // that none of 8 changes, three times, is one in 10^14
			first := affinityAnswers(t, l)
			time.Sleep(2200 * time.Millisecond)
			for client, name := range affinityAnswers(t, l) {
				if name != first[client] {
					changed++
				}
			}
			if changed > 0 {
				return
			}
		}
		t.Error("nobody ever got another backend")
	})
}
