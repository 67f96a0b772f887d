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
	"type":              {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, type: Loadbalancer, ports: [{port: 80}]}}", `document 1: Service /a: spec.type: "Loadbalancer": use ClusterIP, NodePort, LoadBalancer or ExternalName`},
	"external policy":   {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, externalTrafficPolicy: local, ports: [{port: 80}]}}", `spec.externalTrafficPolicy: "local": use Cluster or Local`},
	"internal policy":   {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, internalTrafficPolicy: node, ports: [{port: 80}]}}", `spec.internalTrafficPolicy: "node": use Cluster or Local`},
	"affinity":          {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, sessionAffinity: clientip, ports: [{port: 80}]}}", `spec.sessionAffinity: "clientip": use None or ClientIP`},
	"affinity timeout":  {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: -5}}, ports: [{port: 80}]}}", `timeoutSeconds: -5: use 1 to 86400; 10800 is used`},
	"status":            {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, type: NodePort, ports: [{port: 80, nodePort: 30080}]}, status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}}", `status.loadBalancer.ingress: its addresses are served, but spec.type is NodePort`},
	"loadBalancerIP":    {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, type: LoadBalancer, loadBalancerIP: 192.0.2.1, ports: [{port: 80}]}}", `spec.loadBalancerIP: asks a load balancer for an address`},
	"port":              {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: 0}]}}", "document 1: Service /a: spec.ports[0].port"},
	"no label":          {"---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}]}", "document 1: EndpointSlice /a-1: metadata.labels: kubernetes.io/service-name is missing"},
	"no Service":        {"{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}]}", "EndpointSlice default/a-1: there is no Service default/a"},
	"port name":         {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{name: web, port: 80}]}}\n---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, ports: [{name: http, port: 80}], endpoints: [{addresses: [10.0.0.1]}]}", `Service default/a: NoSuchEndpointPort: port 80 has no endpoints: none of its EndpointSlices has a port named "web" over TCP (they have "http" over TCP)`},
	"one address":       {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}\n---\n{apiVersion: v1, kind: Service, metadata: {name: b}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}", "Service default/b: AddressConflict"},
	"twice":             {"{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}\n---\n{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}", "Service default/a: it is there twice"},
	"second document":   {"# nothing\n---\n{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: http}]}}\n---\n{kind: [", "document 3: "},
	"wrong annotation":  {"{apiVersion: v1, kind: Service, metadata: {name: a, annotations: {nodeproxy.io/algorithm: hash}}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}", `"hash" is none of random, maglev`},
	"a file of nothing": {"kind", "document 1: "},
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
	if err := validateManifests(&out, []string{dir}, 0); err != nil || !strings.Contains(out.String(), "1 files, 1 Services, 1 EndpointSlices: no problem found") {
		t.Errorf("%v:\n%s", err, out.String())
	}
	if err := validateManifests(&out, []string{filepath.Join(dir, "none")}, 0); err == nil {
		t.Error("a path that is not there is no error")
	}
}
