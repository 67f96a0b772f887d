package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/nodeproxy/nodeproxy/health"
)

// bindRetry is how often an address that cannot be bound is tried again
// (kube-proxy's time).
const bindRetry = 5 * time.Second

// withPort appends a port to an address that has none, as kube-proxy does.
// Anything else stays as it is, to be judged by [checkBindAddress].
func withPort(s string, port int) string {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return net.JoinHostPort(a.String(), strconv.Itoa(port))
	}
	return s
}

// checkBindAddress returns what is wrong with an address to serve on. Empty
// means not to serve.
func checkBindAddress(s string) error {
	if s == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err == nil && host != "" {
		_, err = netip.ParseAddr(host)
	}
	if err != nil {
		return errors.New("use an IP address, or ADDRESS:PORT such as 127.0.0.1:10249")
	}
	return nil
}

// server is an HTTP server that is not worth ending for, unless hardFail.
type server struct {
	what     string
	addr     string
	handler  http.Handler
	hardFail bool
	slow     bool // answers may take long, as a profile does
	// failed, if set, is told that the address cannot be bound.
	failed func(error)
	log    *slog.Logger
}

// run serves until ctx ends.
func (s *server) run(ctx context.Context) error {
	if s.addr == "" {
		return nil
	}
	l, err := s.listen(ctx)
	if err != nil || l == nil {
		return err
	}
	srv := health.NewServer(s.handler)
	if s.slow {
		srv.ReadTimeout = 0
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(health.LimitConnections(l, health.MaxConnections)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", s.what, err)
	}
	return nil
}

// listen binds the address, in as many tries as it takes; nil if ctx ends.
func (s *server) listen(ctx context.Context) (net.Listener, error) {
	said := false
	for {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", s.addr)
		switch {
		case err == nil:
			return l, nil
		case ctx.Err() != nil:
			return nil, nil
		}
		if !said && s.failed != nil {
			s.failed(err)
		}
		if s.hardFail {
			return nil, fmt.Errorf("serve %s: %w", s.what, err)
		}
		if !said {
			s.log.Error("address cannot be bound; trying again", "for", s.what, "error", err, "every", bindRetry)
			said = true
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(bindRetry):
		}
	}
}

// addProfiling adds what --profiling asks for.
func addProfiling(mux *http.ServeMux) {
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
}
