package loopback

import (
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// tcpListener relays connections.
type tcpListener struct {
	*net.TCPListener
	chooser
	network string
	log     *slog.Logger
	free    *places // shared with other listeners
}

func listenTCP(k key, log *slog.Logger, free *places) (listener, error) {
	l, err := net.ListenTCP(network(k), net.TCPAddrFromAddrPort(k.addr()))
	if err != nil {
		return nil, err
	}
	t := &tcpListener{TCPListener: l, network: network(k), log: log, free: free}
	go t.accept()
	return t, nil
}

// acceptPause is the wait after an error, of which running out of file
// descriptors is the likely one.
const acceptPause = 100 * time.Millisecond

func (t *tcpListener) accept() {
	for {
		client, err := t.AcceptTCP()
		switch {
		case closed(err):
			return
		case err != nil:
			t.log.Warn("node port on loopback", "address", t.Addr(), "error", err)
			time.Sleep(acceptPause)
		case !t.free.take():
			t.log.Debug("node port on loopback", "address", t.Addr(), "error", errFull)
			_ = client.SetLinger(0) // refused, as far as that can be done now
			_ = client.Close()
		default:
			go func() {
				defer t.free.release()
				t.relay(client)
			}()
		}
	}
}

// relay joins a client to a backend until both have said all. A backend that
// cannot be reached is a reset for the client.
func (t *tcpListener) relay(client *net.TCPConn) {
	backend := t.pick(time.Now())
	conn, err := net.DialTimeout(t.network, backend.String(), dialTimeout)
	if err != nil {
		t.log.Debug("node port on loopback: backend is not reached", "backend", backend, "error", err)
		_ = client.SetLinger(0) // what can be done for the client is done by closing
		_ = client.Close()
		return
	}
	server := conn.(*net.TCPConn) // what dialling TCP returns
	var both sync.WaitGroup
	both.Go(func() { pour(server, client) })
	both.Go(func() { pour(client, server) })
	both.Wait()
	_ = client.Close()
	_ = server.Close()
}

// pour copies until from ends, and passes that on. A connection that breaks is
// broken at the other side too.
func pour(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		for _, c := range []*net.TCPConn{to, from} {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
		return
	}
	_ = to.CloseWrite() // it may be gone by now
}
