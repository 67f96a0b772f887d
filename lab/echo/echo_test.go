package echo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

func TestParseAnswer(t *testing.T) {
	a, rest, err := parseAnswer("pod-a1 [fd00::1]:7 pay load\n")
	if err != nil || a.Name != "pod-a1" || a.Source != netip.MustParseAddrPort("[fd00::1]:7") || rest != "pay load" {
		t.Errorf("got %v, rest %q, error %v", a, rest, err)
	}
	if got, _, err := parseAnswer(a.String()); err != nil || got != a {
		t.Errorf("String does not parse back: %v, %v", got, err)
	}
	for _, bad := range []string{"", "\n", "pod-a1", "pod-a1 nowhere"} {
		if _, _, err := parseAnswer(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// TestRemote checks the way there and back, with a server that knows one name.
func TestRemote(t *testing.T) {
	server := listen(t, func(c net.Conn) {
		fmt.Fprintln(c, Answer{Name: "pod-x", Source: c.RemoteAddr().(*net.TCPAddr).AddrPort()})
		_, _ = io.Copy(c, c)
	})
	mute := listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	closed := listen(t, nil)

	in, toServer := io.Pipe()
	fromServer, out := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- ServeDialer(in, out); out.Close() }()
	remote := NewRemote(toServer, fromServer)

	answer, err := remote.Dial(t.Context(), Request{Network: TCP, To: server})
	if err != nil || answer.Name != "pod-x" || answer.Source.Addr() != server.Addr() {
		t.Errorf("answer %v, error %v", answer, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := remote.Dial(ctx, Request{Network: TCP, To: mute}); !IsTimeout(err) {
		t.Errorf("a server that says nothing: %v, want a timeout", err)
	}
	_, err = remote.Dial(t.Context(), Request{Network: TCP, To: closed})
	if !errors.Is(err, syscall.ECONNREFUSED) || IsTimeout(err) {
		t.Errorf("a closed port: %v, want refused", err)
	}
	if err := errors.Join(remote.Close(), <-ended); err != nil {
		t.Error(err)
	}
	if _, err := remote.Dial(t.Context(), Request{Network: TCP, To: server}); err == nil {
		t.Error("dialled after Close")
	}
}

// listen serves on a port of the loopback, which is closed again at once if
// serve is nil.
func listen(t *testing.T, serve func(net.Conn)) netip.AddrPort {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if serve == nil {
		l.Close()
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}
