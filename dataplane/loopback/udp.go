package loopback

import (
	"container/list"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// udpIdle is how long a client's backend is kept without a datagram of the client,
// and udpUnanswered the same where the backend never answered: conntrack's times.
const (
	udpIdle       = 3 * time.Minute
	udpUnanswered = 30 * time.Second
)

// maxDatagram is the largest payload of UDP.
const maxDatagram = 65535

// datagrams lends buffers to those who have something to read: one for each
// session would be 64 KiB for each that says nothing.
var datagrams = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

// udpListener relays datagrams; each client has a socket of its own towards its
// backend.
type udpListener struct {
	*net.UDPConn
	chooser
	network string
	log     *slog.Logger

	free *places // shared with other listeners

	sessionsMu sync.Mutex // guards what follows
	sessions   map[netip.AddrPort]*session
	ofSource   map[netip.Addr]int // sessions
	byUse      *list.List         // of *session, the one that was used last first
}

// session is a client that sends datagrams.
type session struct {
	client   netip.AddrPort
	conn     *net.UDPConn
	backend  netip.AddrPort
	answered atomic.Bool
	use      *list.Element
}

func listenUDP(k key, log *slog.Logger, free *places) (listener, error) {
	c, err := net.ListenUDP(network(k), net.UDPAddrFromAddrPort(k.addr()))
	if err != nil {
		return nil, err
	}
	u := &udpListener{UDPConn: c, network: network(k), log: log, free: free,
		sessions: map[netip.AddrPort]*session{}, ofSource: map[netip.Addr]int{}, byUse: list.New()}
	go u.receive()
	return u, nil
}

// Close ends the listener, and its clients' sockets with it: their answers
// could not be sent any more.
func (u *udpListener) Close() error {
	err := u.UDPConn.Close()
	u.sessionsMu.Lock()
	defer u.sessionsMu.Unlock()
	for _, s := range u.sessions {
		u.end(s)
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

// session returns the session of a client, a new one if there is none. Where
// there are too many, the one that was not used for the longest time ends.
func (u *udpListener) session(client netip.AddrPort) (*session, error) {
	u.sessionsMu.Lock()
	defer u.sessionsMu.Unlock()
	s := u.sessions[client]
	if s != nil && u.serves(s.backend) {
		u.byUse.MoveToFront(s.use)
		return s, s.extend()
	}
	if s != nil {
		u.end(s) // its answers are nobody's
	}
	if u.ofSource[client.Addr()] >= maxOfSource {
		u.endOldest(func(s *session) bool { return s.client.Addr() == client.Addr() })
	}
	if !u.free.take() && (!u.endOldest(func(*session) bool { return true }) || !u.free.take()) {
		return nil, errFull
	}
	backend := u.pick(time.Now())
	conn, err := net.DialUDP(u.network, nil, net.UDPAddrFromAddrPort(backend))
	if err != nil {
		u.free.release()
		return nil, err
	}
	s = &session{client: client, conn: conn, backend: backend}
	s.use = u.byUse.PushFront(s)
	u.sessions[client] = s
	u.ofSource[client.Addr()]++
	go u.answer(s)
	return s, s.extend()
}

// extend lets a session live on without datagrams of the client: conntrack's times.
func (s *session) extend() error {
	idle := udpUnanswered
	if s.answered.Load() {
		idle = udpIdle
	}
	return s.conn.SetReadDeadline(time.Now().Add(idle))
}

// end ends a session, once. The caller holds the lock.
func (u *udpListener) end(s *session) {
	_ = s.conn.Close() // only read from
	if u.sessions[s.client] != s {
		return
	}
	delete(u.sessions, s.client)
	u.byUse.Remove(s.use)
	if u.ofSource[s.client.Addr()]--; u.ofSource[s.client.Addr()] == 0 {
		delete(u.ofSource, s.client.Addr())
	}
	u.free.release()
}

// endOldest ends the session that was not used for the longest time among those
// that may be, if there is one. The caller holds the lock.
func (u *udpListener) endOldest(may func(*session) bool) bool {
	for at := u.byUse.Back(); at != nil; at = at.Prev() {
		if s := at.Value.(*session); may(s) {
			u.end(s)
			return true
		}
	}
	return false
}

// answer sends what a backend sends to the client.
func (u *udpListener) answer(s *session) {
	raw, err := s.conn.SyscallConn()
	for err == nil {
		err = u.pass(raw, s)
	}
	u.sessionsMu.Lock()
	defer u.sessionsMu.Unlock()
	u.end(s)
}

// pass waits for one datagram of a backend and sends it on.
func (u *udpListener) pass(from syscall.RawConn, s *session) (err error) {
	waited := from.Read(func(fd uintptr) bool {
		buf := datagrams.Get().(*[maxDatagram]byte)
		defer datagrams.Put(buf)
		var n int
		if n, err = unix.Read(int(fd), buf[:]); errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			return false
		}
		if err != nil {
			return true
		}
		if !s.answered.Swap(true) {
			_ = s.extend() // of a session that was ended meanwhile
		}
		_, err = u.WriteToUDPAddrPort(buf[:n], s.client)
		return true
	})
	return errors.Join(waited, err)
}
