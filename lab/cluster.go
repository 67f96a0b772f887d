package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"

	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/manifest"
)

// DemoCluster returns the objects that Up writes, by file name: the nodes and
// a few Services to play with.
//
//	default/web           10.96.0.10  fd00:10:96::10  http 80, echo 7000, echo-udp 7000; all Pods
//	default/web-nodeport  10.96.0.11  fd00:10:96::11  the same, node ports 30080, 30070, 30070/UDP
//	default/one           10.96.0.12  fd00:10:96::12  the same ports, pod-a1 only
//	default/empty         10.96.0.13  fd00:10:96::13  http 80, no endpoints
//	default/iperf         10.96.0.14  fd00:10:96::14  5201, node port 30521; pod-b1 only
func DemoCluster() map[string][]any {
	all := []manifest.Endpoint{
		Endpoint("pod-a1"), Endpoint("pod-a2"), Endpoint("pod-b1"), Endpoint("pod-b2"),
	}
	http, tcp, udp := echoPorts()
	iperf := manifest.TCP("iperf", PortIPerf, PortIPerf)
	return map[string][]any{
		"nodes.yaml": NodeObjects(),
		"web.yaml":   manifest.WithEndpoints(webService(), all...),
		"web-nodeport.yaml": manifest.WithEndpoints(
			manifest.Service("web-nodeport", "10.96.0.11,fd00:10:96::11",
				manifest.WithNodePort(http, 30080), manifest.WithNodePort(tcp, 30070),
				manifest.WithNodePort(udp, 30070)), all...),
		"one.yaml": manifest.WithEndpoints(
			manifest.Service("one", "10.96.0.12,fd00:10:96::12", http, tcp, udp), Endpoint("pod-a1")),
		"empty.yaml": manifest.WithEndpoints(
			manifest.Service("empty", "10.96.0.13,fd00:10:96::13", http)),
		"iperf.yaml": manifest.WithEndpoints(
			manifest.Service("iperf", "10.96.0.14,fd00:10:96::14",
				manifest.WithNodePort(iperf, 30521)), Endpoint("pod-b1")),
	}
}

// echoPorts are the Service ports for what every Pod serves.
func echoPorts() (http, tcp, udp corev1.ServicePort) {
	return manifest.TCP("http", 80, echo.PortHTTP),
		manifest.TCP("echo", echo.PortEcho, echo.PortEcho),
		manifest.UDP("echo-udp", echo.PortEcho, echo.PortEcho)
}

func webService() *corev1.Service {
	http, tcp, udp := echoPorts()
	return manifest.Service("web", "10.96.0.10,fd00:10:96::10", http, tcp, udp)
}

// NodeObjects returns the lab's nodes as v1 Nodes.
func NodeObjects() []any {
	var nodes []any
	for _, n := range PlacesOf(Node) {
		nodes = append(nodes, manifest.Node(n.Name, zone(n.Name), n.Addrs(), PodCIDRs[n.Name]))
	}
	return nodes
}

// ApplyDemoCluster applies what Up writes once more, to a store of its own.
func (l *Lab) ApplyDemoCluster() error {
	for file, objects := range DemoCluster() {
		if err := l.Apply(file, objects...); err != nil {
			return err
		}
	}
	return nil
}

// Store holds the objects of a lab where its agents read them. Objects that
// were applied under one name belong together, as those of a file do.
type Store interface {
	Apply(file string, objects ...any) error
	Delete(file string) error
	// AgentArgs are the arguments by which a node's agent finds the store.
	AgentArgs(node string) []string
}

// SetStore makes another store take the place of the manifest directory, for
// Apply and Delete and for agents that are started later.
func (l *Lab) SetStore(s Store) { l.store = s }

// KeepStore has agents that other processes start later, after [Open], find the store
// too.
func (l *Lab) KeepStore() error {
	unlock, err := lock(l.opts.Name)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := loadState(l.opts.Name)
	if err != nil {
		return fmt.Errorf("keep the store of lab %q: %w", l.opts.Name, err)
	}
	l.opts.AgentSource = l.store.AgentArgs("")
	s.Options.AgentSource = l.opts.AgentSource
	return s.save()
}

// Apply writes objects to a file of the manifest directory, at once and in
// place of what it held; or to the lab's store, if it has one.
func (l *Lab) Apply(file string, objects ...any) error {
	if l.store != nil {
		return l.store.Apply(file, objects...)
	}
	return manifest.WriteFile(filepath.Join(l.ManifestDir(), file), objects...)
}

// Delete removes a file of the manifest directory, if it is there, or what was
// applied to the store under that name.
func (l *Lab) Delete(file string) error {
	if l.store != nil {
		return l.store.Delete(file)
	}
	err := os.Remove(filepath.Join(l.ManifestDir(), file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err // names the operation and the file
}

// Clear removes all manifests but the nodes', for tests that bring their own.
func (l *Lab) Clear() error {
	entries, err := os.ReadDir(l.ManifestDir())
	for _, e := range entries {
		if e.Name() != "nodes.yaml" {
			err = errors.Join(err, l.Delete(e.Name()))
		}
	}
	return err
}
