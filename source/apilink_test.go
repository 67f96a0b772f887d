package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

// An API server that cannot be used is told in one short line: its address, the cause,
// and what to do. All of them are real: nobody listens, nobody answers, a certificate
// nobody knows, a name that does not exist, a server of plain HTTP, one that refuses.
func TestUnreachableAPIServerIsOneShortLine(t *testing.T) {
	quiet := log.New(io.Discard, "", 0)
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = quiet
	secure.StartTLS()
	defer secure.Close()
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintln(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"forbidden: user \"u\" cannot list"}`)
	}))
	defer refusing.Close()
	plain := strings.Replace(refusing.URL, "http:", "https:", 1)
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := "http://" + mute.Addr().String()
	mute.Close()
	for name, c := range map[string]struct{ server, cause, remedy string }{
		"nobody listens":      {gone, "connection refused", "that it runs"},
		"unknown certificate": {secure.URL, "certificate", "the certificates and the scheme"},
		"plain HTTP":          {plain, "HTTP response to HTTPS client", "the certificates and the scheme"},
		"no such name":        {"https://no-such-host.invalid:6443", "no-such-host.invalid", "the host name in --kubeconfig"},
		"refused":             {refusing.URL, "forbidden", "rbac.yaml"},
	} {
		client, err := ClientOptions{Master: c.server, QPS: 100, Burst: 100}.Client()
		if err != nil {
			t.Fatal(err)
		}
		out := &safeBuffer{}
		k := &Kubernetes{Client: client, NodeName: "node-a", Log: slog.New(slog.NewTextHandler(out, nil))}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- k.Run(ctx, func(service.Changes) { t.Errorf("%s: something was reported", name) }) }()
		for deadline := time.Now().Add(20 * time.Second); !strings.Contains(out.String(), "level=ERROR"); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: nothing was said:\n%s", name, out.String())
			}
		}
		for deadline := time.Now().Add(5 * time.Second); strings.HasPrefix(k.Health().Problem, "waiting"); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: status says nothing", name)
			}
		}
		status := k.Health().Problem
		cancel()
		<-ended
		line, _, _ := strings.Cut(out.String(), "\n")
		for where, text := range map[string]string{"log": line, "status": status} {
			if !strings.Contains(text, c.cause) || !strings.Contains(text, c.remedy) {
				t.Errorf("%s: %s says %q, want %q and %q", name, where, text, c.cause, c.remedy)
			}
			if c.cause != "forbidden" && (!strings.Contains(text, c.server) || strings.Contains(text, "?") || len(text) > 350) {
				t.Errorf("%s: %s is %d characters, want less, with %s and no query:\n%s", name, where, len(text), c.server, text)
			}
		}
		if n := strings.Count(out.String(), "level=ERROR"); c.cause != "forbidden" && n != 1 {
			t.Errorf("%s: %d lines, want one:\n%s", name, n, out.String())
		}
	}
}

// A time-out is named as one, and the error still wraps its cause.
func TestAPIErrorKeepsItsCause(t *testing.T) {
	cause := &url.Error{Op: "Get", URL: "https://10.0.0.1:6443/api/v1/nodes?limit=500", Err: context.DeadlineExceeded}
	err := apiError("list", "Node", cause)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "cannot reach the API server at https://10.0.0.1:6443: no answer in time;") {
		t.Errorf("%v", err)
	}
}
