package main

import (
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/service"
)

func newExplainCommand() *cobra.Command {
	var a asking
	var from, iface string
	cmd := &cobra.Command{
		Use:   "explain TO:PORT[/PROTOCOL]",
		Short: "Tell what would become of a packet on this node, and why",
		Long: `Tell what would become of the first packet of a flow on this node, and why, from what
the running agent makes of the Services: step by step, in the same words in every mode.`,
		Example: `  nodeproxy explain 10.96.0.10:80
  nodeproxy explain --from 10.244.1.7 10.96.0.10:53/UDP
  nodeproxy explain --from 203.0.113.5 192.168.77.11:30080 -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := question(from, args[0], iface)
			if err != nil {
				return err
			}
			var e admin.Explanation
			if err := admin.Get(cmd.Context(), admin.Socket(a.instance), "/v1/explain", q.Values(), &e); err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), e, func(w io.Writer) { fmt.Fprintln(w, strings.Join(e.Steps, "\n")) })
		},
	}
	a.register(cmd)
	cmd.Flags().StringVar(&from, "from", "node", "address that the packet comes from, or node for this node itself")
	cmd.Flags().StringVar(&iface, "interface", "", "interface that it comes by, where Pods are told by interfaces")
	return cmd
}

// question reads what explain is asked.
func question(from, to, iface string) (admin.Question, error) {
	target, protocol, ok := strings.Cut(to, "/")
	if !ok {
		protocol = service.TCP.String()
	}
	q := admin.Question{Interface: iface}
	if from != "node" {
		a, err := netip.ParseAddr(from)
		if err != nil {
			return q, fmt.Errorf("--from %q: use an IP address, or node", from)
		}
		q.From = a
	}
	values := q.Values()
	values.Set("to", target)
	values.Set("protocol", strings.ToUpper(protocol))
	return admin.ParseQuestion(values)
}
