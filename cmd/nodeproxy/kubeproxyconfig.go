package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-proxy/config/v1alpha1"

	"github.com/nodeproxy/nodeproxy/source"
)

// kubeProxyConfig is a KubeProxyConfiguration as flags.
type kubeProxyConfig struct {
	set    map[string]string // flag to value
	notes  []string          // what of the file has no meaning here
	accept string            // clientConnection.acceptContentTypes
	data   []byte
}

// readKubeProxyConfig reads kube-proxy's own configuration file, unchanged. An
// unknown field is passed over and noted, as kube-proxy does.
func readKubeProxyConfig(path string) (*kubeProxyConfig, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	c, err := parseKubeProxyConfig(data)
	if err != nil {
		return nil, fmt.Errorf("--config %s: %w", path, err)
	}
	return c, nil
}

func parseKubeProxyConfig(data []byte) (*kubeProxyConfig, error) {
	in, notes, err := decodeKubeProxyConfig(data)
	if err != nil {
		return nil, err
	}
	out := &kubeProxyConfig{set: map[string]string{}, data: data, notes: notes}
	if in.Kind != "KubeProxyConfiguration" || in.APIVersion != v1alpha1.SchemeGroupVersion.String() {
		return nil, fmt.Errorf("apiVersion %q, kind %q: use %s, KubeProxyConfiguration",
			in.APIVersion, in.Kind, v1alpha1.SchemeGroupVersion)
	}
	out.client(&in)
	out.mode(&in)
	out.node(&in)
	out.conntrack(&in.Conntrack)
	out.foreign(&in)
	return out, nil
}

// text sets a flag unless the value is empty, which stands for the default.
func (c *kubeProxyConfig) text(flag, value string) {
	if value != "" {
		c.set[flag] = value
	}
}

func (c *kubeProxyConfig) duration(flag string, value metav1.Duration) {
	if value.Duration != 0 {
		c.set[flag] = value.Duration.String()
	}
}

func (c *kubeProxyConfig) number(flag string, value *int32) {
	if value != nil {
		c.set[flag] = strconv.Itoa(int(*value))
	}
}

func (c *kubeProxyConfig) yes(flag string, value bool) {
	if value {
		c.set[flag] = "true"
	}
}

func (c *kubeProxyConfig) note(given bool, text string) {
	if given {
		c.notes = append(c.notes, text)
	}
}

func (c *kubeProxyConfig) client(in *v1alpha1.KubeProxyConfiguration) {
	cc := &in.ClientConnection
	c.text("kubeconfig", cc.Kubeconfig)
	c.text("kube-api-content-type", cc.ContentType)
	c.accept = cc.AcceptContentTypes
	if cc.QPS != 0 {
		c.set["kube-api-qps"] = strconv.FormatFloat(float64(cc.QPS), 'g', -1, 32)
	}
	if cc.Burst != 0 {
		c.set["kube-api-burst"] = strconv.Itoa(int(cc.Burst))
	}
	if in.Logging.Format != "" {
		c.set["log-format"] = in.Logging.Format
	}
	if in.Logging.Verbosity != 0 {
		c.set["v"] = strconv.Itoa(int(in.Logging.Verbosity))
	}
}

// mode takes the section of the mode that the file asks for: one that is not
// nodeproxy's leaves the choice to the node.
func (c *kubeProxyConfig) mode(in *v1alpha1.KubeProxyConfiguration) {
	sync, minSync := in.IPTables.SyncPeriod, in.IPTables.MinSyncPeriod
	bit, all := in.IPTables.MasqueradeBit, in.IPTables.MasqueradeAll
	switch string(in.Mode) {
	case "":
	case modeIPTables, modeEBPF:
		c.set["mode"] = string(in.Mode)
	case "nftables":
		sync, minSync, bit, all = in.NFTables.SyncPeriod, in.NFTables.MinSyncPeriod, in.NFTables.MasqueradeBit, in.NFTables.MasqueradeAll
		// kube-proxy's nftables mode has this default.
		if len(in.NodePortAddresses) == 0 {
			c.set["nodeport-addresses"] = "primary"
		}
		c.note(true, "mode nftables (nodeproxy chooses iptables or ebpf; node ports are on primary addresses, as there)")
	default:
		sync, minSync = in.IPVS.SyncPeriod, in.IPVS.MinSyncPeriod
		c.note(true, fmt.Sprintf("mode %s (nodeproxy chooses iptables or ebpf)", in.Mode))
	}
	c.duration("sync-period", sync)
	c.duration("min-sync-period", minSync)
	c.number("iptables-masquerade-bit", bit)
	c.yes("masquerade-all", all)
	if on := in.IPTables.LocalhostNodePorts; on != nil {
		c.set["iptables-localhost-nodeports"] = strconv.FormatBool(*on)
	}
}

func (c *kubeProxyConfig) node(in *v1alpha1.KubeProxyConfiguration) {
	c.text("hostname-override", in.HostnameOverride)
	c.text("bind-address", in.BindAddress)
	c.text("healthz-bind-address", in.HealthzBindAddress)
	c.text("metrics-bind-address", in.MetricsBindAddress)
	c.yes("bind-address-hard-fail", in.BindAddressHardFail)
	c.yes("profiling", in.EnableProfiling)
	c.text("detect-local-mode", string(in.DetectLocalMode))
	c.text("pod-bridge-interface", in.DetectLocal.BridgeInterface)
	c.text("pod-interface-name-prefix", in.DetectLocal.InterfaceNamePrefix)
	c.text("cluster-cidr", in.ClusterCIDR)
	c.text("nodeport-addresses", strings.Join(in.NodePortAddresses, ","))
	c.number("oom-score-adj", in.OOMScoreAdj)
}

func (c *kubeProxyConfig) conntrack(in *v1alpha1.KubeProxyConntrackConfiguration) {
	c.number("conntrack-max-per-core", in.MaxPerCore)
	c.number("conntrack-min", in.Min)
	for flag, d := range map[string]*metav1.Duration{
		"conntrack-tcp-timeout-established": in.TCPEstablishedTimeout, "conntrack-tcp-timeout-close-wait": in.TCPCloseWaitTimeout,
	} {
		if d != nil {
			c.set[flag] = d.Duration.String()
		}
	}
	c.yes("conntrack-tcp-be-liberal", in.TCPBeLiberal)
	c.duration("conntrack-udp-timeout", in.UDPTimeout)
	c.duration("conntrack-udp-timeout-stream", in.UDPStreamTimeout)
}

// foreign notes what the file says and nodeproxy has no use for.
func (c *kubeProxyConfig) foreign(in *v1alpha1.KubeProxyConfiguration) {
	ipvs := in.IPVS
	c.note(ipvs.Scheduler != "" || len(ipvs.ExcludeCIDRs) > 0 || ipvs.StrictARP || ipvs.TCPTimeout.Duration != 0 ||
		ipvs.TCPFinTimeout.Duration != 0 || ipvs.UDPTimeout.Duration != 0, "ipvs ("+noIPVS+")")
	win := in.Winkernel
	c.note(win.NetworkName != "" || win.SourceVip != "" || win.EnableDSR || win.RootHnsEndpointName != "" || win.ForwardHealthCheckVip ||
		in.WindowsRunAsService, "winkernel (this is Linux)")
	c.note(in.PortRange != "", "portRange (kube-proxy does not use it either)")
	c.note(len(in.FeatureGates) > 0, "featureGates ("+noGates+")")
	c.note(in.ShowHiddenMetricsForVersion != "", "showHiddenMetricsForVersion (nodeproxy hides no metrics)")
	c.note(in.ConfigSyncPeriod.Duration != 0, "configSyncPeriod (nothing is cached that would have to be refreshed)")
}

// apply sets the flags. Those of nodeproxy's own that were typed stay; others
// that were typed count no more, as with kube-proxy, and are noted.
func (c *kubeProxyConfig) apply(f *pflag.FlagSet) error {
	typed := map[string]bool{}
	f.Visit(func(flag *pflag.Flag) { typed[flag.Name] = true })
	for name, value := range c.set {
		if typed[name] && (name == "hostname-override" || name == "mode" || name == "v" || name == "log-format") {
			continue
		}
		if typed[name] {
			c.note(true, "--"+name+" (--config says otherwise)")
		}
		if err := f.Set(name, value); err != nil {
			return fmt.Errorf("--config: %w", err)
		}
	}
	return nil
}

var errConfigChanged = errors.New("the configuration file has changed: ending, to be started again with what it says now")

// watchConfig returns errConfigChanged when the file says something else, and
// can be read. A file that cannot be is reported, and changes nothing.
func watchConfig(ctx context.Context, path string, before []byte, log *slog.Logger) error {
	w := source.NewFileWatcher(path, log)
	defer w.Close()
	if err := w.Add(filepath.Dir(path)); err != nil { // also sees a ConfigMap volume's links
		return fmt.Errorf("watch %s: %w", path, err)
	}
	tick := time.NewTicker(w.Period(10 * time.Second))
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.Errors:
		case <-tick.C:
		case <-w.Events:
			time.Sleep(100 * time.Millisecond) // a write may come in parts
		}
		now, err := readKubeProxyConfig(path)
		switch {
		case err != nil && err.Error() != said:
			said = err.Error()
			log.Error("configuration file cannot be used; what it said before holds", "error", err)
		case err == nil && !bytes.Equal(now.data, before):
			return errConfigChanged
		}
	}
}
