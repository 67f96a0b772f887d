package loopback

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/service"
)

// echoUDP answers datagrams with themselves.
func echoUDP(t *testing.T) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			c.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func relayUDP(t *testing.T, free *places) *udpListener {
	t.Helper()
	backend := echoUDP(t)
	l, err := listenUDP(key{Protocol: service.UDP}, slog.New(slog.DiscardHandler), free) // at a port of the kernel's choice
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	l.set(&target{Backends: []service.Backend{{AddrPort: backend}}, Serving: []netip.AddrPort{backend}})
	return l.(*udpListener)
}

// asks sends a datagram from a socket of its own, and waits for the answer.
func asks(t *testing.T, from string, to *udpListener) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from)}, to.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	again(t, c)
	return c
}

func again(t *testing.T, c *net.UDPConn) {
	t.Helper()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 10)); n != 5 || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

func (u *udpListener) count() (sessions int) {
	u.sessionsMu.Lock()
	defer u.sessionsMu.Unlock()
	return len(u.sessions)
}

// One client with many sockets has so many flows and no more, and keeps no other
// from an answer. Who was pushed out is served again when it comes back.
func TestUDPFlowsAreLimited(t *testing.T) {
	const most = 8
	free := newPlaces(most)
	u := relayUDP(t, free)
	first := asks(t, "127.0.0.1", u)
	for range 3 * most {
		asks(t, "127.0.0.1", u)
	}
	if n := u.count(); n != most || free.used.Load() != most {
		t.Errorf("%d flows and %d places in use, want %d", n, free.used.Load(), most)
	}
	again(t, first)
	u.Close()
	for deadline := time.Now().Add(5 * time.Second); free.used.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d places in use after the end", free.used.Load())
		}
	}
}

func TestUDPFlowsOfOneSourceAreLimited(t *testing.T) {
	u := relayUDP(t, newPlaces(maxDatagramFlows))
	other := asks(t, "127.0.0.2", u)
	for range maxOfSource + 10 {
		asks(t, "127.0.0.1", u)
	}
	u.sessionsMu.Lock()
	one, two := u.ofSource[netip.MustParseAddr("127.0.0.1")], u.ofSource[netip.MustParseAddr("127.0.0.2")]
	u.sessionsMu.Unlock()
	if one != maxOfSource || two != 1 {
		t.Errorf("%d flows of the one and %d of the other, want %d and 1", one, two, maxOfSource)
	}
	again(t, other)
}

// Connections beyond the limit are refused; a place that is free again is used.
func TestTCPConnectionsAreLimited(t *testing.T) {
	backend, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	l, err := listenTCP(key{Protocol: service.TCP}, slog.New(slog.DiscardHandler), newPlaces(2))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.set(&target{Backends: []service.Backend{{AddrPort: backend.Addr().(*net.TCPAddr).AddrPort()}}})
	dial := func() (client, server net.Conn) {
		t.Helper()
		client, err := net.Dial("tcp4", l.(*tcpListener).Addr().String())
		if errors.Is(err, unix.ECONNRESET) {
			return nil, nil // refused so soon that the dial was told
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		if err := backend.(*net.TCPListener).SetDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if server, err = backend.Accept(); err == nil {
			t.Cleanup(func() { server.Close() })
		}
		return client, server
	}
	first, firstServer := dial()
	if _, second := dial(); firstServer == nil || second == nil {
		t.Fatal("one of two connections was not relayed")
	}
	if _, third := dial(); third != nil {
		t.Error("a third connection was relayed")
	}
	first.Close()
	firstServer.Close()
	for deadline := time.Now().Add(5 * time.Second); ; {
		if _, fourth := dial(); fourth != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no connection is relayed after one has ended")
		}
	}
}
