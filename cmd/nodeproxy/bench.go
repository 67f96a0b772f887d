//go:build !agent

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nodeproxy/nodeproxy/bench"
	"github.com/nodeproxy/nodeproxy/bench/load"
)

// benchFlags are what the user may say; of what is not said, the preset decides.
type benchFlags struct {
	quick, full, check, resume, iperf2        bool
	out                                       string
	columns, paths, positions, works, control []string
	services, endpoints, families             []int
	controlServices                           []int
	opts                                      bench.Options
	env                                       bench.Environment
}

func newBenchCommand() *cobra.Command {
	var b benchFlags
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure what Services cost in each mode, beside a lab without any",
		Long: `Measure what Services cost in each mode, beside a lab without any.

Builds labs that differ only in who translates, does the same work through all of
them in turns, and writes a result file, a page with charts and tables. ^C ends
it early with what there is; --resume goes on. Needs root.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return b.run(cmd) },
	}
	b.register(cmd.Flags())
	cmd.AddCommand(newBenchReportCommand(), newBenchLoadCommand(), newBenchProbeCommand(), newBenchServeCommand())
	return cmd
}

func (b *benchFlags) register(f *pflag.FlagSet) {
	f.BoolVar(&b.quick, "quick", false, "a small set, in under three minutes")
	f.BoolVar(&b.full, "full", false, "all combinations, which takes hours")
	f.BoolVar(&b.check, "check", false, "compare with the committed floors, and fail if a ratio is below")
	f.BoolVar(&b.resume, "resume", false, "go on with the newest run in --out")
	f.StringVar(&b.out, "out", "bench-results", "directory of result files and reports")
	f.StringSliceVar(&b.columns, "columns", nil, "what to compare: bare, iptables-nft, iptables-legacy, ebpf, ebpf-packets, ebpf-stack, ebpf-before, ebpf-packets-before, kube-proxy-iptables, kube-proxy-nftables")
	f.IntSliceVar(&b.services, "services", nil, "how many Services there are")
	f.IntSliceVar(&b.endpoints, "endpoints", nil, "endpoints of the Service that is used: 1, 10, 100, 1000")
	f.StringSliceVar(&b.positions, "positions", nil, "where the Service that is used stands among all: first, last")
	f.StringSliceVar(&b.paths, "paths", nil, "how it is reached: cluster, nodeport-local, nodeport-remote, external")
	f.IntSliceVar(&b.families, "families", nil, "4, 6")
	f.StringSliceVar(&b.works, "works", nil, "what is measured: connect, connect8, connect-open, connect-close, request, datagram, tcp1, tcp8, udp@RATE, iperf2; none for none")
	f.BoolVar(&b.iperf2, "iperf2", false, "measure throughput with iperf 2 as well")
	f.StringSliceVar(&b.control, "control", nil, "what is measured of the control plane: start, change, churn, restart; none for none")
	f.IntSliceVar(&b.controlServices, "control-services", nil, "with how many Services the control plane is measured (default: as --services)")
	f.StringVar(&b.opts.Source, "source", bench.SourceFile, "where agents have their objects from: file, or kubernetes for a real API server, as kube-proxy")
	f.IntVar(&b.opts.Rounds, "rounds", 0, "how often each figure is measured")
	f.IntVar(&b.opts.ControlRounds, "control-rounds", 0, "the same for the control plane")
	f.DurationVar(&b.opts.Slot, "slot", 0, "how long one figure is measured; iperf takes whole seconds")
	f.Float64Var(&b.opts.Rate, "rate", 0, "connections a second where the rate is fixed: connect-open, connect-close, churn, restart")
	f.IntVar(&b.opts.Changes, "changes", 0, "how many changes are measured")
	f.DurationVar(&b.opts.ChurnDuration, "churn-duration", 0, "how long 100 changes a second are made")
	f.IntVar(&b.opts.FillerEndpoints, "filler-endpoints", 0, "endpoints of each Service that is not used")
	f.StringVar(&b.env.KubeProxy, "kube-proxy", "", "a kube-proxy program, to measure it on the same objects")
	f.BoolVar(&b.opts.NetworkPlugin, "network-plugin", false, "give the nodes a network plugin's masquerade rule, in bare too, as most nodes have one: conntrack is at work then")
	f.StringVar(&b.env.Before, "before", "", "another nodeproxy program, for the columns ebpf-before and ebpf-packets-before")
	f.StringVar(&b.env.LabName, "lab", bench.LabName(), "what the names of the labs begin with")
	_ = f.MarkHidden("lab") // for tests; it was defined just now
	f.StringVar(&b.env.KubeBin, "kube-bin", "bin/kube", "directory of etcd and kube-apiserver for it, as make kube builds them")
}

// options joins the preset with what the user said, which takes the place of
// the preset's values in each of its blocks.
func (b *benchFlags) options(f *pflag.FlagSet) bench.Options {
	preset := bench.Default
	switch {
	case b.quick:
		preset = bench.Quick
	case b.full:
		preset = bench.Full
	case b.check:
		preset = bench.Check
	}
	o := bench.PresetOptions(preset)
	if b.env.KubeProxy != "" {
		o.Columns = append(o.Columns, bench.KubeProxyIPTables, bench.KubeProxyNFTables)
	}
	for i := range o.Blocks {
		block := &o.Blocks[i]
		replace(f, "services", &block.Services, b.services)
		replace(f, "endpoints", &block.Endpoints, b.endpoints)
		replace(f, "positions", &block.Positions, b.positions)
		replace(f, "paths", &block.Paths, b.paths)
		replace(f, "families", &block.Families, b.families)
		replace(f, "works", &block.Works, b.works)
		if b.iperf2 && slices.Contains(block.Works, bench.WorkTCP1) {
			block.Works = append(slices.Clone(block.Works), bench.WorkIPerf2)
		}
	}
	replace(f, "columns", &o.Columns, b.columns)
	replace(f, "control", &o.Control, b.control)
	replace(f, "services", &o.ControlServices, b.services)
	replace(f, "control-services", &o.ControlServices, b.controlServices)
	value(f, "source", &o.Source, b.opts.Source)
	value(f, "network-plugin", &o.NetworkPlugin, b.opts.NetworkPlugin)
	value(f, "rounds", &o.Rounds, b.opts.Rounds)
	value(f, "control-rounds", &o.ControlRounds, b.opts.ControlRounds)
	value(f, "slot", &o.Slot, b.opts.Slot)
	value(f, "rate", &o.Rate, b.opts.Rate)
	value(f, "changes", &o.Changes, b.opts.Changes)
	value(f, "churn-duration", &o.ChurnDuration, b.opts.ChurnDuration)
	value(f, "filler-endpoints", &o.FillerEndpoints, b.opts.FillerEndpoints)
	if slices.Equal(b.works, []string{"none"}) {
		o.Blocks = nil
	}
	if slices.Equal(b.control, []string{"none"}) {
		o.Control = nil
	}
	return o
}

func replace[T any](f *pflag.FlagSet, name string, to *[]T, from []T) { value(f, name, to, from) }

func value[T any](f *pflag.FlagSet, name string, to *T, from T) {
	if f.Changed(name) {
		*to = from
	}
}

func (b *benchFlags) run(cmd *cobra.Command) error {
	o := b.options(cmd.Flags())
	if err := o.Validate(); err != nil {
		return err
	}
	if err := b.env.Check(o); err != nil {
		return err
	}
	if err := requireRoot("bench makes network namespaces and"); err != nil {
		return err
	}
	if removed, err := bench.RemoveStale(); err != nil {
		return err
	} else if len(removed) > 0 {
		fmt.Fprintf(os.Stderr, "removed what a killed run had left: %s\n", strings.Join(removed, ", "))
	}
	file, run, samples, err := b.open(o)
	if err != nil {
		return err
	}
	defer file.Close()
	err = b.measure(cmd.Context(), run.Options, file, bench.Done(samples))
	if err == nil && b.check {
		return b.judge(cmd, run.Options, file)
	}
	return errors.Join(err, report(file.Path(), cmd))
}

// judge compares what was measured with the floors. What is below is measured
// once more before it fails: the machine may have had a bad moment.
func (b *benchFlags) judge(cmd *cobra.Command, o bench.Options, file *bench.File) error {
	floors, err := bench.CommittedFloors()
	if err != nil {
		return err
	}
	_, samples, err := bench.ReadFile(file.Path())
	if err != nil {
		return err
	}
	failed := show(cmd, floors.Judge(o.Columns, samples))
	if len(failed) > 0 && cmd.Context().Err() == nil {
		fmt.Fprintf(os.Stderr, "%d figures are below their floor: measuring them once more\n", len(failed))
		again, done := bench.Retry(o, failed)
		if err := b.measure(cmd.Context(), again, file, done); err != nil {
			return err
		}
		_, all, err := bench.ReadFile(file.Path())
		if err != nil {
			return err
		}
		verdicts := floors.Judge(o.Columns, all[len(samples):])
		verdicts = slices.DeleteFunc(verdicts, func(v bench.Verdict) bool {
			return !slices.ContainsFunc(failed, func(f bench.Verdict) bool { return f.Floor == v.Floor })
		})
		failed = show(cmd, verdicts)
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d figures are below their floor of bench/floors.yaml, twice", len(failed))
	}
	return nil
}

// show prints verdicts and returns those that failed.
func show(cmd *cobra.Command, verdicts []bench.Verdict) []bench.Verdict {
	var failed []bench.Verdict
	for _, v := range verdicts {
		fmt.Fprintln(cmd.OutOrStdout(), v)
		if !v.OK {
			failed = append(failed, v)
		}
	}
	return failed
}

func (b *benchFlags) measure(ctx context.Context, o bench.Options, file *bench.File, done map[bench.Step]bool) error {
	begin := time.Now()
	err := bench.Measure(ctx, o, b.env, file, done, bench.Progress{
		Note: func(text string) { fmt.Fprintln(os.Stderr, text) },
		Step: func(done, all int, left time.Duration, s bench.Sample) {
			fmt.Fprintf(os.Stderr, "%4d/%d, %s left: %s\n", done, all, left.Round(time.Second), s.Text())
		},
	})
	if ctx.Err() != nil {
		return fmt.Errorf("cut short after %s; --resume goes on", time.Since(begin).Round(time.Second))
	}
	if err == nil {
		fmt.Fprintf(os.Stderr, "measured in %s\n", time.Since(begin).Round(time.Second))
	}
	return err
}

// open opens the file of a new run, or of the last one.
func (b *benchFlags) open(o bench.Options) (*bench.File, bench.Run, []bench.Sample, error) {
	if b.resume {
		path, err := bench.LatestFile(b.out)
		if err != nil {
			return nil, bench.Run{}, nil, err
		}
		file, run, samples, err := bench.ResumeFile(path)
		if err != nil {
			return nil, run, nil, err
		}
		return file, run, samples, b.env.Check(run.Options)
	}
	machine, err := bench.ThisMachine(b.env)
	if err != nil {
		return nil, bench.Run{}, nil, err
	}
	run := bench.Run{Started: time.Now(), Version: versionText(), Machine: machine, Options: o}
	file, err := bench.CreateFile(b.out, run)
	return file, run, nil, err
}

// report renders a result file and says where to.
func report(path string, cmd *cobra.Command) error {
	run, samples, err := bench.ReadFile(path)
	if err != nil {
		return err
	}
	if err := bench.WriteText(cmd.OutOrStdout(), run, samples); err != nil {
		return err
	}
	page := strings.TrimSuffix(path, filepath.Ext(path)) + ".html"
	var html bytes.Buffer
	if err := bench.WriteHTML(&html, run, samples); err != nil {
		return err
	}
	if err := os.WriteFile(page, html.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "\nresults: %s\ncharts:  %s\n", path, page)
	return nil
}

func newBenchReportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "report FILE",
		Short: "Render the report of a result file once more",
		Args:  between(1, 1, "name a result file", "bench report bench-results/RUN.jsonl"),
		RunE:  func(cmd *cobra.Command, args []string) error { return report(args[0], cmd) },
	}
}

func newBenchLoadCommand() *cobra.Command {
	var c load.Config
	var kind, to string
	cmd := &cobra.Command{
		Use:    "load",
		Short:  "Work against an echo server and print what was done",
		Hidden: true, // bench starts it in a place of a lab
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			c.Kind = load.Kind(kind)
			if c.To, err = netip.ParseAddrPort(to); err != nil {
				return fmt.Errorf("--to %q: use ADDRESS:PORT", to)
			}
			r, err := load.Run(cmd.Context(), c)
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&kind, "kind", string(load.Connect), "connect, request or datagram")
	f.StringVar(&to, "to", "", "address and port of the server")
	f.DurationVar(&c.Duration, "duration", time.Second, "how long")
	f.IntVar(&c.Workers, "workers", 1, "how many operations at a time")
	f.Float64Var(&c.Rate, "rate", 0, "operations to begin in a second, 0 for as many as go")
	f.DurationVar(&c.Timeout, "timeout", time.Second, "when an operation has failed")
	return cmd
}

func newBenchProbeCommand() *cobra.Command {
	var to string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:    "probe",
		Short:  "Say whenever another server answers",
		Hidden: true, // bench starts it in a place of a lab
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			addr, err := netip.ParseAddrPort(to)
			if err != nil {
				return fmt.Errorf("--to %q: use ADDRESS:PORT", to)
			}
			runtime.GOMAXPROCS(1)
			return load.Probe(cmd.Context(), addr, timeout, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "address and port of the server")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Second, "when one attempt has failed")
	return cmd
}

func newBenchServeCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "serve",
		Short:  "Answer what bench load does",
		Hidden: true, // bench starts it in a Pod of a lab
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return load.Serve(cmd.Context(), func() { fmt.Fprintln(cmd.OutOrStdout(), "listening") })
		},
	}
}
