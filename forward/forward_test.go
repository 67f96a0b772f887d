package forward

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// run starts a listener that leads to a server.
func run(t *testing.T, network string, to net.Addr) net.Addr {
	t.Helper()
	return runLimited(t, network, to, MaxOpen)
}

func runLimited(t *testing.T, network string, to net.Addr, most int) net.Addr {
	t.Helper()
	l, err := Listen(network, "127.0.0.1:0", func(context.Context) (netip.AddrPort, error) {
		if to == nil {
			return netip.AddrPort{}, errors.New("no endpoint")
		}
		return netip.MustParseAddrPort(to.String()), nil
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l.most = most
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr()
}

// serveTCP has handle serve each connection until the test ends, and returns where.
func serveTCP(t *testing.T, handle func(net.Conn)) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go handle(c)
		}
	}()
	return l.Addr()
}

// What comes beyond a listener's limit is refused at once, over TCP, and dropped, over UDP;
// those that were there are served on, and a place that is free again is taken.
func TestOpenConnectionsAreLimited(t *testing.T) {
	server := serveTCP(t, func(c net.Conn) { defer c.Close(); _, _ = io.Copy(c, c) })
	at := runLimited(t, "tcp", server, 2)
	echo := func(c net.Conn) error {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	dial := func() (net.Conn, error) {
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			return nil, err // a reset may come as early
		}
		t.Cleanup(func() { c.Close() })
		return c, echo(c)
	}
	first, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	second, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dial(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a third connection: %v, want it refused at once", err)
	}
	if err := echo(first); err != nil {
		t.Errorf("the first, beside the third: %v", err)
	}
	second.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := dial(); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("a place that is free again is not taken: %v", err)
		}
	}

	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	go func() {
		buf := make([]byte, 10)
		for {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = packets.WriteTo(buf[:n], from)
		}
	}()
	at = runLimited(t, "udp", packets.LocalAddr(), 2)
	for i, want := range []bool{true, true, false} {
		c, err := net.Dial("udp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(map[bool]time.Duration{true: 10 * time.Second, false: time.Second}[want]))
		_, _ = c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); (err == nil) != want {
			t.Errorf("client %d of UDP: %v, want an answer: %v", i, err, want)
		}
	}
}

// Half of a connection may end before the other.
func TestTCPEndsByHalves(t *testing.T) {
	server := serveTCP(t, func(c net.Conn) {
		all, _ := io.ReadAll(c) // up to the client's end
		fmt.Fprintf(c, "got %d", len(all))
		c.Close()
	})
	c, err := net.Dial("tcp", run(t, "tcp", server).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, strings.Repeat("x", 100000))
	c.(*net.TCPConn).CloseWrite()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if got, err := io.ReadAll(c); err != nil || string(got) != "got 100000" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestNoEndpointIsAReset(t *testing.T) {
	c, err := net.Dial("tcp", run(t, "tcp", nil).String())
	if errors.Is(err, syscall.ECONNRESET) {
		return // it came at once
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := bufio.NewReader(c).ReadByte(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%v, want a reset", err)
	}
}

// Two clients of UDP each get their own answers.
func TestUDP(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		for buf := make([]byte, 100); ; {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			server.WriteTo([]byte("re: "+string(buf[:n])), from)
		}
	}()
	at := run(t, "udp", server.LocalAddr())
	for i := range 2 {
		c, err := net.Dial("udp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		for range 3 {
			fmt.Fprint(c, i)
			buf := make([]byte, 100)
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != fmt.Sprint("re: ", i) {
				t.Errorf("client %d: %q, %v", i, buf[:n], err)
			}
		}
	}
}

func TestPaths(t *testing.T) {
	for path, want := range map[string]Target{
		"/api/v1/namespaces/ns/services/web/proxy":            {"services", "ns", "web", "", false},
		"/api/v1/namespaces/ns/services/web:80/proxy/a/b":     {"services", "ns", "web", "80", false},
		"/api/v1/namespaces/ns/services/https:web:http/proxy": {"services", "ns", "web", "http", true},
		"/api/v1/namespaces/ns/services/https:web/proxy/":     {"services", "ns", "web", "", true},
		"/api/v1/namespaces/ns/pods/web-1:8080/proxy/":        {"pods", "ns", "web-1", "8080", false},
	} {
		if got, _, err := ParsePath(path); err != nil || got != want {
			t.Errorf("%s: %+v, %v", path, got, err)
		}
	}
	for _, path := range []string{"/", "/api/v1/namespaces/ns/services/web", "/api/v1/namespaces/ns/nodes/web/proxy/", "/api/v1/namespaces/ns/services/a:b:c:d/proxy/"} {
		if _, _, err := ParsePath(path); err == nil {
			t.Errorf("%s: no error", path)
		}
	}
}

func TestProxy(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/move" {
			http.Redirect(w, r, "/there?x=1", http.StatusFound)
			return
		}
		fmt.Fprintf(w, "%s %s", r.Method, r.RequestURI)
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	front := httptest.NewServer(&Proxy{Find: func(_ *http.Request, at Target) (netip.AddrPort, error) {
		switch {
		case at.Name != "web":
			return netip.AddrPort{}, errors.New("no such Service")
		case at.TLS:
			return netip.MustParseAddrPort(secure.Listener.Addr().String()), nil
		}
		return netip.MustParseAddrPort(plain.Listener.Addr().String()), nil
	}})
	defer front.Close()
	get := func(path, host string) (int, string, http.Header) {
		req, err := http.NewRequest(http.MethodGet, front.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if host != "" {
			req.Host = host
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, strings.TrimSpace(string(body)), resp.Header
	}
	const at = "/api/v1/namespaces/ns/services/"
	for _, c := range []struct {
		path, host string
		code       int
		body       string
	}{
		{at + "web:80/proxy/a/b%2Fc?q=1", "", 200, "GET /a/b%2Fc?q=1"},
		{at + "https:web:443/proxy", "", 200, "GET /"},
		{at + "other/proxy/", "", 503, "no such Service"},
		{"/healthz", "", 404, ""},
		{at + "web/proxy/", "evil.example", 403, ""},
		{at + "web/proxy/", "localhost:8001", 200, "GET /"},
	} {
		if code, body, _ := get(c.path, c.host); code != c.code || c.body != "" && body != c.body {
			t.Errorf("%s at %q: %d %q", c.path, c.host, code, body)
		}
	}
	if code, _, header := get(at+"web:80/proxy/move", ""); code != 302 || header.Get("Location") != at+"web:80/proxy/there?x=1" {
		t.Errorf("redirect: %d to %q", code, header.Get("Location"))
	}
}
