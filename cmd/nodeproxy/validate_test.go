package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// mistakes are manifests that would be served otherwise than they say, without a
// word, and what validate says of them.
var mistakes = map[string]struct{ text, want string }{
	"type":                          {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, type: Loadbalancer, ports: [{port: 80}]}}", `document 1: Service /a: spec.type: "Loadbalancer": use ClusterIP, NodePort, LoadBalancer or ExternalName`},
	"external policy":               {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, externalTrafficPolicy: local, ports: [{port: 80}]}}", `spec.externalTrafficPolicy: "local": use Cluster or Local`},
	"internal policy":               {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, internalTrafficPolicy: node, ports: [{port: 80}]}}", `spec.internalTrafficPolicy: "node": use Cluster or Local`},
	"affinity":                      {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, sessionAffinity: clientip, ports: [{port: 80}]}}", `spec.sessionAffinity: "clientip": use None or ClientIP`},
	"affinity timeout":              {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: -5}}, ports: [{port: 80}]}}", `timeoutSeconds: -5: use 1 to 86400; 10800 is used`},
	"status":                        {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, type: NodePort, ports: [{port: 80, nodePort: 30080}]}, status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}}", `status.loadBalancer.ingress: its addresses are served, but spec.type is NodePort`},
	"loadBalancerIP":                {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, type: LoadBalancer, loadBalancerIP: 192.0.2.1, ports: [{port: 80}]}}", `spec.loadBalancerIP: asks a load balancer for an address`},
	"port":                          {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: 0}]}}", "document 1: Service /a: spec.ports[0].port"},
	"no label":                      {"---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}]}", "document 1: EndpointSlice /a-1: metadata.labels: kubernetes.io/service-name is missing"},
	"no Service":                    {"{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}]}", "EndpointSlice default/a-1: there is no Service default/a"},
	"port name":                     {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{name: web, port: 80}]}}\n---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, ports: [{name: http, port: 80}], endpoints: [{addresses: [10.0.0.1]}]}", `Service default/a: NoSuchEndpointPort: port 80 has no endpoints: none of its EndpointSlices has a port named "web" over TCP (they have "http" over TCP)`},
	"one address":                   {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}\n---\n{apiVersion: v1, kind: Service, metadata: {name: b}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}", "Service default/b: AddressConflict"},
	"twice":                         {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}\n---\n{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}", "Service default/a: it is there twice"},
	"second document":               {"# nothing\n---\n{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: http}]}}\n---\n{kind: [", "document 3: "},
	"wrong annotation":              {"{apiVersion: v1, kind: Service, metadata: {name: a, annotations: {nodeproxy.io/algorithm: hash}}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}", `"hash" is none of random, maglev`},
	"unknown field":                 {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, externalTraficPolicy: Local, ports: [{port: 80}]}}`, `document 1: Service /a: spec.externalTraficPolicy: there is no such field, and it is not used`},
	"case of a field":               {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, externaltrafficpolicy: Local, ports: [{port: 80}]}}`, `spec.externaltrafficpolicy: there is no such field`},
	"field of a port":               {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80, nodeport: 30080}]}}`, `spec.ports[0].nodeport: there is no such field`},
	"node port of a ClusterIP":      {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]}}`, `spec.ports[0].nodePort: 30080 is served, but spec.type is ClusterIP`},
	"node port missing":             {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, type: NodePort, ports: [{port: 80}]}}`, `spec.ports[0].nodePort: is missing: no API server is here to choose one`},
	"policy of a ClusterIP":         {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, externalTrafficPolicy: Local, ports: [{port: 80}]}}`, `spec.externalTrafficPolicy: Local has no meaning: spec.type is ClusterIP`},
	"health-check port":             {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, type: NodePort, healthCheckNodePort: 32000, ports: [{port: 80, nodePort: 30080}]}}`, `spec.healthCheckNodePort: has no meaning`},
	"health-check number":           {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 70000, ports: [{port: 80}]}}`, `spec.healthCheckNodePort: 70000 is no port number`},
	"ranges of a NodePort":          {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, type: NodePort, loadBalancerSourceRanges: [10.0.0.0/8], ports: [{port: 80, nodePort: 30080}]}}`, `spec.loadBalancerSourceRanges: has no meaning`},
	"timeout without affinity":      {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}, ports: [{port: 80}]}}`, `spec.sessionAffinityConfig: has no meaning: spec.sessionAffinity is None`},
	"two ClusterIPs":                {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 10.96.0.2], ports: [{port: 80}]}}`, `spec.clusterIPs: 10.96.0.2 is not used: 10.96.0.1 is of the same family`},
	"clusterIP differs":             {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.2], ports: [{port: 80}]}}`, `spec.clusterIP: 10.96.0.1 is not the first of spec.clusterIPs, 10.96.0.2`},
	"a port twice":                  {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{name: x, port: 80}, {name: q, port: 80}]}}`, `spec.ports[1].port: 80/TCP is that of spec.ports[0] too`},
	"a port name twice":             {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{name: x, port: 80}, {name: x, port: 81}]}}`, `spec.ports[1].name: "x" is that of spec.ports[0] too`},
	"a node port twice":             {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, type: NodePort, ports: [{name: x, port: 80, nodePort: 30080}, {name: q, port: 81, nodePort: 30080}]}}`, `spec.ports[1].nodePort: 30080/TCP is that of spec.ports[0] too`},
	"a port without a name":         {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{name: x, port: 80}, {port: 81}]}}`, `spec.ports[1].name: is missing`},
	"no port":                       {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: []}}`, `Service default/a: NoPorts`},
	"only an invalid port":          {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80, protocol: ICMP}]}}`, `Service default/a: NoPorts: it has no port that can be served`},
	"external IP of a headless one": {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: None, ports: [{port: 80}], externalIPs: [192.0.2.1]}}`, `spec.externalIPs: has no meaning: spec.clusterIP is None`},
	"bad external IP":               {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}], externalIPs: [x]}}`, `spec.externalIPs: "x" is no IP address`},
	"bad source range":              {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, type: LoadBalancer, ports: [{port: 80}], loadBalancerSourceRanges: [10.0.0.1]}}`, `spec.loadBalancerSourceRanges: "10.0.0.1" is no CIDR`},
	"address type missing":          {`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, ports: [{port: 80}], endpoints: [{addresses: [10.0.0.1]}]}`, `EndpointSlice /a-1: addressType: is missing: use IPv4 or IPv6`},
	"address type unknown":          {`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, addressType: ipv6, ports: [{port: 80}], endpoints: [{addresses: [10.0.0.1]}]}`, `addressType: "ipv6": use IPv4 or IPv6`},
	"address type FQDN":             {`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, addressType: FQDN, ports: [{port: 80}], endpoints: [{addresses: [a.example]}]}`, `addressType: FQDN: names are not served`},
	"address of another family":     {`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: ['fd00::1']}]}`, `endpoints[0].addresses: fd00::1 is no IPv4 address`},
	"no ports in a slice":           {`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}]}`, `ports: is empty: none of its endpoints is served`},
	"a port without a number":       {`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, ports: [{name: http}], endpoints: [{addresses: [10.0.0.1]}]}`, `ports[0].port: is missing`},
	"a slice's port twice":          {`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, ports: [{name: x, port: 1}, {name: x, port: 2}], endpoints: [{addresses: [10.0.0.1]}]}`, `ports[1].name: "x" is that of ports[0] too`},
	"an endpoint's field":           {`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, ports: [{port: 80}], endpoints: [{addresses: [10.0.0.1], nodename: x}]}`, `endpoints[0].nodename: there is no such field`},
	"Pod CIDRs":                     {`{apiVersion: v1, kind: Node, metadata: {name: node-1}, spec: {podCIDRs: [10.244.0.0/24, 10.244.1.0/24]}}`, `Node /node-1: spec.podCIDRs: 10.244.1.0/24 is not used: 10.244.0.0/24 is of the same family`},
	"a field twice":                 {`{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, type: ClusterIP, ports: [{port: 80}], type: NodePort}}`, `already set in map`},
	"a field twice in JSON":         {`{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"clusterIP":"10.96.0.1","type":"ClusterIP","type":"NodePort","ports":[{"port":80,"nodePort":30080}]}}`, `spec.type: it is there twice, and the last counts`},
	"a file of nothing":             {"kind", "document 1: "},
}

func TestValidateNamesSilentMistakes(t *testing.T) {
	for name, c := range mistakes {
		path := filepath.Join(t.TempDir(), "x.yaml")
		if err := os.WriteFile(path, []byte(c.text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err := validateManifests(&out, []string{path}, 0)
		code := 0
		if err != nil {
			code, _ = exitOf(err)
		}
		if code != 1 || !strings.Contains(out.String(), c.want) {
			t.Errorf("%s: exit code %d, want 1 and %q:\n%s", name, code, c.want, out.String())
		}
	}
}

func TestValidateFindsNothingWrongWithWhatIsRight(t *testing.T) {
	dir := t.TempDir()
	right := "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, type: NodePort, ports: [{name: http, port: 80, nodePort: 30080}]}}\n---\n" +
		"{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, ports: [{name: http, port: 80}], endpoints: [{addresses: [10.0.0.1]}]}\n---\n" +
		"{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}}\n"
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(right), 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := validateManifests(&out, []string{dir}, 0); err != nil || !strings.Contains(out.String(), "1 file, 1 Service, 1 EndpointSlice: no problem found") {
		t.Errorf("%v:\n%s", err, out.String())
	}
	if err := validateManifests(&out, []string{filepath.Join(dir, "none")}, 0); err == nil {
		t.Error("a path that is not there is no error")
	}
}
