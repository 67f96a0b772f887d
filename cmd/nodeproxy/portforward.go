package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/forward"
	"github.com/nodeproxy/nodeproxy/health"
	"github.com/nodeproxy/nodeproxy/service"
)

// forwarding is one port that port-forward was asked for.
type forwarding struct {
	local    string // port; 0 for any
	port     string
	protocol string // TCP or UDP
}

func newPortForwardCommand() *cobra.Command {
	var f endpointFinder
	var namespace string
	var addresses []string
	cmd := &cobra.Command{
		Use:   "port-forward svc/NAME|pod/NAME [LOCAL:]PORT[/UDP]...",
		Short: "Forward local ports to a Service or Pod",
		Long: `Listen on local ports, and lead each connection, or each client of UDP, from this node to a
ready endpoint of a Service, or to a Pod, until interrupted. For debugging without exposing
anything: it listens on loopback unless told otherwise. A Service's ports are given by
number or name, a Pod's by number; LOCAL is the same number unless given, and 0 any free one.`,
		Example: `  nodeproxy port-forward svc/web 8080:80
  nodeproxy port-forward -n kube-system svc/kube-dns 5353:53/UDP
  nodeproxy port-forward pod/web-1 :8080`,
		Args: portForwardArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, name, err := parseTarget(args[0])
			if err != nil {
				return err
			}
			var ports []forwarding
			for _, arg := range args[1:] {
				p, err := parseForwarding(arg)
				if err != nil {
					return err
				}
				ports = append(ports, p)
			}
			if err := f.open(cmd); err != nil {
				return err
			}
			return f.forward(cmd, kind, service.Name{Namespace: namespace, Name: name}, addresses, ports)
		},
		ValidArgsFunction: completeTargets(&f.instance, &namespace),
	}
	registerInstance(cmd.Flags(), &f.instance)
	f.pods.register(cmd.Flags())
	registerNamespace(cmd, &namespace, &f.instance)
	cmd.Flags().StringSliceVar(&addresses, "address", []string{"127.0.0.1"}, "addresses to listen on; any other than loopback exposes the endpoint to the network")
	return cmd
}

// portForwardArgs says which of the two is missing.
func portForwardArgs(_ *cobra.Command, args []string) error {
	switch len(args) {
	case 0:
		return errors.New("forward to what? nodeproxy port-forward svc/web 8080:80")
	case 1:
		if _, _, err := parseTarget(args[0]); err != nil {
			return err
		}
		return fmt.Errorf("which port? nodeproxy port-forward %s 8080:80", args[0])
	}
	return nil
}

func registerNamespace(cmd *cobra.Command, namespace, instance *string) {
	cmd.Flags().StringVarP(namespace, "namespace", "n", "default", "namespace of the Service or Pod")
	if err := cmd.RegisterFlagCompletionFunc("namespace", completeNamespaces(instance)); err != nil {
		panic(err) // the flag is there
	}
}

// parseTarget reads svc/NAME or pod/NAME.
func parseTarget(s string) (kind, name string, err error) {
	kind, name, ok := strings.Cut(s, "/")
	switch kind {
	case "svc", "service", "services":
		kind = "services"
	case "pod", "pods", "po":
		kind = "pods"
	default:
		ok = false
	}
	if !ok || name == "" {
		return "", "", fmt.Errorf("%q: use svc/NAME or pod/NAME", s)
	}
	return kind, name, nil
}

// parseForwarding reads [LOCAL:]PORT[/UDP].
func parseForwarding(s string) (f forwarding, err error) {
	fail := func() (forwarding, error) {
		return f, fmt.Errorf("port %q: use [LOCAL:]PORT, and /UDP for UDP, such as 8080:80 or :53/UDP", s)
	}
	ports, protocol, ok := strings.Cut(s, "/")
	f.protocol = strings.ToUpper(protocol)
	if !ok {
		f.protocol = "TCP"
	}
	local, port, both := strings.Cut(ports, ":")
	if !both {
		port = local
	}
	if strings.Contains(port, ":") {
		return fail()
	}
	f.local, f.port = local, port
	if both && local == "" {
		f.local = "0"
	}
	if f.port == "" || f.protocol != "TCP" && f.protocol != "UDP" {
		return fail()
	}
	if _, err := strconv.ParseUint(f.local, 10, 16); err != nil {
		if both {
			return fail()
		}
		f.local = "0" // a port by name
	}
	return f, nil
}

// forward listens until the command is interrupted.
func (f *endpointFinder) forward(cmd *cobra.Command, kind string, name service.Name, addresses []string, ports []forwarding) error {
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	group, ctx := errgroup.WithContext(cmd.Context())
	for _, p := range ports {
		pick := func(ctx context.Context) (netip.AddrPort, error) { return f.ofService(ctx, name, p.port, p.protocol) }
		if kind == "pods" {
			at, err := f.ofPod(ctx, name, p.port)
			if err != nil {
				return err
			}
			pick = func(context.Context) (netip.AddrPort, error) { return at, nil }
		} else if _, err := pick(ctx); err != nil { // what cannot work is said at once
			return err
		}
		for _, address := range addresses {
			if address == "localhost" {
				address = "127.0.0.1"
			}
			l, err := forward.Listen(strings.ToLower(p.protocol), net.JoinHostPort(address, p.local), pick, log)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Forwarding from %s/%s -> %s %s port %s\n", l.Addr(), p.protocol, strings.TrimSuffix(kind, "s"), name, p.port)
			group.Go(func() error { return l.Run(ctx) })
		}
	}
	return group.Wait()
}

func newProxyCommand() *cobra.Command {
	var f endpointFinder
	var address string
	var port uint16
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Serve the web pages of Services and Pods on loopback, under the API server's paths",
		Long: `Serve HTTP, and lead requests for
  /api/v1/namespaces/NAMESPACE/services/[https:]NAME[:PORT]/proxy/PATH
  /api/v1/namespaces/NAMESPACE/pods/[https:]NAME:PORT/proxy/PATH
from this node to a ready endpoint of the Service, or to the Pod: the paths of kubectl proxy,
without the API server on the way. Certificates of https: endpoints are not looked at, as
the API server does not. Requests by another name than localhost are refused.`,
		Example: "  nodeproxy proxy --port 8001\n  curl http://127.0.0.1:8001/api/v1/namespaces/default/services/web:80/proxy/",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.open(cmd); err != nil {
				return err
			}
			return f.serveProxy(cmd, net.JoinHostPort(address, strconv.Itoa(int(port))))
		},
	}
	registerInstance(cmd.Flags(), &f.instance)
	f.pods.register(cmd.Flags())
	cmd.Flags().StringVar(&address, "address", "127.0.0.1", "address to listen on; any other than loopback exposes every Service to the network")
	cmd.Flags().Uint16VarP(&port, "port", "p", 8001, "port to listen on; 0 for any")
	return cmd
}

func (f *endpointFinder) serveProxy(cmd *cobra.Command, at string) error {
	l, err := new(net.ListenConfig).Listen(cmd.Context(), "tcp", at)
	if err != nil {
		return listenError(at, err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "Starting to serve on %s\n", l.Addr())
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, Handler: &forward.Proxy{Find: func(r *http.Request, t forward.Target) (netip.AddrPort, error) {
		name := service.Name{Namespace: t.Namespace, Name: t.Name}
		if t.Kind == "pods" {
			at, err := f.ofPod(r.Context(), name, t.Port)
			if err != nil && !errors.Is(err, admin.ErrNoAgent) {
				err = forward.NotFoundError{What: err.Error()}
			}
			return at, err
		}
		return f.ofService(r.Context(), name, t.Port, service.TCP.String())
	}}}
	stop := context.AfterFunc(cmd.Context(), func() { srv.Close() })
	defer stop()
	if err := srv.Serve(health.LimitConnections(l, forward.MaxOpen)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// listenError says what to do about an address that cannot be listened on.
func listenError(at string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s is in use by another process: use --port", at)
	}
	var op *net.OpError
	if errors.As(err, &op) { // it names the address too
		err = op.Err
	}
	return fmt.Errorf("listen on %s: %w", at, err)
}
