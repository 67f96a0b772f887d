package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/controlplane"
)

// creators is how many objects are created at a time.
const creators = 32

// startAPI starts a real API server in the lab and creates all objects there.
func (s *site) startAPI(ctx context.Context, all []any) (err error) {
	if s.api, err = controlplane.Start(ctx, s.Lab, s.env.KubeBin); err != nil {
		return err
	}
	cidr := networkingv1.ServiceCIDR{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "ServiceCIDR"},
		ObjectMeta: metav1.ObjectMeta{Name: "bench"},
		Spec:       networkingv1.ServiceCIDRSpec{CIDRs: serviceCIDRs},
	}
	if err := s.api.Apply("range", cidr); err != nil {
		return err
	}
	if err := s.api.Apply("nodes", lab.NodeObjects()...); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan any)
	var wg sync.WaitGroup
	for range creators {
		wg.Go(func() {
			for object := range queue {
				if err := s.create(ctx, object); err != nil {
					cancel(err)
				}
			}
		})
	}
	for _, object := range all {
		if ctx.Err() != nil {
			break
		}
		queue <- object
	}
	close(queue)
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !isKubeProxy(s.column) {
		s.SetStore(s.api)
		return nil
	}
	return s.writeKubeProxyFiles()
}

func (s *site) create(ctx context.Context, object any) (err error) {
	name := ""
	switch o := object.(type) {
	case *corev1.Service:
		name = o.Name
		_, err = s.api.Client.CoreV1().Services(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
	case *discoveryv1.EndpointSlice:
		name = o.Name
		_, err = s.api.Client.DiscoveryV1().EndpointSlices(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
	default:
		err = errors.New("no such kind here")
	}
	if err != nil {
		return fmt.Errorf("create %T %s: %w", object, name, err)
	}
	return nil
}

// pauseAPI stops or continues the control plane, which would disturb what is
// measured in the data path; what kube-proxy wrote stays as it is.
func (s *site) pauseAPI(pause bool) error {
	if s.api == nil {
		return nil
	}
	sig := syscall.SIGCONT
	if pause {
		sig = syscall.SIGSTOP
	}
	for _, name := range []string{"etcd", "kube-apiserver"} {
		p, err := s.Process(name)
		if err != nil {
			return err
		}
		if err := syscall.Kill(p.PID, sig); err != nil {
			return fmt.Errorf("send %v to %s: %w", sig, name, err)
		}
	}
	return nil
}

// writeKubeProxyFiles writes its configuration, and a directory in which
// "iptables" is the legacy back end: with iptables-nft, kube-proxy does not get
// to the end of a full sync of 10,000 Services within five minutes.
func (s *site) writeKubeProxyFiles() error {
	mode := "iptables"
	if s.column == KubeProxyNFTables {
		mode = "nftables"
	}
	config := fmt.Appendf(nil, `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %s, qps: 100, burst: 100}
clusterCIDR: %s
mode: %s
iptables: {minSyncPeriod: %s, syncPeriod: 1h}
nftables: {minSyncPeriod: %[4]s, syncPeriod: 1h}
conntrack: {maxPerCore: 0}
oomScoreAdj: 0
`, s.api.AdminKubeconfig(), clusterCIDRs(), mode, minSync)
	if err := os.WriteFile(s.kubeProxyPath("config.conf"), config, 0o600); err != nil {
		return fmt.Errorf("write configuration of kube-proxy: %w", err)
	}
	dir := s.kubeProxyPath("legacy")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("make directory of legacy iptables: %w", err)
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			program, err := exec.LookPath(family + "-legacy" + suffix)
			if err == nil {
				err = os.Symlink(program, filepath.Join(dir, family+suffix))
			}
			if err != nil {
				return fmt.Errorf("make %s%s the legacy one: %w", family, suffix, err)
			}
		}
	}
	return nil
}

func (s *site) kubeProxyPath(name string) string {
	return filepath.Join(s.StateDir(), "kube-proxy-"+name)
}

func (s *site) kubeProxyArgv(node string) []string {
	argv := []string{s.env.KubeProxy, "--config", s.kubeProxyPath("config.conf"), "--hostname-override", node}
	if s.column == KubeProxyIPTables {
		argv = append([]string{"env", "PATH=" + s.kubeProxyPath("legacy") + ":" + os.Getenv("PATH")}, argv...)
	}
	return argv
}

func (s *site) startKubeProxy(node string) error {
	_, err := s.Start(node, s.agentProcess(node), s.kubeProxyArgv(node)...)
	return err
}

// findRanks learns where the rules of used Services stand in the list that a
// first packet is compared with. kube-proxy writes it in no order.
func (s *site) findRanks(ctx context.Context) error {
	if s.column != KubeProxyIPTables {
		return nil
	}
	out, err := s.Command(ctx, "node-a", "iptables-legacy", "-t", "nat", "-S", "KUBE-SERVICES").Output()
	if err != nil {
		return fmt.Errorf("read the rules of kube-proxy: %w", err)
	}
	s.ranks = map[used]float64{}
	for _, u := range usedBy(s.group) {
		s.ranks[u] = rank(string(out), u.clusterIP(4).String())
	}
	return nil
}

// rank is the place, 0 to 1, of the first rule that names an address.
func rank(rules, addr string) float64 {
	lines := strings.Split(strings.TrimSpace(rules), "\n")
	for i, line := range lines {
		if strings.Contains(line, addr+"/32") {
			return float64(i) / float64(len(lines))
		}
	}
	return 1
}
