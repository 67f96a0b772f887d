package manifest

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

func TestEncode(t *testing.T) {
	service := Service("kube-system/dns", "10.96.0.53,fd00:10:96::53",
		WithNodePort(UDP("dns", 53, 5353), 30053))
	got, err := Encode(WithEndpoints(service,
		NewEndpoint("dns-1", "node-a", "10.244.1.5"),
		Endpoint{Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.6")}, Terminating: true},
	)...)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/dns.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("testdata/dns.yaml (-want +got):\n%s", diff)
	}
}

// TestRoundTrip checks that what Encode leaves out was nothing.
func TestRoundTrip(t *testing.T) {
	node := Node("node-a", "zone-a", []netip.Addr{netip.MustParseAddr("192.168.77.11")},
		[]netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")})
	service := LoadBalancer(Service("web", "None", TCP("", 80, 8080)), "198.51.100.1")
	for _, object := range []any{node, service} {
		data, err := Encode(object)
		if err != nil {
			t.Fatal(err)
		}
		var got any = &corev1.Node{}
		if object == any(service) {
			got = &corev1.Service{}
		}
		if err := yaml.UnmarshalStrict(data, got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(object, got); diff != "" {
			t.Errorf("(-encoded +decoded):\n%s", diff)
		}
	}
}

func TestConditions(t *testing.T) {
	for _, test := range []struct {
		endpoint       Endpoint
		ready, serving bool
	}{
		{Endpoint{}, true, true},
		{Endpoint{NotServing: true}, true, true},
		{Endpoint{NotReady: true}, false, true},
		{Endpoint{Terminating: true}, false, true},
		{Endpoint{Terminating: true, NotServing: true}, false, false},
	} {
		c := test.endpoint.object(netip.MustParseAddr("10.0.0.1"), "default").Conditions
		if *c.Ready != test.ready || *c.Serving != test.serving || *c.Terminating != test.endpoint.Terminating {
			t.Errorf("%+v: ready %v, serving %v, terminating %v", test.endpoint, *c.Ready, *c.Serving, *c.Terminating)
		}
	}
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "web.yaml")
	for range 2 { // new, then in place of itself
		if err := WriteFile(path, Service("web", "10.96.0.10")); err != nil {
			t.Fatal(err)
		}
	}
	if err := WriteFile(path, func() {}); err == nil {
		t.Error("a func was written")
	}
	if err := WriteFile(filepath.Join(dir, "no", "web.yaml")); err == nil {
		t.Error("written into a directory that is not there")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the directory has %v, error %v; want web.yaml alone", entries, err)
	}
}
