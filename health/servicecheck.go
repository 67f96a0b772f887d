// Package health answers whether this node and its Services are well, to load
// balancers and to the kubelet, as kube-proxy does.
package health

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync/atomic"

	"github.com/nodeproxy/nodeproxy/service"
)

// ServiceChecks serves the health-check node ports of Services whose external
// policy is Local: a load balancer asks each node whether it has a local
// endpoint (docs/kube-proxy.md, "Health servers"). Update and Close must not be
// called concurrently; answers are given concurrently with both.
type ServiceChecks struct {
	// Healthy tells whether the proxy itself is well.
	Healthy func() bool
	// Failed, if set, is told of a port that cannot be bound; it is tried
	// again at the next Update.
	Failed func(svc service.Name, err error)
	Log    *slog.Logger

	servers map[checkKey]*checkServer
}

// checkKey is one listener: the address is invalid for all of a family.
type checkKey struct {
	service service.Name
	family  service.Family
	addr    netip.Addr
	port    uint16
}

// checkServer answers for one Service in one family.
type checkServer struct {
	server *http.Server
	state  atomic.Pointer[checkState] // what is answered now
}

// checkState is what the answer says.
type checkState struct {
	service   service.Name
	endpoints int
}

// checkBody is the answer, as load balancers read it.
type checkBody struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int  `json:"localEndpoints"`
	ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
}

// Update opens, closes and refreshes listeners so that they are those of the
// Table.
func (s *ServiceChecks) Update(table *service.Table) {
	if s.servers == nil {
		s.servers = map[checkKey]*checkServer{}
	}
	wanted := map[checkKey]checkState{}
	for name, res := range table.Services {
		if res.HealthCheck != nil {
			s.want(wanted, &table.Node, name, res)
		}
	}
	for key, srv := range s.servers {
		if _, ok := wanted[key]; !ok {
			srv.server.Close()
			delete(s.servers, key)
		}
	}
	for key, state := range wanted {
		srv := s.servers[key]
		if srv == nil {
			var err error
			if srv, err = s.listen(key, &state); err != nil {
				s.Log.Warn("health-check node port is not served", "service", key.service.String(), "port", key.port, "error", err)
				if s.Failed != nil {
					s.Failed(key.service, err)
				}
				continue
			}
			s.servers[key] = srv
			continue
		}
		srv.state.Store(&state)
	}
}

// want adds a listener for each address of a Service's families that carries
// node ports.
func (s *ServiceChecks) want(wanted map[checkKey]checkState, node *service.NodeFacts, name service.Name, res *service.Resolved) {
	families := map[service.Family]bool{}
	for i := range res.Ports {
		families[res.Ports[i].Family] = true
	}
	for f := range families {
		state := checkState{name, res.HealthCheck.LocalEndpoints[f]}
		on := node.NodePorts[f]
		addrs := on.Addrs
		if on.All {
			addrs = []netip.Addr{{}}
		}
		for _, a := range addrs {
			wanted[checkKey{name, f, a, res.HealthCheck.Port}] = state
		}
	}
}

func (s *ServiceChecks) listen(key checkKey, state *checkState) (*checkServer, error) {
	network, host := "tcp4", ""
	if key.family == service.IPv6 {
		network = "tcp6" // without IPv4, which has a listener and a count of its own
	}
	if key.addr.IsValid() {
		host = key.addr.String()
	}
	l, err := net.Listen(network, net.JoinHostPort(host, strconv.Itoa(int(key.port))))
	if err != nil {
		return nil, fmt.Errorf("listen on health-check node port: %w", err)
	}
	srv := &checkServer{}
	srv.state.Store(state)
	srv.server = NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { s.answer(w, srv.state.Load()) }))
	go func() {
		if err := srv.server.Serve(LimitConnections(l, MaxConnections)); !errors.Is(err, http.ErrServerClosed) {
			s.Log.Error("health-check node port", "service", key.service.String(), "port", key.port, "error", err)
		}
	}()
	return srv, nil
}

func (s *ServiceChecks) answer(w http.ResponseWriter, state *checkState) {
	var body checkBody
	body.Service.Namespace, body.Service.Name = state.service.Namespace, state.service.Name
	body.LocalEndpoints = state.endpoints
	body.ServiceProxyHealthy = s.Healthy()
	text, err := json.MarshalIndent(body, "", "\t")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(state.endpoints))
	if state.endpoints > 0 && body.ServiceProxyHealthy {
		w.WriteHeader(http.StatusOK)
	} else {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	w.Write(text)
}

// Close stops all listeners.
func (s *ServiceChecks) Close() {
	s.Update(&service.Table{})
}
