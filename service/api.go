package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Family is an IP address family. It indexes arrays of two.
type Family uint8

// The two families, in the order in which dual-stack arrays hold them.
const (
	IPv4 Family = iota
	IPv6
)

// Families lists both families, for ranging over.
var Families = [...]Family{IPv4, IPv6}

// String returns "IPv4" or "IPv6", as the Kubernetes API writes them.
func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// FamilyOf tells the family of a valid address. An IPv4-mapped IPv6 address
// counts as IPv4.
func FamilyOf(addr netip.Addr) Family {
	if addr.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

// Protocol is a transport protocol, as its IANA protocol number.
type Protocol uint8

// The protocols that a Service port can have.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// Protocols lists every protocol that a Service port can have.
var Protocols = [...]Protocol{TCP, UDP, SCTP}

// String returns the name that the Kubernetes API uses: "TCP", "UDP", "SCTP".
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("protocol(%d)", uint8(p))
}

// Name is the namespace and name of a namespaced object.
type Name struct {
	Namespace, Name string
}

// String returns "namespace/name".
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Compare orders names by namespace, then by name, as strings.Compare does.
func (n Name) Compare(o Name) int {
	return cmp.Or(strings.Compare(n.Namespace, o.Namespace), strings.Compare(n.Name, o.Name))
}

// Service holds the fields of a v1 Service that a node proxy reads. It is
// immutable once it was handed to a [State].
type Service struct {
	Name    Name
	Created time.Time // settles which of two Services owns an address they share
	// ProxyName is the label service.kubernetes.io/service-proxy-name. A
	// Service that has it belongs to another proxy and is ignored here.
	ProxyName string
	Type      Type

	ClusterIPs  []netip.Addr // none for a headless Service
	ExternalIPs []netip.Addr
	Ingress     []Ingress // status.loadBalancer.ingress with an IP

	SourceRanges        []netip.Prefix // spec.loadBalancerSourceRanges, both families
	InternalPolicy      Policy
	ExternalPolicy      Policy
	AffinityTimeout     time.Duration // of ClientIP session affinity; 0 means none
	HealthCheckNodePort uint16
	Ports               []Port
	Annotations         map[string]string // only those under nodeproxy.io/
}

// Type is a Service's spec.type.
type Type string

// Service types.
const (
	TypeClusterIP    Type = "ClusterIP"
	TypeNodePort     Type = "NodePort"
	TypeLoadBalancer Type = "LoadBalancer"
	TypeExternalName Type = "ExternalName"
)

// Policy is a traffic policy: which endpoints may be used.
type Policy uint8

// Traffic policies. The zero value is the API's default.
const (
	PolicyCluster Policy = iota // endpoints of every node
	PolicyLocal                 // endpoints of this node only
)

// String returns "Cluster" or "Local", as the API writes them.
func (p Policy) String() string {
	if p == PolicyLocal {
		return "Local"
	}
	return "Cluster"
}

// Ingress is one address of status.loadBalancer.ingress.
type Ingress struct {
	Addr netip.Addr
	// Proxy is set for ipMode Proxy: the load balancer delivers to the node's
	// own address, so this one must not be captured (KEP-1860).
	Proxy bool
}

// Port is one port of a Service. NodePort is 0 where there is none.
type Port struct {
	Name     string
	Protocol Protocol
	Port     uint16
	NodePort uint16
}

// EndpointSlice holds the fields of a discovery.k8s.io/v1 EndpointSlice that a
// node proxy reads. It is immutable once it was handed to a [State].
type EndpointSlice struct {
	Name    Name
	Service string // label kubernetes.io/service-name: the Service's name in the same namespace
	// ProxyName and Headless are the labels by which a slice is kept from
	// this proxy: service.kubernetes.io/service-proxy-name and .../headless.
	ProxyName string
	Headless  bool
	Family    Family
	Ports     []EndpointPort
	Endpoints []Endpoint
	// LastChange is the annotation endpoints.kubernetes.io/last-change-trigger-time,
	// zero where absent.
	LastChange time.Time
	// Weights is the annotation nodeproxy.io/weights, still unparsed.
	Weights string
}

// EndpointPort is a port of every endpoint in a slice. Number is never 0.
type EndpointPort struct {
	Name     string
	Protocol Protocol
	Number   uint16
}

// Endpoint is one endpoint of a slice, with the defaults of its conditions
// filled in (ready nil means true, serving nil means true, terminating nil
// means false).
type Endpoint struct {
	Addr        netip.Addr // the first of its addresses: only that one is used
	Ready       bool
	Serving     bool
	Terminating bool
	NodeName    string // empty where unknown: such an endpoint is never local
	Zone        string
	Hints       *Hints // nil if it has none, as nearly all
}

// Hints say for whom an endpoint is meant (EndpointSlice, endpoints[].hints).
type Hints struct {
	Zones []string // forZones
	Nodes []string // forNodes
}

// Node holds the fields of a v1 Node that a node proxy reads.
type Node struct {
	Name string
	// Addresses in the order of preference: InternalIP before ExternalIP.
	Addresses []netip.Addr
	PodCIDRs  []netip.Prefix
	Zone      string // label topology.kubernetes.io/zone
	// Deleting and ClusterAutoscalerTaint make /healthz answer 503.
	Deleting               bool
	ClusterAutoscalerTaint bool
}
