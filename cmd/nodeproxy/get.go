package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
	"github.com/nodeproxy/nodeproxy/dataplane/iptables"
	"github.com/nodeproxy/nodeproxy/dataplane/view"
)

func newGetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get",
		Short: "Show what the kernel holds for Services on this node",
		Long: `Show what the kernel holds: the maps of ebpf mode, or the rules, conntrack entries and
xt_recent lists of iptables mode. The running agent is asked; where none answers, the
kernel is read by this command itself, which it says on standard error.`,
	}
	cmd.AddCommand(newGetServicesCommand(), newGetBackendsCommand(), newGetFlowsCommand(), newGetAffinityCommand())
	return cmd
}

// listing is one nodeproxy get command.
type listing[T any] struct {
	what    string // on the command line
	aliases []string
	short   string
	long    string
	path    string
	read    func(admin.Kernel, context.Context) ([]T, error)
	// columns are the heading, and cells a row of it; wide ones follow, for
	// -o wide.
	columns, wide []string
	cells         func(T) []string
	service       func(T) string
}

func (l listing[T]) command() *cobra.Command {
	var a asking
	var only choice
	cmd := &cobra.Command{
		Use:     l.what + " [[NAMESPACE/]NAME]",
		Aliases: l.aliases,
		Short:   l.short,
		Long:    l.long,
		Example: fmt.Sprintf("  nodeproxy get %s\n  nodeproxy get %[1]s -o wide --service default/web\n  nodeproxy get %[1]s -o json", l.what),
		Args:    between(0, 1, "", "get "+l.what+" default/web"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := only.take(args); err != nil {
				return err
			}
			rows, err := l.get(cmd, &a)
			if err != nil {
				return err
			}
			rows = slices.DeleteFunc(rows, func(r T) bool { return !only.has(l.service(r)) })
			if len(rows) == 0 && only.service != "" && l.path == admin.PathServices {
				return only.none()
			}
			return a.print(cmd.OutOrStdout(), rows, func(w io.Writer) { l.print(w, rows, a.output == "wide") })
		},
	}
	a.register(cmd)
	only.register(cmd)
	return cmd
}

// registerService adds the flag that asks for one Service.
func registerService(cmd *cobra.Command, only *string) {
	cmd.Flags().StringVar(only, "service", "", "show only this Service: NAMESPACE/NAME")
	instance := defaultInstance
	if err := cmd.RegisterFlagCompletionFunc("service", completeServices(&instance)); err != nil {
		panic(err) // the flag is there
	}
}

// isOfService tells whether a port, namespace/name:port, is one of the Service
// that is asked for.
func isOfService(port, only string) bool {
	name, _, _ := strings.Cut(port, ":")
	return only == "" || only == name || only == port
}

// checkService returns what is wrong with a --service.
func checkService(only string) error {
	if only == "" {
		return nil
	}
	name, _, _ := strings.Cut(only, ":")
	if _, err := parseName(name); err != nil {
		return fmt.Errorf("--service %q: use NAMESPACE/NAME, such as default/web", only)
	}
	return nil
}

// choice is which Services of a list are asked for, as kubectl has it.
type choice struct {
	service, namespace string
	all                bool
}

func (c *choice) register(cmd *cobra.Command) {
	registerService(cmd, &c.service)
	cmd.Flags().StringVarP(&c.namespace, "namespace", "n", "", "show only Services of this namespace")
	cmd.Flags().BoolVarP(&c.all, "all-namespaces", "A", false, "show Services of all namespaces, which is the default")
}

// take takes in the argument [NAMESPACE/]NAME.
func (c *choice) take(args []string) error {
	if len(args) == 1 {
		name := args[0]
		if !strings.Contains(name, "/") {
			name = cmp.Or(c.namespace, "default") + "/" + name
		}
		if c.service != "" && c.service != name {
			return fmt.Errorf("%q and --service %s: name one Service", args[0], c.service)
		}
		if _, err := parseName(name); err != nil {
			return fmt.Errorf("%q: use NAME or NAMESPACE/NAME, such as default/web", args[0])
		}
		c.service = name
	}
	if c.all && c.namespace != "" {
		return fmt.Errorf("--namespace %s and --all-namespaces: use one of them", c.namespace)
	}
	return checkService(c.service)
}

// has reports whether a port, namespace/name:port, is asked for.
func (c *choice) has(port string) bool {
	return isOfService(port, c.service) && (c.namespace == "" || strings.HasPrefix(port, c.namespace+"/"))
}

// none is told where the Service that is asked for is not there.
func (c *choice) none() error {
	return fmt.Errorf("no Service %s on this node: nodeproxy get services lists those that there are", c.service)
}

// get asks the agent, or reads the kernel.
func (l listing[T]) get(cmd *cobra.Command, a *asking) ([]T, error) {
	rows := []T{}
	err := admin.Get(cmd.Context(), admin.Socket(a.instance), l.path, nil, &rows)
	if !errors.Is(err, admin.ErrNoAgent) {
		return rows, err
	}
	kernel, _, err := a.remains(cmd, err)
	if err != nil {
		return nil, err
	}
	return l.read(kernel, cmd.Context())
}

func (l listing[T]) print(w io.Writer, rows []T, wide bool) {
	columns := l.columns
	if wide {
		columns = slices.Concat(l.columns, l.wide)
	}
	fmt.Fprintln(w, strings.Join(columns, "\t"))
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(l.cells(r)[:len(columns)], "\t"))
	}
}

// remains reads what an agent that does not answer left in the kernel, and says
// so in one line. It returns the mode too.
func (a *asking) remains(cmd *cobra.Command, noAgent error) (admin.Kernel, string, error) {
	if err := requireRoot("reading the kernel's state"); err != nil {
		return nil, "", fmt.Errorf("%w; %w", noAgent, err)
	}
	say := func(mode string) {
		fmt.Fprintf(cmd.ErrOrStderr(), "%v: this is what the kernel holds, in %s mode\n", noAgent, mode)
	}
	o := ebpf.Options{Instance: a.instance}
	if left, err := ebpf.Leftover(o); err != nil {
		return nil, "", err
	} else if left {
		say(modeEBPF)
		r, err := ebpf.NewReader(o)
		return r, modeEBPF, err
	}
	found, err := iptables.Leftovers(cmd.Context())
	if err != nil {
		return nil, "", err
	}
	if len(found) == 0 {
		return nil, "", fmt.Errorf("%w, and the kernel holds nothing of nodeproxy", noAgent)
	}
	say(modeIPTables)
	r, err := iptables.NewReader(cmd.Context())
	return r, modeIPTables, err
}

// status asks the agent, or tells what the kernel does.
func (a *asking) status(cmd *cobra.Command) (admin.Status, error) {
	var s admin.Status
	err := admin.Get(cmd.Context(), admin.Socket(a.instance), "/v1/status", nil, &s)
	if !errors.Is(err, admin.ErrNoAgent) {
		return s, err
	}
	kernel, mode, err := a.remains(cmd, err)
	if err != nil {
		return s, err
	}
	s = admin.Status{Dead: true, Mode: mode, Instance: a.instance}
	frontends, err := kernel.Services(cmd.Context())
	if err != nil {
		return s, err
	}
	backends, err := kernel.Backends(cmd.Context())
	if err != nil {
		return s, err
	}
	names := map[string]bool{}
	for _, f := range frontends {
		name, _, _ := strings.Cut(f.Service, ":")
		names[name] = true
	}
	seen := map[view.Backend]bool{}
	for _, b := range backends {
		seen[view.Backend{Service: b.Service, Protocol: b.Protocol, Address: b.Address}] = true
	}
	s.Services, s.Backends = len(names), len(seen)
	if r, ok := kernel.(*ebpf.Reader); ok {
		uses, err := r.MapUses()
		if err != nil {
			return s, err
		}
		s.Maps = mapRows(uses)
	}
	return s, nil
}

func mapRows(uses []ebpf.MapUse) []admin.Map {
	var rows []admin.Map
	for _, u := range uses {
		rows = append(rows, admin.Map(u))
	}
	slices.SortFunc(rows, func(a, b admin.Map) int { return cmp.Compare(a.Name, b.Name) })
	return rows
}

func newGetServicesCommand() *cobra.Command {
	return listing[view.Frontend]{
		what: "services", aliases: []string{"service", "svc"}, path: admin.PathServices, read: admin.Kernel.Services,
		short:   "Show the frontends of Services, and what they do with packets",
		columns: []string{"SERVICE", "PROTOCOL", "KIND", "ADDRESS", "PORT", "FROM PODS", "FROM THIS NODE", "FROM OUTSIDE", "ONLY SOURCES IN"},
		wide:    []string{"WHERE"},
		cells: func(r view.Frontend) []string {
			address, port := r.Address, strconv.Itoa(int(r.Port))
			if address == "" {
				address = "(" + r.Family + ")"
			}
			if r.LastPort != 0 {
				port += "-" + strconv.Itoa(int(r.LastPort))
			}
			return []string{r.Service, r.Protocol, r.Kind, address, port, r.Pod, r.Node, r.Outside, cmp.Or(strings.Join(r.SourceRanges, ","), "any"), r.Where}
		},
		service: func(r view.Frontend) string { return r.Service },
	}.command()
}

func newGetBackendsCommand() *cobra.Command {
	return listing[view.Backend]{
		what: "backends", aliases: []string{"backend", "endpoints"}, path: admin.PathBackends, read: admin.Kernel.Backends,
		short:   "Show the backends of new flows",
		columns: []string{"SERVICE", "PROTOCOL", "ADDRESS", "SHARE", "LIST"},
		wide:    []string{"ON THIS NODE", "WHERE"},
		cells: func(r view.Backend) []string {
			local := "?" // rules do not say
			if r.Local != nil {
				local = strconv.FormatBool(*r.Local)
			}
			return []string{r.Service, r.Protocol, r.Address, fmt.Sprintf("%.1f%%", 100*r.Share), r.List, local, r.Where}
		},
		service: func(r view.Backend) string { return r.Service },
	}.command()
}

func newGetFlowsCommand() *cobra.Command {
	return listing[view.Flow]{
		what: "flows", aliases: []string{"flow", "connections"}, path: admin.PathFlows, read: admin.Kernel.Flows,
		short: "Show the flows that are translated packet by packet",
		long: `Show the flows that are translated packet by packet: those of ebpf mode's own table, or the
entries of conntrack that lead from a Service to a backend. What a socket was given when it
connected (ebpf mode) is not among them: nothing is translated any more there. In iptables
mode packets and bytes are known where net.netfilter.nf_conntrack_acct is 1.`,
		columns: []string{"SERVICE", "PROTOCOL", "CLIENT", "FRONTEND", "BACKEND", "STATE"},
		wide:    []string{"SEEN AS", "IDLE", "PACKETS TO", "PACKETS FROM", "BYTES TO", "BYTES FROM"},
		cells: func(r view.Flow) []string {
			cells := []string{cmp.Or(r.Service, "(gone)"), r.Protocol, r.Client.String(), r.Frontend.String(), r.Backend.String(), r.State,
				r.Source.String(), idle(r.Idle)}
			for _, n := range []*[2]uint64{r.Packets, r.Bytes} {
				if n == nil {
					cells = append(cells, "?", "?")
				} else {
					cells = append(cells, strconv.FormatUint(n[0], 10), strconv.FormatUint(n[1], 10))
				}
			}
			return cells
		},
		service: func(r view.Flow) string { return r.Service },
	}.command()
}

func newGetAffinityCommand() *cobra.Command {
	return listing[view.Affinity]{
		what: "affinity", aliases: []string{"affinities"}, path: admin.PathAffinities, read: admin.Kernel.Affinities,
		short:   "Show which clients session affinity leads to which backend",
		columns: []string{"SERVICE", "PROTOCOL", "CLIENT", "BACKEND"},
		wide:    []string{"IDLE"},
		cells: func(r view.Affinity) []string {
			return []string{r.Service, r.Protocol, r.Client.String(), r.Backend, idle(r.Idle)}
		},
		service: func(r view.Affinity) string { return r.Service },
	}.command()
}

// idle prints a time that may not be known.
func idle(d time.Duration) string {
	if d < 0 {
		return "?"
	}
	return d.String()
}
