package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
)

// feature is one line of nodeproxy check, as scripts read it.
type feature struct {
	Name     string `json:"name"`
	Present  bool   `json:"present"`
	Required bool   `json:"required"`
	Fallback string `json:"fallback,omitempty"`
	Error    string `json:"error,omitempty"`
}

var errNotReady = errors.New("ebpf mode lacks what it needs here: use --mode iptables, as auto does")

func newCheckCommand() *cobra.Command {
	var output, cgroup string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check whether this kernel supports ebpf mode",
		Long: `Check whether this kernel has everything that ebpf mode uses, and say what will be used,
what stands in for what is missing, and what is missing for good; which mode
--mode auto takes, and which way packets with --forwarding auto, because of which
chains of other programs. The exit status is 0 if ebpf mode works here.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := requireRoot("nodeproxy check"); err != nil {
				return err
			}
			return check(cmd.Context(), cmd.OutOrStdout(), cgroup, output)
		},
	}
	cmd.Flags().StringVar(&cgroup, "cgroup", "", "cgroup v2 directory that the agent is to be given (default: the root)")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json or yaml, for scripts")
	return cmd
}

func check(ctx context.Context, w io.Writer, cgroup, output string) error {
	var features []feature
	ready := true
	probed := append(ebpf.Probe(), ebpf.ProbeCgroup(cgroup))
	for _, f := range probed {
		features = append(features, featureOf(f))
		ready = ready && (f.Present || !f.Required)
	}
	way, err := ebpf.ProbeWay(ctx, ebpf.ForwardingAuto)
	if err != nil {
		return fmt.Errorf("which way packets take: %w", err)
	}
	if output != "" {
		features = append(features, featureOfWay(way))
	}
	if err := printFeatures(w, output, features); err != nil {
		return err
	}
	if mode, why := chooseMode(probed); output == "" && why == "" {
		fmt.Fprintf(w, "mode auto: %s\n", mode)
	} else if output == "" {
		fmt.Fprintf(w, "mode auto: %s, since %s\n", mode, why)
	}
	if !ready {
		return errNotReady
	}
	if output == "" {
		fmt.Fprintf(w, "forwarding auto: %s\n", way)
	}
	return nil
}

// featureOfWay tells scripts of the fast way.
func featureOfWay(way ebpf.Way) feature {
	f := feature{Name: "fast way (--forwarding auto)", Present: way.Forwarding == ebpf.ForwardingFast}
	if !f.Present {
		f.Fallback = way.String()
	}
	return f
}

func featureOf(f ebpf.Feature) feature {
	one := feature{Name: f.Name, Present: f.Present, Required: f.Required, Fallback: f.Fallback}
	if f.Err != nil {
		one.Error = f.Err.Error()
	}
	return one
}

func printFeatures(w io.Writer, output string, features []feature) error {
	var data []byte
	var err error
	switch output {
	case "json":
		data, err = json.MarshalIndent(features, "", "  ")
		data = append(data, '\n')
	case "yaml":
		data, err = yaml.Marshal(features)
	case "":
		return featureTable(w, features)
	default:
		return fmt.Errorf("--output %q: use json or yaml", output)
	}
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

func featureTable(w io.Writer, features []feature) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range features {
		state := "yes"
		switch {
		case f.Present:
		case f.Required:
			state = "MISSING, and needed: " + f.Error
		default:
			state = "no; instead: " + f.Fallback
		}
		fmt.Fprintf(tw, "%s\t%s\n", f.Name, state)
	}
	return tw.Flush()
}
