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

// RetireKubeProxy removes the chains by which kube-proxy decides on new flows,
// for when eBPF mode has taken over. KUBE-FORWARD stays: conntrack goes on with
// flows that are open for as long as some rule asks for it, and that one lets
// them pass.
func RetireKubeProxy(ctx context.Context) error {
	decides := func(chain string) bool { return kubeProxys(chain) && chain != "KUBE-FORWARD" }
	return remove(ctx, decides, "nat", "filter", "mangle")
}

// RemoveKubeProxy removes kube-proxy's chains and the jumps to them, and
// nothing else: what `kube-proxy --cleanup` does.
func RemoveKubeProxy(ctx context.Context) error {
	return remove(ctx, kubeProxys, "nat", "filter", "mangle")
}
