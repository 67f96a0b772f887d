package main

import (
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/dataplane/view"
)

// completion completes an argument of a command.
type completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// known asks the agent for the frontends that there are; none if it does not
// answer, for a shell has no use for an error.
func known(cmd *cobra.Command, instance string) []view.Frontend {
	var rows []view.Frontend
	if admin.Get(cmd.Context(), admin.Socket(instance), admin.PathServices, nil, &rows) != nil {
		return nil
	}
	return rows
}

// completeFrontends offers the addresses and ports of Services.
func completeFrontends(instance *string) completion {
	return func(cmd *cobra.Command, _ []string, begun string) (out []string, _ cobra.ShellCompDirective) {
		for _, r := range known(cmd, *instance) {
			addr, err := netip.ParseAddr(r.Address)
			if err != nil {
				continue // a node port: any address of the node
			}
			text := netip.AddrPortFrom(addr, r.Port).String() + "/" + r.Protocol
			if strings.HasPrefix(text, begun) {
				out = append(out, text+"\t"+r.Service)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeServices offers Services as NAMESPACE/NAME.
func completeServices(instance *string) completion {
	return func(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
		return servicesOf(known(cmd, *instance), func(namespace, name string) (string, bool) {
			text := namespace + "/" + name
			return text, strings.HasPrefix(text, begun)
		}), cobra.ShellCompDirectiveNoFileComp
	}
}

// servicesOf names each Service once, as write says.
func servicesOf(rows []view.Frontend, write func(namespace, name string) (string, bool)) (out []string) {
	seen := map[string]bool{}
	for _, r := range rows {
		port, _, _ := strings.Cut(r.Service, ":")
		namespace, name, _ := strings.Cut(port, "/")
		if text, ok := write(namespace, name); ok && !seen[text] {
			seen[text] = true
			out = append(out, text)
		}
	}
	return out
}

// completeTargets offers what port-forward leads to, in the namespace that its
// flag says.
func completeTargets(instance, namespace *string) completion {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		rows := known(cmd, *instance)
		if len(args) == 0 {
			return servicesOf(rows, func(ns, name string) (string, bool) {
				text := "svc/" + name
				return text, ns == *namespace && strings.HasPrefix(text, begun)
			}), cobra.ShellCompDirectiveNoFileComp
		}
		var ports []string
		seen := map[uint16]bool{}
		for _, r := range rows {
			port, _, _ := strings.Cut(r.Service, ":")
			if "svc/"+strings.TrimPrefix(port, *namespace+"/") == args[0] && r.Kind == "ClusterIP" && !seen[r.Port] {
				seen[r.Port] = true
				ports = append(ports, fmt.Sprint(r.Port))
			}
		}
		return ports, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeNamespaces offers the namespaces that have Services.
func completeNamespaces(instance *string) completion {
	return func(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
		return servicesOf(known(cmd, *instance), func(namespace, _ string) (string, bool) {
			return namespace, strings.HasPrefix(namespace, begun)
		}), cobra.ShellCompDirectiveNoFileComp
	}
}

// newCompletionCommand prints what a shell needs to complete our command lines.
func newCompletionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "completion",
		Short:   "Print a completion script for a shell",
		Example: "  source <(nodeproxy completion bash)",
	}
	for shell, write := range map[string]func(*cobra.Command, io.Writer) error{
		"bash":       func(root *cobra.Command, w io.Writer) error { return root.GenBashCompletionV2(w, true) },
		"zsh":        (*cobra.Command).GenZshCompletion,
		"fish":       func(root *cobra.Command, w io.Writer) error { return root.GenFishCompletion(w, true) },
		"powershell": (*cobra.Command).GenPowerShellCompletionWithDesc,
	} {
		cmd.AddCommand(&cobra.Command{
			Use: shell, Short: "Print the completion script for " + shell, Args: cobra.NoArgs,
			Example: "  nodeproxy completion " + shell,
			RunE:    func(c *cobra.Command, _ []string) error { return write(c.Root(), c.OutOrStdout()) },
		})
	}
	return cmd
}
