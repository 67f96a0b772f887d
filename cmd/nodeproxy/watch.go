package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/dataplane/view"
)

// eventFilter says which events are shown.
type eventFilter struct {
	service  string
	from, to string
	drops    bool
	source   netip.Prefix
	target   netip.Prefix
	port     uint16 // of target, 0 for all
}

func newWatchCommand() *cobra.Command {
	var a asking
	var f eventFilter
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Show new flows and dropped packets live, with the reason",
		Long: `Show new flows and dropped packets live, with the reason, until interrupted. In ebpf mode the programs tell it, while somebody watches, up to
2,000 events a second; of a socket's call they name the process. In iptables mode translations are conntrack's events, and the rules
that refuse packets log them, while somebody watches, up to 100 a second each; what is
beyond that, and all of it where no agent answers, is counted, once a second.`,
		Example: `  nodeproxy watch
  nodeproxy watch --service default/web --from 10.244.1.0/24
  nodeproxy watch --drops --to 10.96.0.10:53 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.parse(); err != nil {
				return err
			}
			if a.output != "" && a.output != "json" {
				return fmt.Errorf("--output %q: use json, one object a line", a.output)
			}
			a.warnOfService(cmd, f.service)
			return a.watch(cmd, func(e view.Event) {
				if f.shows(&e) {
					printEvent(cmd.OutOrStdout(), &e, a.output == "json")
				}
			})
		},
	}
	a.register(cmd)
	registerService(cmd, &f.service)
	cmd.Flags().StringVar(&f.from, "from", "", "show only flows from this address or network")
	cmd.Flags().StringVar(&f.to, "to", "", "show only flows to this address or network, as dialled or a backend's; ADDRESS:PORT for one port")
	cmd.Flags().BoolVar(&f.drops, "drops", false, "show only what is rejected or dropped")
	return cmd
}

// warnOfService says that a Service is not there that events are asked of: it may come,
// and so this is no error.
func (a *asking) warnOfService(cmd *cobra.Command, only string) {
	var rows []view.Frontend
	if only == "" || admin.Get(cmd.Context(), admin.Socket(a.instance), admin.PathServices, nil, &rows) != nil {
		return // what watch itself asks for fails too, and says why
	}
	if !slices.ContainsFunc(rows, func(r view.Frontend) bool { return isOfService(r.Service, only) }) {
		fmt.Fprintf(cmd.ErrOrStderr(), "no Service %s is on this node yet: waiting for it; nodeproxy get services lists those that there are\n", only)
	}
}

// parse reads the addresses.
func (f *eventFilter) parse() (err error) {
	if err := checkService(f.service); err != nil {
		return err
	}
	if f.from != "" {
		if f.source, err = parseNetwork(f.from); err != nil {
			return fmt.Errorf("--from %q: use an IP address or a CIDR", f.from)
		}
	}
	if f.to == "" {
		return nil
	}
	if to, err := netip.ParseAddrPort(f.to); err == nil {
		f.target, f.port = netip.PrefixFrom(to.Addr(), to.Addr().BitLen()), to.Port()
		return nil
	}
	if f.target, err = parseNetwork(f.to); err != nil {
		return fmt.Errorf("--to %q: use an IP address, a CIDR, or ADDRESS:PORT", f.to)
	}
	return nil
}

func parseNetwork(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

// shows tells whether an event passes. Lost ones always do.
func (f *eventFilter) shows(e *view.Event) bool {
	if e.Verdict == "lost" {
		return true
	}
	is := func(a netip.AddrPort) bool { return f.target.Contains(a.Addr()) && (f.port == 0 || f.port == a.Port()) }
	switch {
	case f.drops && e.Verdict == "translate":
	case !isOfService(e.Service, f.service):
	case f.source.IsValid() && !f.source.Contains(e.Source.Addr()):
	case f.target.IsValid() && !is(e.Destination) && (e.Backend == nil || !is(*e.Backend)):
	default:
		return true
	}
	return false
}

// printEvent writes one line.
func printEvent(w io.Writer, e *view.Event, asJSON bool) {
	if asJSON {
		_ = json.NewEncoder(w).Encode(e) // who reads is gone: so will we be
		return
	}
	words := []string{e.Time.Local().Format("15:04:05.000"), e.Verdict}
	if e.Service != "" {
		words = append(words, e.Service)
	}
	if e.Protocol != "" {
		words = append(words, e.Protocol)
	}
	if e.Source.IsValid() {
		words = append(words, e.Source.String())
	}
	if e.SeenAs != nil {
		words = append(words, "(as "+e.SeenAs.String()+")")
	}
	if e.Destination.IsValid() {
		words = append(words, "-> "+e.Destination.String())
	}
	if e.Backend != nil {
		words = append(words, "-> "+e.Backend.String())
	}
	words = append(words, "["+e.Reason+"]")
	if e.Process != nil {
		words = append(words, fmt.Sprintf("by %s (process %d)", e.Process.Name, e.Process.ID))
	}
	if e.Packets > 0 {
		words = append(words, fmt.Sprintf("x %d", e.Packets))
	}
	fmt.Fprintln(w, strings.Join(words, " "))
}

// eventSource is a Kernel that tells what happens.
type eventSource interface {
	Watch(ctx context.Context, ready func(), emit func(view.Event)) error
}

// watch shows events of the agent, or of what is left of one.
func (a *asking) watch(cmd *cobra.Command, show func(view.Event)) error {
	ready := func() { fmt.Fprintln(cmd.ErrOrStderr(), "watching; interrupt to end") }
	err := admin.Stream(cmd.Context(), admin.Socket(a.instance), admin.PathWatch, ready, show)
	if !errors.Is(err, admin.ErrNoAgent) {
		return err
	}
	kernel, _, err := a.remains(cmd, err)
	if err != nil {
		return err
	}
	return kernel.(eventSource).Watch(cmd.Context(), ready, show)
}
