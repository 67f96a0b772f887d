package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"

	"github.com/nodeproxy/nodeproxy/service"
	"github.com/nodeproxy/nodeproxy/source"
)

// podFinder finds the addresses of a Pod in the agent's source. An agent may
// read EndpointSlices and no Pods, so it looks there first: a Pod that is an
// endpoint of some Service is found. The agent itself has no use for names of
// Pods, and does not keep them.
type podFinder struct {
	client    kubernetes.Interface // nil: files
	manifests string               // a file or a directory

	maxManifest int64 // in bytes; 0 for the default
}

// find returns the addresses of a Pod, one of each family at most.
func (p *podFinder) find(ctx context.Context, pod service.Name) ([]netip.Addr, error) {
	if p.client == nil {
		return p.inFiles(pod)
	}
	list, err := p.client.DiscoveryV1().EndpointSlices(pod.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list EndpointSlices of %s: %w", pod.Namespace, err)
	}
	var found []netip.Addr
	for i := range list.Items {
		found = append(found, addressesIn(&list.Items[i], pod)...)
	}
	if len(found) > 0 {
		return unique(found), nil
	}
	object, err := p.client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("pod %s is no endpoint of a Service, and cannot be read: %w; give its address instead", pod, err)
	}
	for _, ip := range object.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			found = append(found, a)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("pod %s has no address yet", pod)
	}
	return found, nil
}

// addressesIn are the addresses at which a slice has a Pod.
func addressesIn(s *discovery.EndpointSlice, pod service.Name) (out []netip.Addr) {
	for _, e := range s.Endpoints {
		if e.TargetRef == nil || e.TargetRef.Kind != "Pod" || e.TargetRef.Name != pod.Name || s.Namespace != pod.Namespace {
			continue
		}
		for _, text := range e.Addresses {
			if a, err := netip.ParseAddr(text); err == nil {
				out = append(out, a)
			}
		}
	}
	return out
}

func unique(all []netip.Addr) []netip.Addr {
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// inFiles looks into every manifest of the source.
func (p *podFinder) inFiles(pod service.Name) ([]netip.Addr, error) {
	names, err := source.Manifests(p.manifests)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	var found []netip.Addr
	for _, name := range names {
		if data, err := source.ReadFile(name, p.maxManifest); err == nil { // the source has told of the others
			found = append(found, podInManifest(data, pod)...)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("pod %s is not an endpoint of any Service in %s; use its IP address", pod, p.manifests)
	}
	return unique(found), nil
}

// podInManifest passes over what it cannot read: the source has told of it.
func podInManifest(data []byte, pod service.Name) (found []netip.Addr) {
	for docs := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096); ; {
		var object struct {
			discovery.EndpointSlice `json:",inline"`
			Items                   []discovery.EndpointSlice `json:"items"`
		}
		if docs.Decode(&object) != nil {
			return found
		}
		for _, slice := range append(object.Items, object.EndpointSlice) {
			slice.Namespace = cmp.Or(slice.Namespace, metav1.NamespaceDefault)
			found = append(found, addressesIn(&slice, pod)...)
		}
	}
}

// podSource is where a Pod's address comes from if no agent answers.
type podSource struct{ o runOptions }

func (p *podSource) register(f *pflag.FlagSet) {
	f.StringVar(&p.o.source, "source", "", "where Pods are found if no agent answers: file:PATH, or kubernetes")
	f.StringVar(&p.o.client.Kubeconfig, "kubeconfig", "", "kubeconfig of the API server, for --source kubernetes, which it implies")
}

// find returns the addresses of a Pod.
func (p *podSource) find(ctx context.Context, pod service.Name, noAgent error) ([]netip.Addr, error) {
	if p.o.source == "" && p.o.client.Kubeconfig == "" && !inCluster() {
		return nil, fmt.Errorf("%w, so Pod %s is not known: give --source file:PATH or --kubeconfig FILE to look for it, or its address instead", noAgent, pod)
	}
	if err := p.o.chooseSource(); err != nil {
		return nil, err
	}
	_, client, err := p.o.openSource("", slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	return (&podFinder{client: client, manifests: strings.TrimPrefix(p.o.source, filePrefix)}).find(ctx, pod)
}

// parseName reads NAMESPACE/NAME.
func parseName(s string) (service.Name, error) {
	namespace, name, ok := strings.Cut(s, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return service.Name{}, fmt.Errorf("%q: use NAMESPACE/NAME", s)
	}
	return service.Name{Namespace: namespace, Name: name}, nil
}
