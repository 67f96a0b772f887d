package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/nodeproxy/nodeproxy/admin"
)

// asking are the flags of commands that ask a running agent.
type asking struct {
	instance, output string
	pods             podSource
}

func (a *asking) register(cmd *cobra.Command) {
	registerInstance(cmd.Flags(), &a.instance)
	a.registerOutput(cmd)
}

func (a *asking) registerOutput(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&a.output, "output", "o", "", "wide, or json or yaml for scripts")
}

// print writes an answer as asked for; text writes it for people.
func (a *asking) print(w io.Writer, answer any, text func(io.Writer)) error {
	switch a.output {
	case "", "wide":
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
	return fmt.Errorf("--output %q: use wide, json or yaml", a.output)
}

func newStatusCommand() *cobra.Command {
	var a asking
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show how the running agent is",
		Example: "  nodeproxy status\n  nodeproxy status -o json | jq .lastSync",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.status(cmd)
			if err != nil {
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
	if s.Dead {
		printDeadStatus(row, s)
		return
	}
	row("agent", "nodeproxy %s, PID %d, since %s", s.Version, s.PID, s.Started.Format(time.RFC3339))
	row("node", "%s (instance %s)", s.Node, s.Instance)
	row("mode", "%s", s.Mode)
	row("source", "%s", s.Source)
	health := "well"
	if !s.Healthy {
		health = "NOT WELL: a change has been waiting for too long"
		if s.DataPath != "" {
			health = "NOT WELL: the data path is broken: " + s.DataPath
		}
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
	if b := s.Syncing; b != nil && time.Since(*b) > time.Second {
		row("syncing", "for %s", time.Since(*b).Round(time.Second))
	}
	if s.Uncounted {
		row("services", "not known yet")
	} else {
		row("services", "%d, with %d backends", s.Services, s.Backends)
	}
	printMaps(row, s)
	for _, p := range s.Problems {
		row("warning", "%s: %s: %s", p.Service, p.Reason, p.Message)
	}
}

// printDeadStatus shows what the kernel alone tells.
func printDeadStatus(row func(name, format string, args ...any), s *admin.Status) {
	row("agent", "none answers (instance %s); the kernel goes on translating what it holds", s.Instance)
	row("mode", "%s", s.Mode)
	row("services", "%d, with %d backends", s.Services, s.Backends)
	printMaps(row, s)
}

func printMaps(row func(name, format string, args ...any), s *admin.Status) {
	for _, m := range s.Maps {
		row("map "+m.Name, "%d of %d entries, %.1f MiB", m.Entries, m.Limit, float64(m.Memory)/(1<<20))
	}
}
