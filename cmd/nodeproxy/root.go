package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "nodeproxy",
		Short: "Lead the addresses of Kubernetes Services to Pods, with iptables or eBPF",
		Long: `nodeproxy is the node agent that replaces kube-proxy: it programs the Linux
kernel so that ClusterIP, NodePort, external and load-balancer addresses of
Services lead to Pods, either with iptables chains or with eBPF programs.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.Version = versionText()
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddCommand(newRunCommand(), newCleanupCommand(), newCheckCommand(), newLabCommand(), newVersionCommand(),
		newStatusCommand(), newGetCommand(), newExplainCommand(), newVerifyCommand(), newWatchCommand(), newTopCommand(),
		newPortForwardCommand(), newProxyCommand(), newManCommand(), newBenchCommand(), newCompletionCommand(), newValidateCommand())
	root.CompletionOptions.DisableDefaultCmd = true
	explainUsage(root)
	completeValues(root)
	return root
}

func newVersionCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  nodeproxy version\n  nodeproxy version -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a := asking{output: output}
			v := versions{versionNumber(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			return a.print(cmd.OutOrStdout(), v, func(w io.Writer) { fmt.Fprintln(w, versionText()) })
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json or yaml, for scripts")
	return cmd
}

// versions are what nodeproxy version prints for scripts.
type versions struct {
	Version   string `json:"version"`
	GoVersion string `json:"goVersion"`
	Platform  string `json:"platform"`
}

// version is set by release builds: -ldflags "-X main.version=v1.2.3".
var version = ""

func versionText() string {
	return fmt.Sprintf("nodeproxy %s (%s)", versionNumber(), runtime.Version())
}

// versionNumber is that of the release, or what the build knows of itself.
func versionNumber() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "" {
		return info.Main.Version
	}
	return version
}

func requireRoot(what string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s programs the kernel: run it as root (sudo nodeproxy ...)", what)
	}
	return nil
}
