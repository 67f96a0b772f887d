package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
	"github.com/nodeproxy/nodeproxy/dataplane/iptables"
	"github.com/nodeproxy/nodeproxy/service"
)

// flagChoices are the values that flags take, by the name of the flag. A command with
// other values has an entry of its own, its path before the name.
var flagChoices = map[string][]string{
	"mode":                   {modeAuto, modeIPTables, modeEBPF},
	"lab mode":               {modeIPTables, modeEBPF},
	"output":                 {"wide", "json", "yaml"},
	"watch output":           {"json"},
	"check output":           {"json", "yaml"},
	"version output":         {"json", "yaml"},
	"sort":                   {"connections", "bytes", "drops", "name"},
	"log-format":             {"text", "json"},
	"iptables-backend":       {string(iptables.BackendAuto), string(iptables.BackendNFT), string(iptables.BackendLegacy)},
	"forwarding":             {string(ebpf.ForwardingAuto), string(ebpf.ForwardingFast), string(ebpf.ForwardingStack)},
	"xdp":                    {string(ebpf.XDPOff), string(ebpf.XDPNative), string(ebpf.XDPGeneric)},
	"terminate-sockets":      {string(ebpf.TerminateUDP), string(ebpf.TerminateAll), string(ebpf.TerminateNone)},
	"detect-local-mode":      {string(service.DetectClusterCIDR), string(service.DetectNodeCIDR), string(service.DetectBridgeInterface), string(service.DetectInterfaceNamePrefix)},
	"nodeport-addresses":     {"primary", "localhost", "all"},
	"kube-api-content-type":  {"application/vnd.kubernetes.protobuf", "application/json"},
	"source":                 {sourceKubernetes, filePrefix},
	"lab source":             {"file", sourceKubernetes},
	"from":                   {"node", "pod"},
	"watch from":             nil,
	"bench families":         {"4", "6"},
	"bench endpoints":        {"1", "10", "100", "1000"},
	"bench services":         {"1", "10", "100", "1000", "10000"},
	"bench control-services": {"1", "10", "100", "1000", "10000"},
}

// pathFlags take a file or a directory, which shells complete by themselves.
var pathFlags = []string{"kubeconfig", "config", "cgroup", "kube-bin", "kube-proxy", "out"}

// listed names flags that take several values with commas between them.
func listed(f *pflag.Flag) bool {
	return strings.HasSuffix(f.Value.Type(), "Slice")
}

// completeValues has the shell complete the values of all flags below a command: those
// that there are, files for a path, and nothing, in place of the names of files, for a
// text that only the user knows.
func completeValues(root *cobra.Command) {
	var each func(*cobra.Command)
	each = func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if _, has := c.GetFlagCompletionFunc(f.Name); has || slices.Contains(pathFlags, f.Name) {
				return
			}
			if err := c.RegisterFlagCompletionFunc(f.Name, completeFlag(c, f)); err != nil {
				panic(err) // the flag is there
			}
		})
		if c.ValidArgsFunction == nil && !takesFiles(c) {
			c.ValidArgsFunction = cobra.NoFileCompletions
		}
		for _, sub := range c.Commands() {
			each(sub)
		}
	}
	each(root)
}

// takesFiles reports whether the arguments of a command are files or directories.
func takesFiles(c *cobra.Command) bool {
	return slices.Contains([]string{"man", "validate", "report"}, c.Name())
}

// completeFlag returns what completes a flag of a command.
func completeFlag(c *cobra.Command, f *pflag.Flag) completion {
	switch {
	case f.Name == "instance":
		return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return admin.Answering(), cobra.ShellCompDirectiveNoFileComp
		}
	case f.Name == "name" && strings.HasPrefix(c.CommandPath(), "nodeproxy lab "):
		return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return labNames(), cobra.ShellCompDirectiveNoFileComp
		}
	}
	values := choicesOf(c, f.Name)
	if len(values) == 0 {
		return cobra.NoFileCompletions
	}
	return func(_ *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
		directive := cobra.ShellCompDirectiveNoFileComp
		before := ""
		if at := strings.LastIndexByte(begun, ','); listed(f) && at >= 0 {
			before = begun[:at+1]
		}
		var out []string
		for _, v := range values {
			if v == filePrefix { // a path follows
				directive |= cobra.ShellCompDirectiveNoSpace
			}
			if strings.HasPrefix(before+v, begun) {
				out = append(out, before+v)
			}
		}
		return out, directive
	}
}

// choicesOf returns the values of a flag of a command.
func choicesOf(c *cobra.Command, flag string) []string {
	for _, word := range strings.Fields(c.CommandPath())[1:] {
		if values, ok := benchValues(flag); ok && word == "bench" {
			return values
		}
		if values, ok := flagChoices[word+" "+flag]; ok {
			return values
		}
	}
	return flagChoices[flag]
}
