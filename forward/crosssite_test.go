package forward

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// A page of another site cannot make a browser ask, by any method, nor open a
// websocket; who is asked from our own page, or is no browser, can.
func TestCrossSiteRequestsAreRefused(t *testing.T) {
	asked := 0
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		if r.Header.Get("Upgrade") != "" {
			c, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
				c.Close()
			}
		}
	}))
	defer backend.Close()
	at := netip.MustParseAddrPort(backend.Listener.Addr().String())
	front := httptest.NewServer(&Proxy{Find: func(*http.Request, Target) (netip.AddrPort, error) { return at, nil }})
	defer front.Close()
	host := front.Listener.Addr().String()
	upgrade := "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	for name, c := range map[string]struct {
		method, host, headers, status string
	}{
		"no browser":             {"GET", host, "", "200"},
		"no browser, POST":       {"POST", host, "", "200"},
		"own page":               {"POST", host, "Origin: http://" + host + "\r\nSec-Fetch-Site: same-origin\r\n", "200"},
		"typed by a person":      {"GET", host, "Sec-Fetch-Site: none\r\n", "200"},
		"websocket of own page":  {"GET", host, "Origin: http://" + host + "\r\n" + upgrade, "101"},
		"websocket of a program": {"GET", host, upgrade, "101"},
		"GET of another site":    {"GET", host, "Sec-Fetch-Site: cross-site\r\n", "403"},
		"POST of another site":   {"POST", host, "Origin: https://example.com\r\n", "403"},
		"same site, other port":  {"POST", host, "Origin: http://127.0.0.1:1\r\nSec-Fetch-Site: same-site\r\n", "403"},
		"a sandboxed page":       {"POST", host, "Origin: null\r\n", "403"},
		"two origins":            {"POST", host, "Origin: http://" + host + "\r\nOrigin: https://example.com\r\n", "403"},
		"websocket of another":   {"GET", host, "Origin: https://example.com\r\n" + upgrade, "403"},
		"DNS rebinding":          {"GET", "example.com", "", "403"},
	} {
		before := asked
		if status := askRaw(t, host, fmt.Sprintf("%s /api/v1/namespaces/a/services/b/proxy/ HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\n%s\r\n", c.method, c.host, c.headers)); status != c.status {
			t.Errorf("%s: %s, want %s", name, status, c.status)
		}
		if reached := asked > before; reached != (c.status != "403") {
			t.Errorf("%s: the Service was asked: %t", name, reached)
		}
	}
}

// askRaw sends a request as it is, and returns the status of the answer.
func askRaw(t *testing.T, to, request string) string {
	t.Helper()
	c, err := net.Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	words := strings.Fields(line)
	if err != nil || len(words) < 2 {
		t.Fatalf("%q: %v", line, err)
	}
	return words[1]
}
