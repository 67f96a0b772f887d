package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
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
	cmd.PreRunE = func(*cobra.Command, []string) error {
		return errors.Join(validateInstance(a.instance), a.checkOutput())
	}
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

// checkOutput refuses an output that there is not, before anything is asked.
func (a *asking) checkOutput() error {
	switch a.output {
	case "", "wide", "json", "yaml":
		return nil
	}
	return fmt.Errorf("--output %q: use wide, json or yaml", a.output)
}

func newStatusCommand() *cobra.Command {
	var a asking
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the agent's status",
		Long: `Show the agent's status.

The exit code is 0 if the node is ready: the kernel holds what the source said, and
probes of the data path pass; 1 if it is not; and 3 if no agent answers.`,
		Example: "  nodeproxy status\n  nodeproxy status --wait 60s\n  nodeproxy status -o json | jq .conditions",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if wait < 0 {
				return fmt.Errorf("--wait %v: use 0 or more, such as 60s", wait)
			}
			s, err := a.waitForReady(cmd, wait)
			if err != nil {
				return withCode(codeNoAgent, err)
			}
			if err := a.print(cmd.OutOrStdout(), s, func(w io.Writer) { printStatus(w, &s) }); err != nil {
				return err
			}
			return statusCode(&s)
		},
	}
	a.register(cmd)
	cmd.Flags().DurationVar(&wait, "wait", 0, "how long to wait until the node is ready")
	return cmd
}

// statusPoll is how often a status is asked for while one is waited for.
const statusPoll = 200 * time.Millisecond

// waitForReady returns the status once the node is ready, or after some time.
func (a *asking) waitForReady(cmd *cobra.Command, patience time.Duration) (admin.Status, error) {
	for deadline := time.Now().Add(patience); ; {
		s, err := a.status(cmd)
		if err == nil && !s.Dead && s.Condition(admin.Ready).Status == "True" || !time.Now().Add(statusPoll).Before(deadline) {
			return s, err
		}
		select {
		case <-cmd.Context().Done():
			return s, cmd.Context().Err()
		case <-time.After(statusPoll):
		}
	}
}

// statusCode is the exit code that a status stands for.
func statusCode(s *admin.Status) error {
	switch {
	case s.Dead:
		return withCode(codeNoAgent, nil)
	case s.Condition(admin.Ready).Status != "True":
		return withCode(codeNo, nil)
	}
	return nil
}

func printStatus(w io.Writer, s *admin.Status) {
	row := func(name, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	if s.Dead {
		printDeadStatus(row, s)
		return
	}
	row("agent", "nodeproxy %s, PID %d, since %s", s.Version, s.PID, s.Started.Format(time.RFC3339))
	row("node", "%s (instance %s)", s.Node, s.Instance)
	mode := s.Mode
	if s.ModeReason != "" {
		mode += ", chosen by auto: " + s.ModeReason
	}
	row("mode", "%s", mode)
	if s.Forwarding != "" {
		row("forwarding", "%s", s.Forwarding)
	}
	if s.CannotEnd != "" {
		row("sockets", "those in Pods are NOT ended when their backend is gone: %s", s.CannotEnd)
	}
	row("source", "%s", s.Source)
	health := "healthy"
	if ready := s.Condition(admin.Ready); ready.Status != "True" {
		health = fmt.Sprintf("UNHEALTHY: %s: %s", ready.Reason, ready.Message)
	}
	if !s.Eligible {
		health += "; load balancers are told to go elsewhere: the Node is unknown, being deleted or tainted"
	}
	row("health", "%s", health)
	for _, c := range s.Conditions[min(1, len(s.Conditions)):] {
		if c.Status != "True" {
			row("condition", "%s is %s: %s: %s", c.Type, strings.ToLower(c.Status), c.Reason, c.Message)
		}
	}
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
	for _, text := range s.Ignored {
		row("ignored", "%s", text)
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
