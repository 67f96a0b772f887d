package health

import (
	"container/list"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// MaxConnections is how many connections a server of a node holds at a time.
	MaxConnections = 256
	// headerTime is how long a client may take to ask, and idleTime how long it may
	// keep a connection open without asking again.
	headerTime = 5 * time.Second
	idleTime   = 60 * time.Second
)

// NewServer returns an HTTP server that no client can hold up: what is asked late,
// or not at all, is cut off, and so is what takes longer than some seconds to
// answer: the context of such a request ends. Where that is right, set ReadTimeout
// to 0.
func NewServer(handler http.Handler) *http.Server {
	return &http.Server{Handler: handler, ReadHeaderTimeout: headerTime, ReadTimeout: 2 * headerTime, IdleTimeout: idleTime,
		MaxHeaderBytes: 16 << 10}
}

// LimitConnections bounds the connections of a listener. When there are more, the
// oldest is closed: a client that is answered is so within milliseconds, so
// those that are held open give way, not a kubelet or a load balancer that comes.
func LimitConnections(l net.Listener, most int) net.Listener {
	return &limited{Listener: l, most: most, open: list.New()}
}

type limited struct {
	net.Listener
	most int

	mu   sync.Mutex // guards open
	open *list.List // of *limitedConn, the oldest first
}

// Accept implements [net.Listener].
func (l *limited) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	conn := &limitedConn{Conn: c, of: l}
	l.mu.Lock()
	conn.at = l.open.PushBack(conn)
	var oldest *limitedConn
	if l.open.Len() > l.most {
		oldest = l.open.Remove(l.open.Front()).(*limitedConn)
	}
	l.mu.Unlock()
	if oldest != nil {
		_ = oldest.Conn.Close() // its server notices, and closes it too
	}
	return conn, nil
}

type limitedConn struct {
	net.Conn
	of *limited
	at *list.Element
}

// Close implements [net.Conn].
func (c *limitedConn) Close() error {
	c.of.mu.Lock()
	c.of.open.Remove(c.at) // nothing, if it is not in the list any more
	c.of.mu.Unlock()
	return c.Conn.Close()
}
