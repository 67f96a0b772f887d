package netnstests

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/manifest"
)

// svc is a Service of the scenarios. Its number is in all of its addresses:
// ClusterIP 10.96.0.N, externalIP 198.51.100.N, load balancer
// 198.51.100.(100+N), node port 30000+N, and the twins in IPv6 with N in
// hexadecimal. It has port 80 over TCP and over UDP.
type svc struct {
	n         int
	name      string
	endpoints []manifest.Endpoint
	edit      func(s *corev1.Service, slices []*discoveryv1.EndpointSlice)
}

func pods(names ...string) []manifest.Endpoint {
	var list []manifest.Endpoint
	for _, name := range names {
		list = append(list, lab.Endpoint(name))
	}
	return list
}

func allPods() []manifest.Endpoint { return pods("pod-a1", "pod-a2", "pod-b1", "pod-b2") }

// hosts are nodes as endpoints, as Pods on the host network are.
func hosts() []manifest.Endpoint {
	var list []manifest.Endpoint
	for _, p := range lab.PlacesOf(lab.Node) {
		list = append(list, manifest.Endpoint{Pod: p.Name, Addrs: p.Addrs(), Node: p.Name})
	}
	return list
}

func terminating(e manifest.Endpoint) manifest.Endpoint { e.Terminating = true; return e }
func notReady(e manifest.Endpoint) manifest.Endpoint    { e.NotReady = true; return e }

// services are all in the lab at once, so every scenario also shows that the
// others are not in its way.
var services = []svc{
	{1, "web", allPods(), nil},
	{2, "remote", pods("pod-b1"), nil},
	{3, "single", pods("pod-a1"), nil},
	{4, "empty", nil, nil},
	{5, "hostnet", hosts(), nil},
	{6, "local-a", pods("pod-a1", "pod-a2"), externalLocal},
	{7, "local-both", pods("pod-a1", "pod-b1"), externalLocal},
	{8, "local-empty", nil, externalLocal},
	{9, "internal", pods("pod-a1"), internalLocal},
	{10, "internal-empty", nil, internalLocal},
	{11, "allow-client", pods("pod-a1", "pod-b1"), ranges("192.168.78.0/24", "fd00:78::/64")},
	{12, "deny", pods("pod-a1"), ranges("203.0.113.0/24", "2001:db8::/32")},
	{13, "allow-nodes", pods("pod-a1", "pod-b1"), ranges("192.168.77.0/24", "fd00:77::/64")},
	{14, "deny-empty", nil, ranges("203.0.113.0/24", "2001:db8::/32")},
	{15, "deny-v4", pods("pod-a1"), ranges("203.0.113.0/24")},
	{16, "affinity", allPods(), affine},
	{17, "ports", pods("pod-a1", "pod-b1"), twoPorts},
	{18, "large", allPods(), nil},
	{19, "terminating", []manifest.Endpoint{
		terminating(lab.Endpoint("pod-a1")), terminating(lab.Endpoint("pod-b1"))}, nil},
	{20, "one-terminating", []manifest.Endpoint{
		lab.Endpoint("pod-a1"), terminating(lab.Endpoint("pod-b1"))}, nil},
	{21, "local-terminating", []manifest.Endpoint{
		terminating(lab.Endpoint("pod-a1")), lab.Endpoint("pod-b1")}, externalLocal},
	{22, "one-ready", []manifest.Endpoint{
		notReady(lab.Endpoint("pod-a1")), lab.Endpoint("pod-b1")}, nil},
	{23, "none-ready", []manifest.Endpoint{notReady(lab.Endpoint("pod-a1"))}, nil},
	{24, "hints", pods("pod-a1", "pod-b1"), zoneHints},
	{25, "v4-only", pods("pod-a1"), nil},
	{26, "v6-only", pods("pod-a1"), nil},
	{27, "plain", allPods(), clusterIPOnly},
	{28, "lb-proxy", pods("pod-b1"), func(s *corev1.Service, _ []*discoveryv1.EndpointSlice) {
		for i := range s.Status.LoadBalancer.Ingress {
			mode := corev1.LoadBalancerIPModeProxy
			s.Status.LoadBalancer.Ingress[i].IPMode = &mode
		}
	}},
	{29, "other-proxy", pods("pod-a1"), func(s *corev1.Service, _ []*discoveryv1.EndpointSlice) {
		s.Labels["service.kubernetes.io/service-proxy-name"] = "another"
	}},
	{30, "affinity-large", allPods(), affine},
	{31, "affinity-local", pods("pod-a1", "pod-a2", "pod-b1"), func(s *corev1.Service, _ []*discoveryv1.EndpointSlice) {
		affine(s, nil)
		externalLocal(s, nil)
	}},
	{32, "range", pods("pod-a1", "pod-b1"), portRange},
	{33, "range-empty", nil, portRange},
	{34, "range-local", pods("pod-a1", "pod-b1"), func(s *corev1.Service, _ []*discoveryv1.EndpointSlice) {
		portRange(s, nil)
		externalLocal(s, nil)
	}},
	{35, "range-deny", pods("pod-a1"), func(s *corev1.Service, _ []*discoveryv1.EndpointSlice) {
		portRange(s, nil)
		ranges("203.0.113.0/24", "2001:db8::/32")(s, nil)
	}},
	{36, "weights", pods("pod-a1", "pod-b1"), func(_ *corev1.Service, slices []*discoveryv1.EndpointSlice) {
		for _, slice := range slices {
			slice.Annotations = map[string]string{"nodeproxy.io/weights": weightsText(slice, "pod-b1", 3)}
		}
	}},
	{37, "maglev", allPods(), func(s *corev1.Service, _ []*discoveryv1.EndpointSlice) {
		s.Annotations = map[string]string{"nodeproxy.io/algorithm": "maglev"}
	}},
	{38, "local-b", pods("pod-b1"), externalLocal},
	{39, "allow-pods", pods("pod-a1", "pod-b1"), ranges(lab.ClusterCIDRs[0].String(), lab.ClusterCIDRs[1].String())},
}

// portRange gives the Service all ports at which Pods serve.
func portRange(s *corev1.Service, _ []*discoveryv1.EndpointSlice) {
	s.Annotations = map[string]string{"nodeproxy.io/port-range": fmt.Sprintf("%d-%d", echo.PortEcho, echo.PortEcho+extraPorts)}
}

// weightsText is the annotation that gives a Pod a weight.
func weightsText(slice *discoveryv1.EndpointSlice, pod string, weight int) string {
	v6 := slice.AddressType == discoveryv1.AddressTypeIPv6
	return fmt.Sprintf(`{"%s": %d}`, lab.MustPlace(pod).Addr(v6), weight)
}

func affine(s *corev1.Service, _ []*discoveryv1.EndpointSlice) {
	s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
}

func externalLocal(s *corev1.Service, _ []*discoveryv1.EndpointSlice) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func internalLocal(s *corev1.Service, _ []*discoveryv1.EndpointSlice) {
	local := corev1.ServiceInternalTrafficPolicyLocal
	s.Spec.InternalTrafficPolicy = &local
}

func ranges(list ...string) func(*corev1.Service, []*discoveryv1.EndpointSlice) {
	return func(s *corev1.Service, _ []*discoveryv1.EndpointSlice) { s.Spec.LoadBalancerSourceRanges = list }
}

func clusterIPOnly(s *corev1.Service, _ []*discoveryv1.EndpointSlice) {
	s.Spec.Type = corev1.ServiceTypeClusterIP
	s.Spec.ExternalIPs, s.Status.LoadBalancer.Ingress = nil, nil
	for i := range s.Spec.Ports {
		s.Spec.Ports[i].NodePort = 0
	}
}

func zoneHints(_ *corev1.Service, slices []*discoveryv1.EndpointSlice) {
	for _, slice := range slices {
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: *e.Zone}}}
		}
	}
}

// firstExtraPort and extraPorts are where Pods serve besides echo.PortEcho,
// as "POD/PORT".
const (
	firstExtraPort = echo.PortEcho + 1
	extraPorts     = 4
)

// twoPorts gives the Service port 81, and UDP targets other than TCP's.
func twoPorts(s *corev1.Service, slices []*discoveryv1.EndpointSlice) {
	s.Spec.Ports = append(s.Spec.Ports, manifest.TCP("more", 81, firstExtraPort), manifest.UDP("more-udp", 81, echo.PortEcho))
	targets := map[string]int32{"echo-udp": firstExtraPort}
	for _, slice := range slices {
		for i, p := range slice.Ports {
			if target, ok := targets[*p.Name]; ok {
				slice.Ports[i].Port = &target
			}
		}
		for _, p := range s.Spec.Ports[2:] {
			slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{
				Name: &p.Name, Protocol: &p.Protocol, Port: &p.TargetPort.IntVal})
		}
	}
}

func find(name string) svc {
	for _, s := range services {
		if s.name == name {
			return s
		}
	}
	panic("no Service " + name)
}

// object returns the Service with everything that can be dialled.
func (s svc) object() *corev1.Service {
	v4, v6 := fmt.Sprintf("10.96.0.%d", s.n), fmt.Sprintf("fd00:10:96::%x", s.n)
	ips := v4 + "," + v6
	switch s.name {
	case "v4-only":
		ips = v4
	case "v6-only":
		ips = v6
	}
	port := int32(30000 + s.n)
	out := manifest.Service(s.name, ips,
		manifest.WithNodePort(manifest.TCP("echo", 80, echo.PortEcho), port),
		manifest.WithNodePort(manifest.UDP("echo-udp", 80, echo.PortEcho), port))
	manifest.LoadBalancer(out, fmt.Sprintf("198.51.100.%d", 100+s.n), fmt.Sprintf("fd00:198::%x", 0x100+s.n))
	out.Spec.ExternalIPs = []string{fmt.Sprintf("198.51.100.%d", s.n), fmt.Sprintf("fd00:198::%x", s.n)}
	return out
}

func (s svc) objects() []any {
	service := s.object()
	slices := manifest.Slices(service, s.endpoints...)
	if strings.HasSuffix(s.name, "large") {
		slices = append(slices, moreSlices(slices)...)
	}
	if s.edit != nil {
		s.edit(service, slices)
	}
	objects := []any{service}
	for _, slice := range slices {
		objects = append(objects, slice)
	}
	return objects
}

// moreSlices returns slices with the same Pods under all extra ports.
func moreSlices(slices []*discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice {
	var list []*discoveryv1.EndpointSlice
	for _, slice := range slices {
		for i := range extraPorts {
			number := int32(firstExtraPort + i)
			more := slice.DeepCopy()
			more.ObjectMeta = metav1.ObjectMeta{
				Namespace: slice.Namespace, Labels: slice.Labels, Name: fmt.Sprintf("%s-%d", slice.Name, number)}
			for j := range more.Ports {
				more.Ports[j].Port = &number
			}
			list = append(list, more)
		}
	}
	return list
}

// secondAddrs are addresses that node-a gets besides its own; with
// --nodeport-addresses primary, they carry no node ports.
var secondAddrs = []netip.Addr{netip.MustParseAddr("192.168.77.111"), netip.MustParseAddr("fd00:77::111")}

// addr tells where a Service is dialled: at "cluster", "external", "balancer",
// a node's name, or "second".
func (s svc) addr(at string, port uint16, v6 bool) netip.AddrPort {
	node := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, uint16(30000+s.n)) }
	pick := func(v4, v6text string) netip.AddrPort {
		if v6 {
			v4 = v6text
		}
		return netip.AddrPortFrom(netip.MustParseAddr(v4), port)
	}
	switch at {
	case "cluster":
		return pick(fmt.Sprintf("10.96.0.%d", s.n), fmt.Sprintf("fd00:10:96::%x", s.n))
	case "external":
		return pick(fmt.Sprintf("198.51.100.%d", s.n), fmt.Sprintf("fd00:198::%x", s.n))
	case "balancer":
		return pick(fmt.Sprintf("198.51.100.%d", 100+s.n), fmt.Sprintf("fd00:198::%x", 0x100+s.n))
	case "second":
		if v6 {
			return node(secondAddrs[1])
		}
		return node(secondAddrs[0])
	}
	return node(lab.MustPlace(at).Addr(v6))
}

// withAffinityTimeout returns the objects of a Service with that timeout.
func withAffinityTimeout(s svc, seconds int32) []any {
	objects := s.objects()
	objects[0].(*corev1.Service).Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{
		ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds},
	}
	return objects
}
