package source

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeproxy/nodeproxy/service"
)

// What kubectl get svc,endpointslices,nodes -o yaml prints, shortened.
const kubectlOutput = `
apiVersion: v1
kind: List
metadata:
  resourceVersion: ""
items:
- apiVersion: v1
  kind: Service
  metadata:
    annotations: {nodeproxy.io/algorithm: maglev, other: x}
    creationTimestamp: "2026-01-02T03:04:05Z"
    name: web
    namespace: shop
    uid: 4c0f0f5c
  spec:
    allocateLoadBalancerNodePorts: true
    clusterIP: 10.96.0.10
    clusterIPs: [10.96.0.10, "fd00:10:96::a"]
    externalIPs: [203.0.113.009, bogus]
    externalTrafficPolicy: Local
    healthCheckNodePort: 32001
    internalTrafficPolicy: Cluster
    ipFamilies: [IPv4, IPv6]
    ipFamilyPolicy: PreferDualStack
    loadBalancerSourceRanges: [" 203.0.113.0/24"]
    ports:
    - {name: http, nodePort: 30080, port: 80, protocol: TCP, targetPort: http}
    selector: {app: web}
    sessionAffinity: ClientIP
    sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
    type: LoadBalancer
  status:
    loadBalancer:
      ingress:
      - {ip: 198.51.100.1, ipMode: VIP}
      - {ip: 198.51.100.2, ipMode: Proxy}
      - {hostname: lb.example.org}
- addressType: IPv4
  apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata:
    annotations: {endpoints.kubernetes.io/last-change-trigger-time: "2026-01-02T03:04:06Z"}
    labels: {kubernetes.io/service-name: web}
    name: web-abc
    namespace: shop
  endpoints:
  - addresses: [10.244.1.11, 10.244.9.9]
    conditions: {ready: true, serving: true, terminating: false}
    hints: {forZones: [{name: z1}]}
    nodeName: node-a
    targetRef: {kind: Pod, name: web-1}
    zone: z1
  - addresses: [10.244.1.12]
    conditions: {}
  ports:
  - {name: http, port: 8080, protocol: TCP}
- apiVersion: v1
  kind: Node
  metadata:
    labels: {topology.kubernetes.io/zone: z1}
    name: node-a
  spec:
    podCIDR: 10.244.1.0/24
    podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]
    taints: [{effect: NoSchedule, key: ToBeDeletedByClusterAutoscaler, value: "1"}]
  status:
    addresses:
    - {address: 1.2.3.4, type: ExternalIP}
    - {address: 192.168.77.11, type: InternalIP}
    - {address: node-a, type: Hostname}
`

func TestDecodeWhatKubectlPrints(t *testing.T) {
	got, warnings, err := Decode([]byte(kubectlOutput))
	if err != nil {
		t.Fatal(err)
	}
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	want := service.Changes{
		Complete: true,
		Services: []*service.Service{{
			Name: service.Name{Namespace: "shop", Name: "web"}, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
			Type:         service.TypeLoadBalancer,
			ClusterIPs:   []netip.Addr{addr("10.96.0.10"), addr("fd00:10:96::a")},
			ExternalIPs:  []netip.Addr{addr("203.0.113.9")},
			Ingress:      []service.Ingress{{Addr: addr("198.51.100.1")}, {Addr: addr("198.51.100.2"), Proxy: true}},
			SourceRanges: []netip.Prefix{prefix("203.0.113.0/24")}, ExternalPolicy: service.PolicyLocal,
			AffinityTimeout: time.Minute, HealthCheckNodePort: 32001,
			Ports:       []service.Port{{Name: "http", Protocol: service.TCP, Port: 80, NodePort: 30080}},
			Annotations: map[string]string{"nodeproxy.io/algorithm": "maglev"},
		}},
		EndpointSlices: []*service.EndpointSlice{{
			Name: service.Name{Namespace: "shop", Name: "web-abc"}, Service: "web",
			LastChange: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC),
			Ports:      []service.EndpointPort{{Name: "http", Protocol: service.TCP, Number: 8080}},
			Endpoints: []service.Endpoint{
				{Addr: addr("10.244.1.11"), Ready: true, Serving: true, NodeName: "node-a", Zone: "z1", Hints: &service.Hints{Zones: []string{"z1"}}},
				{Addr: addr("10.244.1.12"), Ready: true, Serving: true},
			},
		}},
		Nodes: []*service.Node{{
			Name: "node-a", Addresses: []netip.Addr{addr("192.168.77.11"), addr("1.2.3.4")},
			PodCIDRs: []netip.Prefix{prefix("10.244.1.0/24"), prefix("fd00:10:244:1::/64")}, Zone: "z1", ClusterAutoscalerTaint: true,
		}},
	}
	byValue := cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], `"bogus" is no IP address`) {
		t.Errorf("warnings %q, want one about bogus", warnings)
	}
}

const minimal = `{apiVersion: v1, kind: Service, metadata: {name: %s}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}`

func TestDecodeFormats(t *testing.T) {
	one := strings.Replace(minimal, "%s", "a", 1)
	two := strings.Replace(minimal, "%s", "b", 1)
	asJSON := func(name string) string {
		return `{"apiVersion":"v1","kind":"Service","metadata":{"name":"` + name + `"},"spec":{"clusterIP":"10.96.0.1","ports":[{"port":80}]}}`
	}
	for name, c := range map[string]struct {
		in   string
		want int
	}{
		"several documents":       {"# head\n---\n" + one + "\n---\n# nothing\n---\n" + two, 2},
		"JSON":                    {asJSON("a"), 1},
		"JSON one after another":  {asJSON("a") + "\n" + asJSON("b"), 2},
		"typed list, bare items":  {`{"apiVersion":"v1","kind":"ServiceList","items":[{"metadata":{"name":"a"},"spec":{"clusterIP":"None"}}]}`, 1},
		"List of a List":          {"{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: List, items: [" + one + "]}]}", 1},
		"other kinds are ignored": {"{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}\n---\n" + one, 1},
		"only comments":           {"# nothing here\n", 0},
		"ExternalName":            {"{apiVersion: v1, kind: Service, metadata: {name: e}, spec: {type: ExternalName, externalName: x.example}}", 1},
	} {
		got, _, err := Decode([]byte(c.in))
		if err != nil || len(got.Services) != c.want {
			t.Errorf("%s: %d Services, error %v; want %d", name, len(got.Services), err, c.want)
		}
	}
}

func TestDecodeErrorsNameDocumentAndField(t *testing.T) {
	good := strings.Replace(minimal, "%s", "a", 1)
	for name, c := range map[string]struct{ in, want string }{
		"wrong type":       {good + "\n---\n{apiVersion: v1, kind: Service, metadata: {name: b}, spec: {clusterIP: 10.96.0.1, ports: [{port: http}]}}", "document 2: Service /b: field spec.ports.port: got string, want int32"},
		"broken YAML":      {good + "\n---\na: [", "document 2: "},
		"no clusterIP":     {"{apiVersion: v1, kind: Service, metadata: {name: b, namespace: x}, spec: {ports: [{port: 80}]}}", "document 1: Service x/b: spec.clusterIP is missing"},
		"no kind":          {"{metadata: {name: b}}", "document 1: apiVersion and kind are missing"},
		"no name":          {"{apiVersion: v1, kind: Service, metadata: {}, spec: {clusterIP: None}}", "metadata.name is missing"},
		"inside a list":    {"{apiVersion: v1, kind: List, items: [" + good + ", {apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: 5}}]}", "document 1: items[1]: Node /n1: field spec.podCIDRs: got number"},
		"half of a JSON":   {`{"apiVersion":"v1","kind":"Serv`, "document 1: "},
		"not a mapping":    {"just text", "document 1: "},
		"a list at top":    {"[1, 2]", "document 1: "},
		"object is a list": {"{apiVersion: v1, kind: Service, metadata: {name: b}, spec: []}", "document 1: Service /b: field spec: got array"},
	} {
		_, _, err := Decode([]byte(c.in))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want one line with %q", name, err, c.want)
		}
	}
}

func TestValuesThatCanNotBeReadAreLeftOut(t *testing.T) {
	in := `
apiVersion: v1
kind: Service
metadata: {name: a}
spec:
  clusterIP: 10.96.0.1
  loadBalancerSourceRanges: [nonsense]
  ports: [{name: a, port: 0}, {name: b, port: 80, protocol: ICMP}, {name: c, port: 80, nodePort: 70000}, {name: d, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
endpoints: [{addresses: []}, {addresses: ["fd00::1"]}, {addresses: [10.0.0.1]}]
ports: [{name: a}, {name: d, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: names, labels: {kubernetes.io/service-name: a}}
addressType: FQDN
endpoints: [{addresses: [x.example]}]
ports: []
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orphan}
addressType: IPv4
endpoints: []
ports: []
`
	got, warnings, err := Decode([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	if ports := got.Services[0].Ports; len(ports) != 1 || ports[0].Name != "d" {
		t.Errorf("ports %+v, want only d", ports)
	}
	if len(got.EndpointSlices) != 1 {
		t.Fatalf("%d EndpointSlices, want 1", len(got.EndpointSlices))
	}
	if s := got.EndpointSlices[0]; len(s.Endpoints) != 1 || len(s.Ports) != 1 {
		t.Errorf("slice %+v, want one endpoint and one port", s)
	}
	if len(warnings) != 11 {
		t.Errorf("%d warnings %q, want 11", len(warnings), warnings)
	}
}

// Whatever is in a file, it is an error or a result, and never a panic.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(kubectlOutput))
	f.Add([]byte(`{"apiVersion":"v1","kind":"List","items":[{}]}`))
	f.Add([]byte("a: [\n---\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		changes, _, err := Decode(data)
		if err != nil && (len(changes.Services) > 0 || changes.Complete) {
			t.Errorf("both a result and the error %v", err)
		}
		if err == nil {
			service.NewState().Apply(changes)
		}
	})
}
