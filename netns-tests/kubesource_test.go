package netnstests

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/service"
	files "github.com/nodeproxy/nodeproxy/source"
)

// sameAsFiles reads the same objects from the API server and from what kubectl
// prints of it: both sources must give the same Table.
func (c *cluster) sameAsFiles(t *testing.T) {
	apply(t, c.Lab, services...)
	defer c.deleteAll(t)
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan service.Changes, 1)
	ended := make(chan error)
	k := &files.Kubernetes{Client: c.api.Client, NodeName: "node-a", Log: slog.New(slog.DiscardHandler)}
	go func() {
		ended <- k.Run(ctx, func(c service.Changes) {
			if c.Complete {
				first <- c
			}
		})
	}()
	defer func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	var fromAPI service.Changes
	select {
	case fromAPI = <-first:
	case <-time.After(patience):
		t.Fatal("the API server's objects do not come")
	}
	printed := c.kubectl(t, "get", "services,endpointslices,nodes", "--all-namespaces", "--output", "yaml")
	fromFiles, warnings, err := files.Decode(printed)
	if err != nil {
		t.Fatalf("what kubectl prints is not read: %v", err)
	}
	if len(warnings) > 0 {
		t.Errorf("warnings about what kubectl prints: %v", warnings)
	}
	api, printedTable := tableOf(t, fromAPI), tableOf(t, fromFiles)
	if len(api.Services) < len(services)-3 { // one is another proxy's, others are of one family
		t.Errorf("only %d Services", len(api.Services))
	}
	options := []cmp.Option{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
	if diff := cmp.Diff(api.Services, printedTable.Services, options...); diff != "" {
		t.Errorf("Table (-from the API server +from files):\n%s", diff)
	}
}

// tableOf is what node-a makes of objects.
func tableOf(t *testing.T, c service.Changes) *service.Table {
	t.Helper()
	var node *service.Node
	for _, n := range c.Nodes {
		if n.Name == "node-a" {
			node = n
		}
	}
	if node == nil {
		t.Fatal("node-a is not among the objects")
	}
	opts := service.Options{NodeName: "node-a", LocalhostNodePorts: true}
	cfg, err := opts.Config(node, service.Host{Addresses: lab.MustPlace("node-a").Addrs()})
	must(t, err)
	r := service.NewResolver(cfg)
	r.Apply(c)
	return r.Table()
}

func (c *cluster) kubectl(t *testing.T, args ...string) []byte {
	t.Helper()
	argv := append([]string{filepath.Join(kubeBinaries(t), "kubectl"), "--kubeconfig", c.api.AdminKubeconfig()}, args...)
	out, err := c.Command(t.Context(), "node-a", argv...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("kubectl %v: %v: %s", args, err, exit.Stderr)
	}
	must(t, err)
	return out
}

// watchesDropped ends the agents' connections to the API server, as a load
// balancer in front of it does, and changes something meanwhile: what works goes
// on, and the change is taken in.
func (c *cluster) watchesDropped(t *testing.T) {
	web := find("web")
	apply(t, c.Lab, web)
	eventually(t, patience, func() error { return onNode(t, c.Lab, "web node-b", everyPod) })
	eventually(t, patience, func() error { return answers(t, c.Lab, "web", everyPod) })
	s := startStream(c.Lab, "client", "web node-b", echo.TCP, false)
	for _, pod := range []string{"pod-b1", "pod-a1", "pod-b2"} {
		for _, node := range lab.PlacesOf(lab.Node) {
			inPlace(t, c.Lab, node.Name, "ss", "--kill", "--tcp", "dport", "=", "6443")
		}
		web.endpoints = pods(pod)
		apply(t, c.Lab, web)
		eventually(t, patience, func() error { return answers(t, c.Lab, "web", pod) })
		eventually(t, patience, func() error { return onNode(t, c.Lab, "web node-b", pod) })
	}
	s.end(t)
}
