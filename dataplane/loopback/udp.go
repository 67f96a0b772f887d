package loopback

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// udpIdle is how long a client's backend is kept without a datagram, as
// conntrack keeps a stream.
const udpIdle = 3 * time.Minute

// maxDatagram is the largest payload of UDP.
const maxDatagram = 65535

// udpListener relays datagrams; each client has a socket of its own towards its
// backend.
type udpListener struct {
	*net.UDPConn
	chooser
	network string
	log     *slog.Logger

	sessionsMu sync.Mutex // guards sessions
	sessions   map[netip.AddrPort]*session
}

type session struct {
	conn    *net.UDPConn
	backend netip.AddrPort
}

func listenUDP(k key, log *slog.Logger) (listener, error) {
	c, err := net.ListenUDP(network(k), net.UDPAddrFromAddrPort(k.addr()))
	if err != nil {
		return nil, err
	}
	u := &udpListener{UDPConn: c, network: network(k), log: log, sessions: map[netip.AddrPort]*session{}}
	go u.receive()
	return u, nil
}

// Close ends the listener, and its clients' sockets with it: their answers
// could not be sent any more.
func (u *udpListener) Close() error {
	err := u.UDPConn.Close()
	u.sessionsMu.Lock()
	defer u.sessionsMu.Unlock()
	for client, s := range u.sessions {
		_ = s.conn.Close() // only read from
		delete(u.sessions, client)
	}
	return err
}

func (u *udpListener) receive() {
	buf := make([]byte, maxDatagram)
	for {
		n, client, err := u.ReadFromUDPAddrPort(buf)
		switch {
		case closed(err):
			return
		case err != nil:
			u.log.Warn("node port on loopback", "address", u.LocalAddr(), "error", err)
			time.Sleep(acceptPause)
			continue
		}
		s, err := u.session(client)
		if err == nil {
			_, err = s.conn.Write(buf[:n])
		}
		if err != nil { // a datagram may be lost
			u.log.Debug("node port on loopback: datagram is lost", "client", client, "error", err)
		}
	}
}

// session returns the client's, with a new backend if it has none or the one it
// had serves no more.
func (u *udpListener) session(client netip.AddrPort) (*session, error) {
	u.sessionsMu.Lock()
	defer u.sessionsMu.Unlock()
	s := u.sessions[client]
	if s != nil && u.serves(s.backend) {
		return s, s.conn.SetReadDeadline(time.Now().Add(udpIdle))
	}
	if s != nil {
		_ = s.conn.Close() // its answers are nobody's
		delete(u.sessions, client)
	}
	backend := u.pick(time.Now())
	conn, err := net.DialUDP(u.network, nil, net.UDPAddrFromAddrPort(backend))
	if err != nil {
		return nil, err
	}
	s = &session{conn, backend}
	u.sessions[client] = s
	go u.answer(client, s)
	return s, conn.SetReadDeadline(time.Now().Add(udpIdle))
}

// answer sends back what the backend says, until nothing came for a while or
// the backend refuses.
func (u *udpListener) answer(client netip.AddrPort, s *session) {
	buf := make([]byte, maxDatagram)
	for {
		n, err := s.conn.Read(buf)
		if err != nil {
			break
		}
		if _, err := u.WriteToUDPAddrPort(buf[:n], client); err != nil {
			break
		}
	}
	_ = s.conn.Close() // only read from here
	u.sessionsMu.Lock()
	defer u.sessionsMu.Unlock()
	if u.sessions[client] == s {
		delete(u.sessions, client)
	}
}
