package netnstests

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// TestMigrateFromKubeProxy goes the way of docs/migrate-from-kube-proxy.md, on
// nodes without a DaemonSet: kube-proxy itself serves the lab, nodeproxy takes
// over with the same configuration file, and kube-proxy again. Connections that
// are open go on all the way, and new ones work at each stage.
func TestMigrateFromKubeProxy(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	c := upCluster(t)
	apply(t, c.Lab, find("web"), find("empty"))
	config := filepath.Join(c.StateDir(), "config.conf")
	must(t, os.WriteFile(config, fmt.Appendf(nil, `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %s}
clusterCIDR: %s,%s
mode: iptables
iptables: {minSyncPeriod: 100ms}
conntrack: {maxPerCore: 0}
oomScoreAdj: 0
`, c.api.AdminKubeconfig(), lab.ClusterCIDRs[0], lab.ClusterCIDRs[1]), 0o600))
	for _, mode := range []string{lab.ModeIPTables, lab.ModeEBPF} {
		t.Run(mode, func(t *testing.T) { c.migrate(t, config, mode) })
	}
}

func (c *cluster) migrate(t *testing.T, config, mode string) {
	serves := func(stage string) {
		t.Helper()
		eventually(t, 2*patience, func() error {
			v6 := nodePortFlow(c.Lab, "web node-a", everyPod, true)
			cluster := nodePortFlow(c.Lab, "web cluster", everyPod, true) // what is written last
			cluster.from = lab.MustPlace("node-b")
			return errors.Join(answers(t, c.Lab, "web", everyPod), onNode(t, c.Lab, "web node-b", everyPod), onNode(t, c.Lab, "empty node-a", refused),
				v6.check(t.Context()), cluster.check(t.Context()))
		})
		t.Log(stage)
	}
	eachNode := func(do func(node string)) {
		for _, p := range lab.PlacesOf(lab.Node) {
			do(p.Name)
		}
	}
	kubeProxy := func(node string) {
		t.Helper()
		_, err := c.Start(node, "kube-proxy-"+node, filepath.Join(kubeBinaries(t), "kube-proxy"), "--config", config, "--hostname-override", node)
		must(t, err)
	}
	kubeRules := func(node string) int {
		return strings.Count(inPlace(t, c.Lab, node, "iptables-save", "-t", "nat"), "KUBE-SVC-")
	}

	eachNode(kubeProxy)
	serves("kube-proxy serves")
	open := hold
	if mode == lab.ModeEBPF { // a UDP flow begins anew with its next datagram
		open = func(t *testing.T, l *lab.Lab, n int, from string, targets ...string) []heldFlow {
			return holdOver(t, l, echo.TCP, n, from, targets...)
		}
	}
	held := open(t, c.Lab, 20, "client", "web node-a", "web external")
	held = append(held, open(t, c.Lab, 20, "pod-a1", "web cluster")...)
	held = append(held, open(t, c.Lab, 20, "node-b", "web cluster")...)
	s := startStream(c.Lab, "client", "web node-b", echo.TCP, false)

	eachNode(func(node string) {
		must(t, c.Stop("kube-proxy-"+node))
		must(t, c.StartAgent(t.Context(), node, "--config", config, "--remove-kube-proxy-rules", "--mode", mode))
	})
	serves("nodeproxy serves")
	pingAll(t, held)
	eachNode(func(node string) {
		eventually(t, patience, func() error {
			if n := kubeRules(node); n > 0 {
				return fmt.Errorf("%d lines with kube-proxy's chains are left on %s", n, node)
			}
			return nil
		})
	})

	eachNode(func(node string) {
		must(t, c.StopAgent(node))
		kubeProxy(node)
		eventually(t, patience, func() error {
			if kubeRules(node) == 0 {
				return errors.New("kube-proxy has no rules yet")
			}
			return nil
		})
		inPlace(t, c.Lab, node, c.Options().Binary, "cleanup", "--instance", c.Netns(node))
	})
	serves("kube-proxy serves again")
	pingAll(t, held)
	s.end(t)
	eachNode(func(node string) { must(t, c.Stop("kube-proxy-"+node)) })
}
