package iptables

import (
	"context"
	"slices"
	"strings"
)

// kubeProxyChains are the chains of kube-proxy with a fixed name, and
// kubeProxyPrefixes those of one Service. KUBE-FIREWALL is kubelet's.
var (
	kubeProxyChains = []string{
		"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-FORWARD", "KUBE-POSTROUTING",
		"KUBE-MARK-MASQ", "KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY",
	}
	kubeProxyPrefixes = []string{"KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-"}
)

func kubeProxys(chain string) bool {
	return slices.Contains(kubeProxyChains, chain) ||
		slices.ContainsFunc(kubeProxyPrefixes, func(p string) bool { return strings.HasPrefix(chain, p) })
}

// KubeProxy lists the chains that kube-proxy's iptables mode left in the
// kernel. Two proxies must not be active at once (pitfall P42).
func KubeProxy(ctx context.Context) ([]Found, error) { return find(ctx, kubeProxys) }

// RemoveKubeProxy removes kube-proxy's chains and the jumps to them, and
// nothing else: what `kube-proxy --cleanup` does.
func RemoveKubeProxy(ctx context.Context) error {
	return remove(ctx, kubeProxys, "nat", "filter", "mangle")
}
