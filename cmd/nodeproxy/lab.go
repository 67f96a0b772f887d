//go:build !agent

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/controlplane"
)

func newLabCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "A small cluster of network namespaces on this machine, to try things in",
		Long: `A small cluster of network namespaces on this machine, to try things in.

  client ── router ──┬── node-a ── pod-a1, pod-a2
                     └── node-b ── pod-b1, pod-b2

Needs root. Nothing of it is left after "nodeproxy lab down".`,
	}
	cmd.AddCommand(newLabUpCommand(), newLabStatusCommand(), newLabExecCommand(),
		newLabDownCommand(), newLabAgentCommand(), newLabDemoCommand(), newLabEchoCommand(), newLabDialerCommand(), newLabLoadCommand())
	return cmd
}

func labNameFlag(cmd *cobra.Command, name *string) {
	cmd.Flags().StringVar(name, "name", lab.DefaultName, "name of the lab; several can be up")
}

func modeFlag(cmd *cobra.Command, mode *string) {
	cmd.Flags().StringVar(mode, "mode", lab.ModeIPTables, "mode of the agents: iptables or ebpf")
}

func checkMode(mode string) error {
	if mode != lab.ModeIPTables && mode != lab.ModeEBPF {
		return fmt.Errorf("unknown mode %q: valid are %s, %s", mode, lab.ModeIPTables, lab.ModeEBPF)
	}
	return nil
}

func newLabDownCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Remove a lab, its processes too, also one that is half built",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			err := lab.Down(name)
			if errors.Is(err, lab.ErrNotFound) {
				return fmt.Errorf("there is no lab %q", name)
			}
			return err
		},
	}
	labNameFlag(cmd, &name)
	return cmd
}

func openLab(name string) (*lab.Lab, error) {
	l, err := lab.Open(name)
	if errors.Is(err, lab.ErrNotFound) {
		return nil, fmt.Errorf("there is no lab %q; `nodeproxy lab up` builds one", name)
	}
	return l, err
}

func newLabExecCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:     "exec PLACE -- COMMAND...",
		Short:   "Run a command on a machine of a lab (client, router, node-a, pod-a1, ...)",
		Example: "  nodeproxy lab exec client -- curl http://192.168.77.11:30080/",
		Args:    between(2, -1, "name a place and a command", "lab exec client -- curl http://192.168.77.11:30080/"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := lab.FindPlace(args[0]); err != nil {
				return err
			}
			args, err := takeLabName(args, &name)
			if err != nil {
				return err
			}
			if os.Geteuid() != 0 {
				return lab.ErrNotRoot
			}
			l, err := openLab(name)
			if err != nil {
				return err
			}
			argv := args[1:]
			if argv[0] == "--" && len(argv) > 1 {
				argv = argv[1:] // kept by a flag set that is not interspersed
			}
			return execIn(l, args[0], argv)
		},
	}
	cmd.ValidArgsFunction = completePlaces
	labNameFlag(cmd, &name)
	cmd.Flags().SetInterspersed(false) // what follows PLACE is the command's
	return cmd
}

// takeLabName takes --name out of what stands between a place and --: a flag there is
// ours, as with kubectl exec, and behind -- the command's.
func takeLabName(args []string, name *string) ([]string, error) {
	rest := args[1:]
	for len(rest) > 0 {
		value, ok := strings.CutPrefix(rest[0], "--name=")
		switch {
		case ok:
			rest = rest[1:]
		case rest[0] == "--name" && len(rest) > 1:
			value, rest = rest[1], rest[2:]
		case rest[0] == "--name":
			return nil, errors.New("--name needs a value: use a name of a lab")
		default:
			return append([]string{args[0]}, rest...), nil
		}
		*name = value
	}
	return nil, fmt.Errorf("name a command: nodeproxy lab exec %s -- curl http://192.168.77.11:30080/", args[0])
}

// execIn runs a command with this process's standard streams. Its failure is
// an exec.ExitError, from which main takes our own exit status.
func execIn(l *lab.Lab, place string, argv []string) error {
	// Not bound to the context: the terminal sends ^C to the command as well,
	// and what that means is up to the command.
	cmd := l.Command(context.Background(), place, argv...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if instance := l.Instance(place); instance != "" {
		cmd.Env = append(os.Environ(), instanceVariable+"="+instance)
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	defer signal.Stop(terminate)
	go func() {
		for range terminate {
			_ = cmd.Process.Signal(syscall.SIGTERM) // fails if it has ended, which is what is wanted
		}
	}()
	return cmd.Wait()
}

func newLabDemoCommand() *cobra.Command {
	var opts lab.DemoOptions
	var from, kubeBin string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Build a lab, show what Services do in it, check every step, take it down",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkMode(opts.Lab.Mode); err != nil {
				return err
			}
			if err := checkLabSource(from, kubeBin); err != nil {
				return err
			}
			if from == sourceKubernetes {
				opts.Prepare = onAPIServer(kubeBin)
			}
			opts.Out, opts.Colour = os.Stdout, isTerminal(os.Stdout) && os.Getenv("NO_COLOR") == ""
			err := lab.Demo(cmd.Context(), opts)
			if errors.Is(err, lab.ErrExists) {
				return fmt.Errorf("lab %q exists already; `nodeproxy lab down --name %[1]s` removes it", opts.Lab.Name)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&opts.Lab.Name, "name", "demo", "name of the lab that is built")
	modeFlag(cmd, &opts.Lab.Mode)
	cmd.Flags().BoolVar(&opts.Lab.Bridge, "bridge", false, "put the Pods of a node behind a bridge, not routed veths")
	labSourceFlags(cmd, &from, &kubeBin)
	cmd.Flags().BoolVar(&opts.Keep, "keep", false, "leave the lab up afterwards")
	cmd.Flags().StringArrayVar(&opts.Lab.AgentArgs, "agent-arg", nil, "argument for the agents; may be repeated")
	return cmd
}

// onAPIServer starts a real API server in the lab and moves its objects there.
func onAPIServer(bin string) func(context.Context, *lab.Lab) (string, error) {
	return func(ctx context.Context, l *lab.Lab) (string, error) {
		begin := time.Now()
		api, err := controlplane.Start(ctx, l, bin)
		if err != nil {
			return "", err
		}
		l.SetStore(api)
		if err := l.ApplyDemoCluster(); err != nil {
			return "", err
		}
		version, err := api.Client.Discovery().ServerVersion()
		if err != nil {
			return "", fmt.Errorf("ask the API server for its version: %w", err)
		}
		return fmt.Sprintf("A Kubernetes API server (%s, with RBAC) was ready, and held all objects, after %s.\n",
			version.Major+"."+version.Minor, time.Since(begin).Round(100*time.Millisecond)), nil
	}
}

// isTerminal reports whether f is a terminal: a device that has modes of one.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
