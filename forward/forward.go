// Package forward leads a local listener to an endpoint of a Service or to a
// Pod, for debugging: what kubectl port-forward and kubectl proxy do, from a
// node. Each connection, each client of UDP, and each request goes to an
// endpoint of its own.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Pick chooses an endpoint for a connection.
type Pick func(context.Context) (netip.AddrPort, error)

const (
	dialTimeout = 10 * time.Second
	// udpIdle ends what a client of UDP began.
	udpIdle = time.Minute
	// MaxOpen is how many connections, or clients of UDP, a listener serves at a time: what
	// comes beyond that is refused, so that no client takes the files of all others.
	MaxOpen = 1024
	// maxDatagram is the largest payload of UDP.
	maxDatagram = 65535
)

// Listener is a local address that leads to endpoints.
type Listener struct {
	Log  *slog.Logger
	Pick Pick

	tcp net.Listener
	udp *net.UDPConn

	most int // MaxOpen, but in tests
}

// Listen binds an address over "tcp" or "udp"; port 0 is any free one.
func Listen(network, address string, pick Pick, log *slog.Logger) (*Listener, error) {
	l := &Listener{Log: log, Pick: pick, most: MaxOpen}
	var err error
	if network == "udp" {
		var a *net.UDPAddr
		if a, err = net.ResolveUDPAddr(network, address); err == nil {
			l.udp, err = net.ListenUDP(network, a)
		}
	} else {
		l.tcp, err = net.Listen(network, address)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return l, nil
}

// Addr is where it listens.
func (l *Listener) Addr() net.Addr {
	if l.udp != nil {
		return l.udp.LocalAddr()
	}
	return l.tcp.Addr()
}

// Run serves until ctx ends, and ends all that was begun.
func (l *Listener) Run(ctx context.Context) error {
	if l.udp != nil {
		return l.runUDP(ctx)
	}
	stop := context.AfterFunc(ctx, func() { l.tcp.Close() })
	defer stop()
	var open sync.WaitGroup
	defer open.Wait()
	room := make(chan struct{}, l.most)
	for {
		c, err := l.tcp.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		client := c.(*net.TCPConn)
		select {
		case room <- struct{}{}:
			open.Go(func() { defer func() { <-room }(); l.relay(ctx, client) })
		default:
			l.Log.Warn("connection is refused: too many are open", "client", client.RemoteAddr(), "most", l.most)
			client.SetLinger(0) // a reset tells it at once
			client.Close()
		}
	}
}

// relay joins a client to an endpoint until both have ended.
func (l *Listener) relay(ctx context.Context, client *net.TCPConn) {
	defer client.Close()
	c, to, err := l.dial(ctx, "tcp")
	if err != nil {
		l.Log.Warn("connection cannot be led on", "client", client.RemoteAddr(), "error", err)
		client.SetLinger(0) // the client shall see that it failed
		return
	}
	server := c.(*net.TCPConn)
	defer server.Close()
	l.Log.Debug("connection", "client", client.RemoteAddr(), "endpoint", to)
	stop := context.AfterFunc(ctx, func() { client.Close(); server.Close() })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { pour(server, client) })
	both.Go(func() { pour(client, server) })
	both.Wait()
}

// pour copies one direction, and passes its end on.
func pour(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close() // a reset ends both
		return
	}
	_ = to.CloseWrite() // if it is gone, so is the other direction
}

func (l *Listener) dial(ctx context.Context, network string) (net.Conn, netip.AddrPort, error) {
	to, err := l.Pick(ctx)
	if err != nil {
		return nil, to, err
	}
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, network, to.String())
	return c, to, err
}

// runUDP keeps a socket towards an endpoint for each client.
func (l *Listener) runUDP(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { l.udp.Close() })
	defer stop()
	var mu sync.Mutex // guards clients
	clients := map[netip.AddrPort]net.Conn{}
	var open sync.WaitGroup
	defer open.Wait()
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := l.udp.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil {
			mu.Lock()
			for _, c := range clients {
				c.Close()
			}
			mu.Unlock()
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		mu.Lock()
		c, full := clients[from], len(clients) >= l.most
		mu.Unlock()
		if c == nil && full {
			l.Log.Debug("datagram is dropped: too many clients", "client", from, "most", l.most)
			continue
		}
		if c == nil {
			if c, _, err = l.dial(ctx, "udp"); err != nil {
				l.Log.Warn("datagram cannot be led on", "client", from, "error", err)
				continue
			}
			mu.Lock()
			clients[from] = c
			mu.Unlock()
			open.Go(func() {
				l.answer(from, c)
				mu.Lock()
				delete(clients, from)
				mu.Unlock()
			})
		}
		_ = c.SetReadDeadline(time.Now().Add(udpIdle)) // it was just made, or is closed and about to go
		if _, err := c.Write(buf[:n]); err != nil {
			l.Log.Warn("datagram cannot be led on", "client", from, "error", err)
		}
	}
}

// answer takes an endpoint's datagrams back until nothing comes for long.
func (l *Listener) answer(client netip.AddrPort, c net.Conn) {
	defer c.Close()
	buf := make([]byte, maxDatagram)
	for {
		n, err := c.Read(buf)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) && !isTimeout(err) {
				l.Log.Warn("endpoint does not answer", "client", client, "error", err)
			}
			return
		}
		if _, err := l.udp.WriteToUDPAddrPort(buf[:n], client); err != nil {
			return
		}
		_ = c.SetReadDeadline(time.Now().Add(udpIdle)) // as above
	}
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
