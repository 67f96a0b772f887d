package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/nodeproxy/nodeproxy/dataplane/iptables"
)

// kubeProxyOptions are flags that kube-proxy has and nodeproxy took over, in
// so far as no other place knows them.
type kubeProxyOptions struct {
	config              string // path of a KubeProxyConfiguration
	bindAddress         string
	bindAddressHardFail bool
	healthzBindAddress  string
	metricsBindAddress  string
	profiling           bool
	conntrack           conntrackOptions
	oomScoreAdj         int
	cleanup, initOnly   bool
}

func (o *kubeProxyOptions) register(f *pflag.FlagSet) {
	f.StringVar(&o.config, "config", "", "kube-proxy's configuration file (KubeProxyConfiguration); what it says takes the place of kube-proxy's flags, except --hostname-override and --mode")
	f.StringVar(&o.bindAddress, "bind-address", "0.0.0.0", "primary address of this node, as --node-ip; nothing is bound to it")
	f.BoolVar(&o.bindAddressHardFail, "bind-address-hard-fail", false, "end if the address for health checks or metrics cannot be bound")
	f.StringVar(&o.healthzBindAddress, "healthz-bind-address", "0.0.0.0:10256", "address and port (default 10256) of /healthz and /livez; empty for none")
	f.StringVar(&o.metricsBindAddress, "metrics-bind-address", "127.0.0.1:10249", "address and port (default 10249) of /metrics, /proxyMode and /configz; empty for none")
	f.BoolVar(&o.profiling, "profiling", false, "serve /debug/pprof beside /metrics")
	o.conntrack.register(f)
	f.IntVar(&o.oomScoreAdj, "oom-score-adj", -999, "how readily the kernel kills this process when memory is short, -1000 to 1000")
	f.BoolVar(&o.cleanup, "cleanup", false, "remove what nodeproxy and kube-proxy made in the kernel, and end")
	f.BoolVar(&o.initOnly, "init-only", false, "set the conntrack sysctls, and end")
	for name, why := range ignoredFlags {
		flag := f.VarPF(&ignoredValue{}, name, "", "accepted for kube-proxy's sake: "+why)
		if slices.Contains(ignoredSwitches, name) {
			flag.NoOptDefVal = "true"
		}
		flag.Hidden = true
	}
}

// kube-proxy's ports, where an address to serve on names none.
const (
	healthzPort = 10256
	metricsPort = 10249
)

// complete fills in what an operator may leave out, as kube-proxy does.
func (o *kubeProxyOptions) complete() {
	o.healthzBindAddress = withPort(o.healthzBindAddress, healthzPort)
	o.metricsBindAddress = withPort(o.metricsBindAddress, metricsPort)
}

// validate returns what the user has to fix first.
func (o *kubeProxyOptions) validate() error {
	if o.oomScoreAdj < -1000 || o.oomScoreAdj > 1000 {
		return fmt.Errorf("--oom-score-adj %d: use -1000 to 1000", o.oomScoreAdj)
	}
	for name, value := range map[string]string{
		"--healthz-bind-address": o.healthzBindAddress, "--metrics-bind-address": o.metricsBindAddress,
	} {
		if err := checkBindAddress(value); err != nil {
			return fmt.Errorf("%s %q: %w", name, value, err)
		}
	}
	return nil
}

const (
	noIPVS  = "IPVS is no mode of nodeproxy"
	noGates = "nodeproxy has no such gates"
)

// ignoredFlags are kube-proxy's flags that have no meaning here, with the
// reason in words.
var ignoredFlags = map[string]string{
	"ipvs-sync-period": noIPVS, "ipvs-min-sync-period": noIPVS, "ipvs-scheduler": noIPVS, "ipvs-exclude-cidrs": noIPVS,
	"ipvs-strict-arp": noIPVS, "ipvs-tcp-timeout": noIPVS, "ipvs-tcpfin-timeout": noIPVS, "ipvs-udp-timeout": noIPVS,
	"feature-gates": noGates, "show-hidden-metrics-for-version": "nodeproxy hides no metrics",
	"config-sync-period":  "nothing is cached that would have to be refreshed",
	"write-config-to":     "flags and files have the defaults that --help shows",
	"healthz-port":        "use --healthz-bind-address",
	"metrics-port":        "use --metrics-bind-address",
	"log-flush-frequency": "log lines are written at once",
	"vmodule":             "use -v",
}

// ignoredSwitches are those of ignoredFlags that need no value.
var ignoredSwitches = []string{"ipvs-strict-arp"}

// ignoredValue takes any value of a flag.
type ignoredValue struct{ text string }

func (v *ignoredValue) String() string     { return v.text }
func (v *ignoredValue) Set(s string) error { v.text = s; return nil }
func (v *ignoredValue) Type() string       { return "string" }

// ignored lists the flags that were given and have no meaning here.
func ignored(f *pflag.FlagSet) []string {
	var out []string
	f.Visit(func(flag *pflag.Flag) {
		if why, ok := ignoredFlags[flag.Name]; ok {
			out = append(out, "--"+flag.Name+" ("+why+")")
		}
	})
	return out
}

// aliases are other names of flags, kube-proxy's for the most part.
var aliases = map[string]string{
	"node-name":                "hostname-override",
	"proxy-mode":               "mode",
	"iptables-sync-period":     "sync-period",
	"iptables-min-sync-period": "min-sync-period",
	"logging-format":           "log-format",
}

// conntrackOptions are the sysctls that kube-proxy sets. Zero leaves one alone.
type conntrackOptions struct {
	maxPerCore, min              int
	tcpEstablished, tcpCloseWait time.Duration
	tcpBeLiberal                 bool
	udp, udpStream               time.Duration
}

func (o *conntrackOptions) register(f *pflag.FlagSet) {
	f.IntVar(&o.maxPerCore, "conntrack-max-per-core", 32768, "connections that conntrack has room for, per CPU; 0 leaves that and --conntrack-min alone")
	f.IntVar(&o.min, "conntrack-min", 131072, "connections that conntrack has room for at least")
	f.DurationVar(&o.tcpEstablished, "conntrack-tcp-timeout-established", 24*time.Hour, "idle timeout of established TCP connections; 0 leaves it alone")
	f.DurationVar(&o.tcpCloseWait, "conntrack-tcp-timeout-close-wait", time.Hour, "timeout of TCP connections in CLOSE_WAIT; 0 leaves it alone")
	f.BoolVar(&o.tcpBeLiberal, "conntrack-tcp-be-liberal", false, "do not call TCP packets outside of the window invalid")
	f.DurationVar(&o.udp, "conntrack-udp-timeout", 0, "timeout of unanswered UDP flows; 0 leaves it alone")
	f.DurationVar(&o.udpStream, "conntrack-udp-timeout-stream", 0, "timeout of answered UDP flows; 0 leaves it alone")
}

// joined is one line for the log.
func joined(list []string) string {
	slices.Sort(list)
	return strings.Join(list, "; ")
}

// takeConfig reads --config, if it was given, into the flags.
func (o *runOptions) takeConfig() (*kubeProxyConfig, error) {
	if o.kubeProxy.config == "" {
		return &kubeProxyConfig{}, nil
	}
	c, err := readKubeProxyConfig(o.kubeProxy.config)
	if err != nil {
		return nil, err
	}
	o.client.AcceptContentTypes = c.accept
	return c, c.apply(o.flags)
}

// onlyThis does what --cleanup and --init-only ask for, and reports whether
// that was all.
func (o *runOptions) onlyThis(ctx context.Context, log *slog.Logger) (bool, error) {
	switch {
	case o.kubeProxy.cleanup:
		return true, errors.Join(cleanUp(ctx, os.Stdout, o.instance), iptables.RemoveKubeProxy(ctx))
	case o.kubeProxy.initOnly:
		if err := requireRoot("nodeproxy run --init-only"); err != nil {
			return true, err
		}
		o.kubeProxy.conntrack.set(conntrackSysctls, log)
		return true, nil
	}
	return false, nil
}

// prepareProcess sets what kube-proxy sets for itself at the start. It reports
// whether conntrack is not there yet.
func (o *runOptions) prepareProcess(log *slog.Logger) (noConntrack bool) {
	if err := setOOMScore(o.kubeProxy.oomScoreAdj); err != nil {
		log.Debug("the kernel may end this process when memory is short", "error", err)
	}
	// In ebpf mode too: what else a node forwards lives by them.
	return o.kubeProxy.conntrack.set(conntrackSysctls, log)
}
