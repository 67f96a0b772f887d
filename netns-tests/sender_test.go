package netnstests

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// fixedSender sends datagrams from one source port, and notes who answers. It
// connects its socket, and again when the kernel ends that: so it is told
// where a connection was translated to an endpoint that is gone.
type fixedSender struct {
	remote  *echo.Remote
	request echo.Request
	conn    *echo.RemoteConn
	stop    chan struct{}
	done    chan struct{}

	mu      sync.Mutex // guards what follows
	name    string     // who answered the last datagram, "" if nobody did
	aborted []time.Time
}

func startFixedSender(t *testing.T, l *lab.Lab, from string, to netip.AddrPort, port uint16) *fixedSender {
	t.Helper()
	remote, err := l.Dialer(from)
	if err != nil {
		t.Fatal(err)
	}
	source := netip.AddrPortFrom(lab.MustPlace(from).Addr(to.Addr().Is6()), port)
	s := &fixedSender{
		remote: remote, request: echo.Request{Network: echo.UDP, To: to, From: source},
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	if s.conn, err = remote.Open(t.Context(), s.request); err != nil {
		t.Fatal(err)
	}
	go s.run()
	t.Cleanup(func() {
		close(s.stop)
		<-s.done
		if s.conn != nil {
			_ = s.conn.Close()
		}
	})
	return s
}

func (s *fixedSender) run() {
	defer close(s.done)
	for {
		select {
		case <-s.stop:
			return
		case <-time.After(10 * time.Millisecond):
		}
		name, err := s.send()
		s.mu.Lock()
		s.name = name
		if errors.Is(err, syscall.ECONNABORTED) {
			s.aborted = append(s.aborted, time.Now())
		}
		s.mu.Unlock()
	}
}

// send sends one datagram and returns who answers. A socket that the kernel
// has ended is opened anew the next time.
func (s *fixedSender) send() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if s.conn == nil {
		conn, err := s.remote.Open(ctx, s.request)
		if err != nil {
			return "", err
		}
		s.conn = conn
	}
	answer, err := s.conn.Ping(ctx)
	if errors.Is(err, syscall.ECONNABORTED) || errors.Is(err, syscall.EDESTADDRREQ) {
		_ = s.conn.Close()
		s.conn = nil
	}
	if err != nil {
		return "", err
	}
	return answer.Name, nil
}

func (s *fixedSender) last() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.name
}
