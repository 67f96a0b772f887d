package health

import (
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// Who holds many connections open keeps nobody from an answer.
func TestHeldConnectionsKeepNobodyOut(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const most = 20
	srv := NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }))
	go srv.Serve(LimitConnections(inner, most))
	defer srv.Close()
	var held []net.Conn
	for i := range 5 * most {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 0 { // half a request
			if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost:"); err != nil {
				t.Fatal(err)
			}
		}
		held = append(held, c)
	}
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for range 3 {
		answer, err := client.Get("http://" + inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
	}
	closed := 0
	for _, c := range held {
		if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil && !isTimeout(err) {
			closed++
		}
	}
	if least := len(held) - most; closed < least {
		t.Errorf("%d of %d held connections were closed, want at least %d", closed, len(held), least)
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// A connection that asks nothing is cut off.
func TestServerCutsOffWhoAsksNothing(t *testing.T) {
	srv := NewServer(http.NotFoundHandler())
	if srv.ReadHeaderTimeout <= 0 || srv.ReadTimeout <= 0 || srv.IdleTimeout <= 0 || srv.MaxHeaderBytes <= 0 {
		t.Fatalf("a time or size is not limited: %+v", srv)
	}
	srv.ReadHeaderTimeout, srv.IdleTimeout = 100*time.Millisecond, 100*time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(LimitConnections(l, MaxConnections))
	defer srv.Close()
	for name, text := range map[string]string{"silent": "", "half a request": "GET / HTT", "idle": "GET / HTTP/1.1\r\nHost: x\r\n\r\n"} {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Errorf("%s: %v, want the end of the connection", name, err)
		}
	}
}
