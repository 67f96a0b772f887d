package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

// Server answers on a socket.
type Server struct {
	Path string
	// Status tells how the agent is; what the Table says is added.
	Status func() Status
	// Inspect delivers functions to the goroutine that owns the Table; see
	// dataplane.Loop.
	Inspect chan<- func(*service.Table)
	// Kernel shows what the kernel holds; nil if the mode cannot.
	Kernel Kernel
	// Verify compares the kernel with what it should hold; it is called where the
	// Table may be looked at.
	Verify func(context.Context) ([]view.Difference, error)
	// Repair asks for a full sync, and returns how that went.
	Repair func(context.Context) error
	// Pod finds the addresses of a Pod in the agent's source.
	Pod func(context.Context, service.Name) ([]netip.Addr, error)
	// NextHop is called for each endpoint that an explanation names; nil for none.
	NextHop Hop
	// Leaves names the interface by which this node forwards packets to an
	// address, "" where it does not; nil for not known.
	Leaves func(netip.Addr) string
	// Loopback tells how a packet to a node port on loopback is served; it is
	// called where the Table may be looked at.
	Loopback func(service.Packet) Loopback
	// Sockets reports whether programs at sockets translate, which only eBPF mode has; nil
	// for no.
	Sockets func() bool
	// Watch tells of what happens until ctx ends, and calls ready when it does.
	Watch func(ctx context.Context, ready func(), emit func(view.Event)) error
}

// Kernel reads what a mode has in the kernel. Its methods are called
// concurrently.
type Kernel interface {
	Services(context.Context) ([]view.Frontend, error)
	Backends(context.Context) ([]view.Backend, error)
	Flows(context.Context) ([]view.Flow, error)
	Affinities(context.Context) ([]view.Affinity, error)
	Counts(context.Context) ([]view.Count, error)
	// Explain tells what happens to the first packet of a flow.
	Explain(context.Context, service.Packet) (view.Answer, error)
}

// Paths of what a Kernel shows.
const (
	PathServices   = "/v1/services"
	PathBackends   = "/v1/backends"
	PathFlows      = "/v1/flows"
	PathAffinities = "/v1/affinity"
	PathCounts     = "/v1/counts"
	PathPod        = "/v1/pod"
)

// errNothing is told to who asks before there is an answer.
var errNothing = errors.New("nothing was listed yet")

// errBusy answers a question that comes while the Table cannot be read.
var errBusy = errors.New("the agent is busy with a sync that takes long: see nodeproxy status, and ask again")

const (
	// statusPatience is how long a status waits for the Table: it is asked when
	// something is wrong, and must answer while a sync hangs.
	statusPatience = 2 * time.Second
	// tablePatience is how long other questions do.
	tablePatience = 15 * time.Second
)

// Run serves until ctx ends. A socket of that path, left by an agent that was
// killed, is replaced: only one agent can have the node's lock.
func (s *Server) Run(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(s.Path), 0o700); err != nil {
		return fmt.Errorf("make directory of the socket: %w", err)
	}
	if err := os.Remove(s.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old socket: %w", err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", s.Path)
	if err != nil {
		return fmt.Errorf("listen on socket: %w", err)
	}
	defer os.Remove(filepath.Dir(s.Path)) // if it was the last
	if err := os.Chmod(s.Path, 0o600); err != nil {
		return errors.Join(fmt.Errorf("protect socket: %w", err), l.Close())
	}
	srv := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve socket: %w", err)
	}
	return nil
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		status := s.Status()
		err := s.inspectWithin(r.Context(), statusPatience, status.Fill)
		status.Uncounted = errors.Is(err, errBusy) || errors.Is(err, errNothing)
		if status.Uncounted {
			err = nil
		}
		status.SetConditions(time.Now())
		answer(w, status, err)
	})
	if k := s.Kernel; k != nil {
		show(mux, PathServices, k.Services)
		show(mux, PathBackends, k.Backends)
		show(mux, PathFlows, k.Flows)
		show(mux, PathAffinities, k.Affinities)
		show(mux, PathCounts, k.Counts)
	}
	if s.Watch != nil {
		mux.Handle("GET "+PathWatch, &hub{watch: s.Watch})
	}
	mux.HandleFunc("GET /v1/verify", func(w http.ResponseWriter, r *http.Request) {
		differences, verifyErr := []view.Difference{}, error(nil)
		err := s.inspect(r.Context(), func(*service.Table) {
			var found []view.Difference
			found, verifyErr = s.Verify(r.Context())
			differences = append(differences, found...)
		})
		answer(w, differences, errors.Join(err, verifyErr))
	})
	mux.HandleFunc("POST /v1/repair", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, s.Repair(r.Context()))
	})
	mux.HandleFunc("GET "+PathPod, func(w http.ResponseWriter, r *http.Request) {
		found, err := s.Pod(r.Context(), service.Name{Namespace: r.URL.Query().Get("namespace"), Name: r.URL.Query().Get("name")})
		answer(w, found, err)
	})
	mux.HandleFunc("GET /v1/explain", func(w http.ResponseWriter, r *http.Request) {
		q, err := ParseQuestion(r.URL.Query())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		e, err := s.explain(r.Context(), q)
		answer(w, e, err)
	})
	return mux
}

// explain asks the Table, and the kernel.
func (s *Server) explain(ctx context.Context, q Question) (e Explanation, err error) {
	leaves := ""
	if s.Leaves != nil {
		leaves = s.Leaves(q.To.Addr())
	}
	var p service.Packet
	var say func() Explanation // where the Table is not waited for
	var socket *SocketAnswer
	err = s.inspect(ctx, func(t *service.Table) {
		p = q.Packet(&t.Node)
		if p.Leaves = leaves; !p.Destination.Addr().IsLoopback() {
			o := t.Judge(p)
			if s.Sockets != nil && s.Sockets() {
				socket = judgeSocket(o, p, isHere(s.NextHop, p), &t.Node)
			}
			say = func() Explanation { return explain(o, p, s.NextHop) }
			return
		}
		var served Loopback
		if s.Loopback != nil {
			served = s.Loopback(p)
		}
		o := judgeLoopback(t, p)
		say = func() Explanation { return o.explain(p, served, s.NextHop) }
	})
	if err != nil {
		return Explanation{}, err
	}
	e = say()
	defer func() { e.takeSocket(socket, p) }()
	if s.Kernel == nil || q.AgentOnly || p.Destination.Addr().IsLoopback() {
		return e, nil // what is served on loopback is not for rules and programs at interfaces
	}
	a, err := s.Kernel.Explain(ctx, p)
	if err != nil {
		return e, fmt.Errorf("ask the kernel: %w", err)
	}
	e.take(a, p)
	return e, nil
}

// show serves rows.
func show[T any](mux *http.ServeMux, path string, read func(context.Context) ([]T, error)) {
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		rows, err := read(r.Context())
		answer(w, rows, err)
	})
}

// inspect runs fn where the Table may be looked at.
func (s *Server) inspect(ctx context.Context, fn func(*service.Table)) error {
	return s.inspectWithin(ctx, tablePatience, fn)
}

// inspectWithin is inspect, and gives up if fn cannot begin within patience.
func (s *Server) inspectWithin(ctx context.Context, patience time.Duration, fn func(*service.Table)) error {
	done := make(chan error, 1)
	select {
	case s.Inspect <- func(t *service.Table) {
		if t == nil {
			done <- errNothing
			return
		}
		fn(t)
		done <- nil
	}:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(patience):
		return errBusy
	}
	return <-done
}

func answer(w http.ResponseWriter, body any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body) // a client that is gone
}

// Question is what explain is asked.
type Question struct {
	From      netip.Addr // invalid for this node itself
	To        netip.AddrPort
	Protocol  service.Protocol
	Interface string // by which the packet comes; empty for a guess
	AgentOnly bool   // the kernel is not to be asked
}

// Values writes the question as a query.
func (q Question) Values() url.Values {
	v := url.Values{"to": {q.To.String()}, "protocol": {q.Protocol.String()}, "interface": {q.Interface}}
	if q.From.IsValid() {
		v.Set("from", q.From.String())
	}
	if q.AgentOnly {
		v.Set("agentOnly", "true")
	}
	return v
}

// ParseQuestion reads what Values wrote.
func ParseQuestion(v url.Values) (q Question, err error) {
	if from := v.Get("from"); from != "" {
		if q.From, err = netip.ParseAddr(from); err != nil {
			return q, fmt.Errorf("from %q: use an IP address", from)
		}
	}
	if q.To, err = netip.ParseAddrPort(v.Get("to")); err != nil {
		return q, fmt.Errorf("to %q: use ADDRESS:PORT", v.Get("to"))
	}
	for _, p := range service.Protocols {
		if p.String() == v.Get("protocol") {
			q.Protocol = p
		}
	}
	if q.Protocol == 0 {
		return q, fmt.Errorf("protocol %q: use TCP, UDP or SCTP", v.Get("protocol"))
	}
	if q.From.IsValid() && service.FamilyOf(q.From) != service.FamilyOf(q.To.Addr()) {
		return q, fmt.Errorf("from %s to %s: one is IPv4 and the other IPv6; use two of one family", q.From, q.To)
	}
	q.Interface, q.AgentOnly = v.Get("interface"), v.Get("agentOnly") == "true"
	return q, nil
}

// Packet is the first packet of the flow that is asked about.
func (q Question) Packet(node *service.NodeFacts) service.Packet {
	p := service.Packet{Source: netip.AddrPortFrom(q.From, 0), Destination: q.To, Protocol: q.Protocol, Interface: q.Interface}
	family := service.FamilyOf(q.To.Addr())
	if !q.From.IsValid() {
		p.Source = netip.AddrPortFrom(relayed[family], 0)
		if local := node.Local[family]; len(local) > 0 && !q.To.Addr().IsLoopback() {
			p.Source = netip.AddrPortFrom(local[0], 0)
		}
		return p
	}
	if p.Interface == "" && !node.IsLocal(q.From) {
		p.Interface = "?" // it comes from elsewhere, by some interface
	}
	return p
}
