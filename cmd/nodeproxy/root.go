package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "nodeproxy",
		Short: "Kubernetes Service proxy, with iptables or eBPF",
		Long: `nodeproxy is the node agent that replaces kube-proxy: it programs the Linux
kernel so that ClusterIP, NodePort, external and load-balancer addresses of
Services lead to Pods, either with iptables chains or with eBPF programs.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.Version = versionText()
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddCommand(newRunCommand(), newCleanupCommand(), newCheckCommand(), newVersionCommand(),
		newStatusCommand(), newGetCommand(), newExplainCommand(), newVerifyCommand(), newWatchCommand(), newTopCommand(),
		newPortForwardCommand(), newProxyCommand(), newManCommand(), newCompletionCommand(), newValidateCommand(), newSupportBundleCommand(),
		newSeccompProfileCommand())
	root.AddCommand(workshop()...)
	root.CompletionOptions.DisableDefaultCmd = true
	explainUsage(root)
	completeValues(root)
	return root
}

func requireRoot(what string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s programs the kernel: run it as root (sudo nodeproxy ...)", what)
	}
	return nil
}
