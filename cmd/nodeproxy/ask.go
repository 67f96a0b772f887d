package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/service"
)

// asking are the flags of commands that ask a running agent.
type asking struct{ instance, output string }

func (a *asking) register(cmd *cobra.Command) {
	registerInstance(cmd.Flags(), &a.instance)
	cmd.Flags().StringVarP(&a.output, "output", "o", "", "json or yaml, for scripts")
}

// print writes an answer as asked for; text writes it for people.
func (a *asking) print(w io.Writer, answer any, text func(io.Writer)) error {
	switch a.output {
	case "":
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		text(tw)
		return tw.Flush()
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(answer)
	case "yaml":
		data, err := yaml.Marshal(answer)
		if err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	}
	return fmt.Errorf("--output %q: use json or yaml", a.output)
}

func newStatusCommand() *cobra.Command {
	var a asking
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show how the running agent is",
		Example: "  nodeproxy status\n  nodeproxy status -o json | jq .lastSync",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s admin.Status
			if err := admin.Get(cmd.Context(), admin.Socket(a.instance), "/v1/status", nil, &s); err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), s, func(w io.Writer) { printStatus(w, &s) })
		},
	}
	a.register(cmd)
	return cmd
}

func printStatus(w io.Writer, s *admin.Status) {
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("agent", "nodeproxy %s, PID %d, since %s", s.Version, s.PID, s.Started.Format(time.RFC3339))
	row("node", "%s (instance %s)", s.Node, s.Instance)
	row("mode", "%s", s.Mode)
	row("source", "%s", s.Source)
	health := "well"
	if !s.Healthy {
		health = "NOT WELL: a change has been waiting for too long"
	}
	if !s.Eligible {
		health += "; load balancers are told to go elsewhere: the Node is unknown, being deleted or tainted"
	}
	row("health", "%s", health)
	if l := s.LastSync; l != nil {
		row("last sync", "%s, %s ago, took %s", l.Kind, time.Since(l.At).Round(time.Second), l.Duration.Round(time.Microsecond))
		if l.Error != "" {
			row("error", "%s", l.Error)
		}
	} else {
		row("last sync", "none yet")
	}
	row("services", "%d, with %d backends", s.Services, s.Backends)
	for _, m := range s.Maps {
		row("map "+m.Name, "%d of %d entries, %.1f MiB", m.Entries, m.Limit, float64(m.Memory)/(1<<20))
	}
	for _, p := range s.Problems {
		row("warning", "%s: %s: %s", p.Service, p.Reason, p.Message)
	}
}

func newGetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get",
		Short: "Show what the running agent translates on this node",
	}
	cmd.AddCommand(newGetServicesCommand(), newGetBackendsCommand())
	return cmd
}

func newGetServicesCommand() *cobra.Command {
	var a asking
	cmd := &cobra.Command{
		Use:     "services",
		Aliases: []string{"service", "svc"},
		Short:   "Show the frontends of Services, and what becomes of packets there",
		Example: "  nodeproxy get services\n  nodeproxy get services -o yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var rows []admin.Frontend
			if err := admin.Get(cmd.Context(), admin.Socket(a.instance), "/v1/services", nil, &rows); err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), rows, func(w io.Writer) {
				fmt.Fprintln(w, "SERVICE\tPROTOCOL\tKIND\tADDRESS\tPORT\tFROM PODS\tFROM THIS NODE\tFROM OUTSIDE")
				for _, r := range rows {
					address := r.Address
					if address == "" {
						address = "(" + r.Family + ")"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", r.Service, r.Protocol, r.Kind, address, r.Port, r.Pod, r.Node, r.Outside)
				}
			})
		},
	}
	a.register(cmd)
	return cmd
}

func newGetBackendsCommand() *cobra.Command {
	var a asking
	cmd := &cobra.Command{
		Use:     "backends",
		Aliases: []string{"backend", "endpoints"},
		Short:   "Show the backends that flows are led to",
		Example: "  nodeproxy get backends",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var rows []admin.Backend
			if err := admin.Get(cmd.Context(), admin.Socket(a.instance), "/v1/backends", nil, &rows); err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), rows, func(w io.Writer) {
				fmt.Fprintln(w, "SERVICE\tPROTOCOL\tADDRESS\tWEIGHT\tON THIS NODE\tLIST")
				for _, r := range rows {
					fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%v\t%s\n", r.Service, r.Protocol, r.Address, r.Weight, r.Local, r.List)
				}
			})
		},
	}
	a.register(cmd)
	return cmd
}

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
