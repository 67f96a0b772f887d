package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/service"
)

func newExplainCommand() *cobra.Command {
	var a asking
	var from, iface string
	cmd := &cobra.Command{
		Use:   "explain [--from ADDRESS|pod NAMESPACE/NAME|node] ADDRESS:PORT|svc/[NAMESPACE/]NAME:PORT[/PROTOCOL]",
		Short: "Explain what this node would do with a packet, and why",
		Long: `Explain what this node would do with the first packet of a flow, and why: from what the
running agent makes of the Services, step by step, in the same words in every mode; and from
what the kernel has. In iptables mode the rules that the kernel holds are evaluated for the
packet, in ebpf mode a copy of the programs is run on the maps that it holds. Where the
kernel's answer differs from the agent's, that is said, and the exit code is 1. Where
programs at sockets translate too (ebpf mode), what a connect comes to is told, which is
before there is a packet. Nothing is sent or changed.

Where no agent answers, the kernel alone is asked, and --from pod needs --source or
--kubeconfig to find the Pod.`,
		Example: `  nodeproxy explain 10.96.0.10:80
  nodeproxy explain svc/default/web:80
  nodeproxy explain --from 10.244.1.7 10.96.0.10:53/UDP
  nodeproxy explain --from pod default/web-1 10.96.0.10:53/UDP
  nodeproxy explain --from 203.0.113.5 192.168.77.11:30080 -o json
  nodeproxy explain --source file:/etc/nodeproxy/manifests --from pod default/web-1 10.96.0.10:80   # without an agent`,
		Args: between(1, 2, "say where the packet goes", "explain 10.96.0.10:80"),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, to, err := explainArgs(from, args)
			if err != nil {
				return err
			}
			q, err := a.question(cmd, from, to, iface)
			if err != nil {
				return err
			}
			e, err := a.explain(cmd, q)
			if err != nil {
				return err
			}
			err = a.print(cmd.OutOrStdout(), e, func(w io.Writer) { fmt.Fprintln(w, strings.Join(e.Steps, "\n")) })
			if err == nil && e.Differs != "" {
				return withCode(codeNo, nil) // what differs was printed
			}
			return err
		},
		ValidArgsFunction: completeFrontends(&a.instance),
	}
	a.register(cmd)
	a.pods.register(cmd.Flags())
	cmd.Flags().StringVar(&from, "from", "node", "address that the packet comes from; pod NAMESPACE/NAME; or node for this node itself")
	cmd.Flags().StringVar(&iface, "interface", "", "interface that it comes by, where Pods are told by interfaces")
	return cmd
}

// explainArgs joins "--from pod" with the name that follows it.
func explainArgs(from string, args []string) (source, to string, err error) {
	if from == "pod" && len(args) == 2 {
		return "pod/" + args[0], args[1], nil
	}
	if from == "pod" || len(args) != 1 {
		return "", "", errors.New("use explain [--from ADDRESS|pod NAMESPACE/NAME|node] TO:PORT[/PROTOCOL]")
	}
	return from, args[0], nil
}

// question reads what explain is asked. A Pod's address is asked for.
func (a *asking) question(cmd *cobra.Command, from, to, iface string) (admin.Question, error) {
	ctx := cmd.Context()
	target, protocol, err := a.destination(cmd, to)
	if err != nil {
		return admin.Question{}, err
	}
	q := admin.Question{Interface: iface}
	if iface != "" {
		if _, err := net.InterfaceByName(iface); err != nil {
			return q, fmt.Errorf("--interface %q: there is no such interface here", iface)
		}
	}
	switch pod, isPod := strings.CutPrefix(from, "pod/"); {
	case isPod:
		dst := netip.MustParseAddrPort(target) // as destination has found
		if q.From, err = a.podAddress(ctx, pod, service.FamilyOf(dst.Addr())); err != nil {
			return q, err
		}
	case from != "node":
		addr, err := netip.ParseAddr(from)
		if err != nil {
			return q, fmt.Errorf("--from %q: use an IP address, pod NAMESPACE/NAME, or node", from)
		}
		q.From = addr
	}
	values := q.Values()
	values.Set("to", target)
	values.Set("protocol", strings.ToUpper(protocol))
	return admin.ParseQuestion(values)
}

// podAddress asks for a Pod's address of a family: the agent, or where none
// answers, the source that the flags name.
func (a *asking) podAddress(ctx context.Context, pod string, family service.Family) (netip.Addr, error) {
	name, err := parseName(pod)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("pod %w", err)
	}
	var found []netip.Addr
	query := url.Values{"namespace": {name.Namespace}, "name": {name.Name}}
	err = admin.Get(ctx, admin.Socket(a.instance), admin.PathPod, query, &found)
	if errors.Is(err, admin.ErrNoAgent) {
		found, err = a.pods.find(ctx, name, err)
	}
	if err != nil {
		return netip.Addr{}, err
	}
	for _, addr := range found {
		if service.FamilyOf(addr) == family {
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("pod %s has no %s address", name, family)
}

// explain asks the agent, or the kernel alone.
func (a *asking) explain(cmd *cobra.Command, q admin.Question) (admin.Explanation, error) {
	var e admin.Explanation
	err := admin.Get(cmd.Context(), admin.Socket(a.instance), "/v1/explain", q.Values(), &e)
	if !errors.Is(err, admin.ErrNoAgent) {
		return e, err
	}
	kernel, _, err := a.remains(cmd, err)
	if err != nil {
		return e, err
	}
	node, err := ownAddresses()
	if err != nil {
		return e, err
	}
	p := q.Packet(&node)
	p.Leaves = leaves(q.To.Addr())
	if p.Destination.Addr().IsLoopback() {
		return loopbackRemains(cmd.Context(), kernel, p)
	}
	answer, err := kernel.Explain(cmd.Context(), p)
	if err != nil {
		return e, err
	}
	return admin.KernelOnly(answer, p), nil
}

// loopbackRemains explains what is sent to loopback, where no agent answers.
func loopbackRemains(ctx context.Context, kernel admin.Kernel, p service.Packet) (admin.Explanation, error) {
	frontends, err := kernel.Services(ctx)
	if err != nil {
		return admin.Explanation{}, err
	}
	backends, err := kernel.Backends(ctx)
	if err != nil {
		return admin.Explanation{}, err
	}
	programs, ok := kernel.(interface{ Sockets() bool })
	return admin.LoopbackRemains(frontends, backends, p, ok && programs.Sockets()), nil
}

// ownAddresses are the facts of this node that a packet's source is told by.
func ownAddresses() (node service.NodeFacts, err error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return node, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
			f := service.FamilyOf(p.Addr())
			node.Local[f] = append(node.Local[f], p.Addr())
		}
	}
	return node, nil
}

// destination reads ADDRESS:PORT[/PROTOCOL], or svc/[NAMESPACE/]NAME:PORT[/PROTOCOL],
// which stands for the Service's ClusterIP.
func (a *asking) destination(cmd *cobra.Command, to string) (target, protocol string, err error) {
	bad := fmt.Errorf("%q: use ADDRESS:PORT such as 10.96.0.10:80, or svc/[NAMESPACE/]NAME:PORT, and /UDP for UDP", to)
	rest, isService := strings.CutPrefix(to, "svc/")
	protocol = service.TCP.String()
	if at := strings.LastIndex(rest, "/"); at > strings.LastIndex(rest, ":") {
		rest, protocol = rest[:at], strings.ToUpper(rest[at+1:])
	}
	if !isService {
		if _, err := netip.ParseAddrPort(rest); err != nil {
			return "", "", bad
		}
		return rest, protocol, nil
	}
	text, port, ok := strings.Cut(rest, ":")
	if !strings.Contains(text, "/") {
		text = "default/" + text
	}
	name, err := parseName(text)
	if err != nil || !ok || port == "" {
		return "", "", bad
	}
	at, err := a.clusterIP(cmd, name, port, protocol)
	return at.String(), protocol, err
}

// clusterIP is where a Service's port, a number or a name, is dialled.
func (a *asking) clusterIP(cmd *cobra.Command, name service.Name, port, protocol string) (netip.AddrPort, error) {
	f := endpointFinder{asking: *a}
	if err := f.open(cmd); err != nil {
		return netip.AddrPort{}, err
	}
	rows, err := f.frontends(cmd.Context())
	if err != nil {
		return netip.AddrPort{}, err
	}
	found, dialled, err := choosePort(rows, name, port, protocol)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for _, r := range rows {
		addr, err := netip.ParseAddr(r.Address)
		if r.Service == found && r.Kind == service.ClusterIP.String() && r.Protocol == protocol && err == nil {
			return netip.AddrPortFrom(addr, dialled), nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("service %s has no ClusterIP with port %s", name, port)
}
