package netnstests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/controlplane"
	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
	"github.com/nodeproxy/nodeproxy/lab/manifest"
)

// kubeBinaries returns the directory of etcd, kube-apiserver, kubectl and
// kube-proxy, which `make test` has built; a test that is run alone builds them.
func kubeBinaries(t testing.TB) string {
	t.Helper()
	dir, err := buildKube()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var buildKube = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("NODEPROXY_KUBE_BIN"); dir != "" {
		return dir, nil
	}
	root, err := filepath.Abs("..")
	if err != nil {
		return "", err
	}
	if output, err := exec.Command("make", "-C", root, "kube").CombinedOutput(); err != nil {
		return "", fmt.Errorf("make kube: %w\n%s", err, output)
	}
	return filepath.Join(root, "bin", "kube"), nil
})

// cluster is a lab whose objects are in a real API server. Columns share one,
// since it costs more than all of the rest.
type cluster struct {
	*lab.Lab
	api  *controlplane.Server
	many bool // there are 2,000 more Services

	started time.Time // when the agents of this column were
}

func upCluster(t testing.TB) *cluster {
	t.Helper()
	labtest.RequireRoot(t)
	bin := kubeBinaries(t)
	l := labtest.Up(t, lab.Options{})
	prepareNodes(t, l)
	api, err := controlplane.Start(t.Context(), l, bin)
	if err != nil {
		t.Fatal(err)
	}
	l.SetStore(api)
	if err := l.Apply("nodes.yaml", lab.NodeObjects()...); err != nil {
		t.Fatal(err)
	}
	return &cluster{Lab: l, api: api}
}

// agents starts both agents as a column says, and returns what stops and
// removes them.
func (c *cluster) agents(t testing.TB, col column, args ...string) (end func()) {
	t.Helper()
	args = append(append(col.AgentArgs, "--mode", col.Mode, "--min-sync-period", "0", "-v", "1"), args...)
	c.started = time.Now()
	startAgents(t, c.Lab, args...)
	return func() {
		for _, node := range lab.PlacesOf(lab.Node) {
			must(t, c.StopAgent(node.Name))
			inPlace(t, c.Lab, node.Name, c.Options().Binary, "cleanup", "--instance", c.Netns(node.Name))
		}
	}
}

// TestKubernetes runs agents on a real API server that asks for permission
// (RBAC, with what deploy/ ships), one column after the other.
func TestKubernetes(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	c := upCluster(t)
	serveMore(t, c.Lab)
	addSecondAddrs(t, c.Lab)
	t.Run("as files", c.sameAsFiles)
	for _, col := range columns {
		t.Run(col.Name, func(t *testing.T) {
			defer c.deleteAll(t) // scenarios know by the last Service that all are there
			defer c.agents(t, col)()
			t.Run("health", func(t *testing.T) { c.health(t, col) })
			// What is new here is the way in, which the back ends of a mode share.
			if col.Backend != "legacy" && (col.Sockets || col.Mode != lab.ModeEBPF) {
				t.Run("scenarios", c.scenarios)
			}
			t.Run("API server away", c.away)
			t.Run("watches dropped", c.watchesDropped)
			t.Run("rolling update", c.rollingUpdate)
			t.Run("zone", c.zone)
			if col.Name == columns[0].Name { // no mode has a part in it
				t.Run("like kubectl proxy", c.likeKubectl)
			}
			t.Run("refused externalIP", c.refusedExternalIP)
			t.Run("without an agent", c.withoutAgent)
			if col.Mode == lab.ModeEBPF { // elsewhere the agents' own work on two CPUs would be most of the test
				t.Run("many Services", c.manyServices)
			}
		})
	}
}

// scenarios runs the whole table with every object in the API server.
func (c *cluster) scenarios(t *testing.T) {
	last := services[0].name // which all Pods serve, in both families
	apply(t, c.Lab, services[1:]...)
	apply(t, c.Lab, services[0])
	eventually(t, patience, func() error {
		var errs []error
		for _, at := range []string{" node-a", " node-b"} {
			f := nodePortFlow(c.Lab, last+at, everyPod, true) // IPv6 is written last
			errs = append(errs, onNode(t, c.Lab, last+at, everyPod), f.check(t.Context()))
		}
		return errors.Join(errs...)
	})
	t.Run("all", func(t *testing.T) { runScenariosInTurn(t, c.Lab, table) })
	c.deleteAll(t)
}

func (c *cluster) deleteAll(t *testing.T) {
	t.Helper()
	for _, s := range services {
		must(t, c.Delete(s.name+".yaml"))
	}
}

// away changes objects while the API server is away: what works goes on, also
// where an agent is started meanwhile, and the changes are taken in later.
func (c *cluster) away(t *testing.T) {
	web := find("web")
	apply(t, c.Lab, web, find("single"))
	eventually(t, patience, func() error { return answers(t, c.Lab, "web", everyPod) })
	eventually(t, patience, func() error { return onNode(t, c.Lab, "web node-b", everyPod) })
	eventually(t, patience, func() error { return onNode(t, c.Lab, "single node-a", "pod-a1") })
	agent, _, err := c.Agent("node-b")
	must(t, err)
	seen := len(c.AgentLog("node-a"))
	s := startStream(c.Lab, "client", "web node-b", echo.TCP, false)
	must(t, c.api.StopAPI())
	eventually(t, patience, func() error { return logHas(c.AgentLog("node-a")[seen:], "API server cannot be used") })
	must(t, c.KillAgent("node-b"))
	cmd := c.Command(t.Context(), "node-b", agent.Argv...)
	var log safeBuffer
	cmd.Stderr = &log
	must(t, cmd.Start())
	eventually(t, patience, log.has("API server cannot be used"))
	time.Sleep(300 * time.Millisecond)
	checkAnswers(t, c.Lab, "web", everyPod)
	must(t, c.api.StartAPI(t.Context()))
	web.endpoints = pods("pod-b1")
	apply(t, c.Lab, web)
	must(t, c.Delete("single.yaml"))
	eventually(t, patience, func() error { return answers(t, c.Lab, "web", "pod-b1") })
	eventually(t, patience, log.has("msg=synced"))
	eventually(t, patience, func() error { return logHas(c.AgentLog("node-a")[seen:], "API server can be used again") })
	eventually(t, patience, func() error { return onNode(t, c.Lab, "single node-a", refused) })
	s.end(t)
	must(t, errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()))
	argv := agent.Argv[slices.Index(agent.Argv, "--mode"):]
	must(t, c.StartAgent(t.Context(), "node-b", argv...))
}

// withoutAgent asks the API server what the kernel of a node should hold, and
// where a Pod is, with what its killed agent was given.
func (c *cluster) withoutAgent(t *testing.T) {
	web := find("web")
	apply(t, c.Lab, web)
	eventually(t, patience, func() error { // IPv6 is written last
		f := nodePortFlow(c.Lab, "web node-a", everyPod, true)
		return f.check(t.Context())
	})
	agent, _, err := c.Agent("node-a")
	must(t, err)
	eventually(t, patience, func() error { // what went in the tests before, the agent has to have taken in too
		out := inPlace(t, c.Lab, "node-a", c.Options().Binary, "get", "services", "--instance", c.Netns("node-a"))
		for _, gone := range []string{"default/single:", "default/pages:"} {
			if strings.Contains(out, gone) {
				return fmt.Errorf("%s is still there", gone)
			}
		}
		return nil
	})
	must(t, c.KillAgent("node-a"))
	var found []view.Difference
	verify := append([]string{"verify"}, agent.Argv[2:]...) // as nodeproxy run was called
	if complaint, err := asked(t, c.Lab, &found, verify...); err != nil || len(found) > 0 {
		t.Errorf("verify: %v %s %v", err, complaint, found)
	}
	var e admin.Explanation
	kubeconfig := agent.Argv[slices.Index(agent.Argv, "--kubeconfig")+1]
	complaint, err := asked(t, c.Lab, &e, "explain", "--kubeconfig", kubeconfig, "--from", "pod/default/pod-b1", web.addr("cluster", 80, false).String())
	if want := "TCP packet from " + lab.MustPlace("pod-b1").Addr(false).String(); err != nil || e.Verdict != "translate" || !strings.Contains(e.Steps[0], want) {
		t.Errorf("explain: %v %s: no %q in %v", err, complaint, want, e.Steps)
	}
	must(t, c.Delete("web.yaml"))
	if complaint, err := asked(t, c.Lab, &found, verify...); err == nil || len(found) == 0 {
		t.Errorf("verify, after the Service was deleted: %v %s", err, complaint)
	}
	must(t, c.StartAgent(t.Context(), "node-a", agent.Argv[slices.Index(agent.Argv, "--mode"):]...))
}

// rollingUpdate replaces every endpoint of a Service, one after the other, as
// a Deployment does, under some 500 connections/s: none may fail.
func (c *cluster) rollingUpdate(t *testing.T) {
	web := find("web")
	apply(t, c.Lab, web)
	eventually(t, patience, func() error { return answers(t, c.Lab, "web", everyPod) })
	eventually(t, patience, func() error { return onNode(t, c.Lab, "web node-b", everyPod) })
	const often = 5 * time.Millisecond
	streams := []*stream{
		startStreamEvery(often, c.Lab, "client", "web node-a", echo.TCP, false), startStreamEvery(often, c.Lab, "pod-a1", "web cluster", echo.TCP, true),
		startStreamEvery(often, c.Lab, "node-b", "web cluster", echo.TCP, false), startStreamEvery(often, c.Lab, "pod-b2", "web external", echo.TCP, false),
	}
	for i := range 2 * len(allPods()) {
		gone := i % len(allPods())
		steps := [][]manifest.Endpoint{allPods(), slices.Delete(allPods(), gone, gone+1), allPods()}
		steps[0][gone] = terminating(steps[0][gone])
		for _, endpoints := range steps {
			web.endpoints = endpoints
			apply(t, c.Lab, web)
			time.Sleep(30 * time.Millisecond)
		}
	}
	for _, s := range streams {
		s.end(t)
	}
}

// zone changes the zone of node-a, which hints of endpoints go by.
func (c *cluster) zone(t *testing.T) {
	apply(t, c.Lab, find("hints"))
	for _, zone := range []string{"zone-a", "zone-b", "zone-a"} {
		c.label(t, "node-a", zone)
		pod := strings.Replace(zone, "zone-", "pod-", 1) + "1"
		eventually(t, patience, func() error {
			f := flow{scenario: scenario{want: pod}, lab: c.Lab, network: echo.TCP, from: lab.MustPlace("pod-a2")}
			f.at, f.to = parseTarget("hints cluster", false)
			return f.check(t.Context())
		})
	}
}

// refusedExternalIP has a Service with an externalIP that is nobody's to take:
// an Event on the Service says so.
func (c *cluster) refusedExternalIP(t *testing.T) {
	s := find("single")
	s.edit = func(s *corev1.Service, _ []*discoveryv1.EndpointSlice) {
		s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, lab.MustPlace("pod-a2").IPv4.String())
	}
	apply(t, c.Lab, s)
	eventually(t, patience, func() error {
		list, err := c.api.Client.EventsV1().Events("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.Reason == "ExternalIPRefused" && e.Regarding.Kind == "Service" && e.Regarding.Name == s.name &&
				e.CreationTimestamp.After(c.started.Add(-time.Second)) {
				return nil
			}
		}
		return fmt.Errorf("no Event among %d is about the externalIP", len(list.Items))
	})
	must(t, c.Delete(s.name+".yaml"))
}

func (c *cluster) label(t *testing.T, node, zone string) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]string{corev1.LabelTopologyZone: zone}}})
	must(t, err)
	_, err = c.api.Client.CoreV1().Nodes().Patch(t.Context(), node, types.MergePatchType, patch, metav1.PatchOptions{})
	must(t, err)
}

// manyServices has 2,000 Services beside: one that is created after them works
// soon, and one that was there before still does.
func (c *cluster) manyServices(t *testing.T) {
	const many = 2000
	apply(t, c.Lab, find("web"))
	if !c.many { // they stay: to delete them takes an API server a minute
		must(t, c.create(t.Context(), "many", many, 1))
		c.many = true
	}
	start := time.Now()
	apply(t, c.Lab, find("single"))
	eventually(t, patience, func() error { return answers(t, c.Lab, "single", "pod-a1") })
	t.Logf("a Service beside %d works %s after it was applied", many, time.Since(start).Round(time.Millisecond))
	eventually(t, patience, func() error { return answers(t, c.Lab, "web", everyPod) })
	must(t, c.Delete("single.yaml"))
	eventually(t, patience, func() error { return onNode(t, c.Lab, "single node-a", refused) })
}

// onNode tells whether a Service's node port leads the client to who is wanted.
func onNode(t *testing.T, l *lab.Lab, target, want string) error {
	f := nodePortFlow(l, target, want, false)
	return f.check(t.Context())
}

func nodePortFlow(l *lab.Lab, target, want string, v6 bool) flow {
	f := flow{scenario: scenario{want: want, source: masked}, lab: l, network: echo.TCP, v6: v6, from: lab.MustPlace("client")}
	f.at, f.to = parseTarget(target, v6)
	return f
}

// create makes Services name-0 to name-(n-1), some at a time. One endpoint is a
// Pod, the others are nobody's.
func (c *cluster) create(ctx context.Context, name string, n, endpoints int) error {
	return c.each(n, func(i int) error {
		meta := metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("%s-%d", name, i)}
		ports := []corev1.ServicePort{{Name: "http", Port: 80}}
		if _, err := c.api.Client.CoreV1().Services("default").Create(ctx, &corev1.Service{ObjectMeta: meta,
			Spec: corev1.ServiceSpec{ClusterIP: fmt.Sprintf("10.96.%d.%d", 8+i/250, 1+i%250), Ports: ports}}, metav1.CreateOptions{}); err != nil {
			return err
		}
		meta.Labels = map[string]string{discoveryv1.LabelServiceName: meta.Name}
		number, portName := int32(echo.PortEcho), "http"
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4,
			Ports:     []discoveryv1.EndpointPort{{Name: &portName, Port: &number}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{lab.MustPlace("pod-a1").IPv4.String()}}},
		}
		for j := 1; j < endpoints; j++ {
			k := i*endpoints + j
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.245.%d.%d", k/250, 1+k%250)}})
		}
		_, err := c.api.Client.DiscoveryV1().EndpointSlices("default").Create(ctx, slice, metav1.CreateOptions{})
		return err
	})
}

// each calls fn for 0 to n-1, eight at a time.
func (c *cluster) each(n int, fn func(i int) error) error {
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for w := range errs {
		wg.Go(func() {
			for i := w; i < n && errs[w] == nil; i += len(errs) {
				errs[w] = fn(i)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func logHas(log, text string) error {
	if !strings.Contains(log, text) {
		return fmt.Errorf("no %q in the log:\n%s", text, log)
	}
	return nil
}
