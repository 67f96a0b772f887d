package echo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// call and reply are the lines, JSON each, between a [Remote] and the
// [ServeDialer] process at its other end. Replies come in any order.
type call struct {
	ID      uint64
	Op      string // "open", "ping" or "close"
	Conn    uint64 // the ID of its open
	Request Request
	Timeout time.Duration
}

type reply struct {
	ID      uint64
	Answer  Answer
	Error   string        // empty on success
	Errno   syscall.Errno // of the error, where it has one
	Timeout bool          // the error is a deadline's
}

// ServeDialer dials what calls on in ask for, and answers on out, until in
// ends. It is the other half of [Remote].
func ServeDialer(in io.Reader, out io.Writer) error {
	server := &dialServer{conns: map[uint64]*Conn{}, out: json.NewEncoder(out)}
	decoder := json.NewDecoder(in)
	for {
		var c call
		if err := decoder.Decode(&c); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("decode call: %w", err)
		}
		go server.serve(c)
	}
}

type dialServer struct {
	mu    sync.Mutex // guards what follows
	conns map[uint64]*Conn
	out   *json.Encoder
}

func (s *dialServer) serve(c call) {
	ctx, cancel := context.WithTimeout(context.Background(), c.Timeout)
	defer cancel()
	answer, err := s.do(ctx, c)
	r := reply{ID: c.ID, Answer: answer}
	if err != nil {
		r.Error = err.Error()
		_ = errors.As(err, &r.Errno)
		r.Timeout = IsTimeout(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.out.Encode(r) // fails when the other end is gone, and then in ends too
}

func (s *dialServer) do(ctx context.Context, c call) (Answer, error) {
	if c.Op == "open" {
		conn, err := Open(ctx, c.Request)
		if err != nil {
			return Answer{}, err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.conns[c.ID] = conn
		return conn.banner, nil
	}
	s.mu.Lock()
	conn := s.conns[c.Conn]
	if c.Op == "close" {
		delete(s.conns, c.Conn)
	}
	s.mu.Unlock()
	switch {
	case conn == nil:
		return Answer{}, net.ErrClosed
	case c.Op == "close":
		return Answer{}, conn.Close()
	}
	return conn.Ping(ctx)
}

// Remote dials through a process elsewhere that runs [ServeDialer]. Its
// sockets have that process's network namespace and cgroup, which a thread
// that only switched its namespace has not: programs attached to a cgroup see
// them. Safe for concurrent use.
type Remote struct {
	in io.WriteCloser

	mu      sync.Mutex // guards what follows
	last    uint64
	waiting map[uint64]chan reply
	err     error // why no more replies will come
}

// NewRemote returns a Remote that writes its calls to in, the process's
// standard input, and reads the replies from out until that ends.
func NewRemote(in io.WriteCloser, out io.Reader) *Remote {
	r := &Remote{in: in, waiting: map[uint64]chan reply{}}
	go r.read(out)
	return r
}

// Close ends the process at the other end, and with it all connections.
func (r *Remote) Close() error { return r.in.Close() }

// Dial is [Dial], done by the other end. Its errors satisfy errors.Is for the
// same system errors, and [IsTimeout].
func (r *Remote) Dial(ctx context.Context, request Request) (Answer, error) {
	conn, err := r.Open(ctx, request)
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close()
	return conn.Ping(ctx)
}

// RemoteConn is a [Conn] that the other end holds.
type RemoteConn struct {
	remote *Remote
	id     uint64
}

// Open is [Open], done by the other end.
func (r *Remote) Open(ctx context.Context, request Request) (*RemoteConn, error) {
	_, id, err := r.call(ctx, call{Op: "open", Request: request})
	if err != nil {
		return nil, err
	}
	return &RemoteConn{remote: r, id: id}, nil
}

// Ping is [Conn.Ping].
func (c *RemoteConn) Ping(ctx context.Context) (Answer, error) {
	answer, _, err := c.remote.call(ctx, call{Op: "ping", Conn: c.id})
	return answer, err
}

// Close closes the socket at the other end.
func (c *RemoteConn) Close() error {
	_, _, err := c.remote.call(context.Background(), call{Op: "close", Conn: c.id})
	return err
}

// call sends c under a new ID, which it returns, and waits for the reply.
func (r *Remote) call(ctx context.Context, c call) (Answer, uint64, error) {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	deadline, _ := ctx.Deadline()
	c.Timeout = time.Until(deadline)
	replies, err := r.send(&c)
	if err != nil {
		return Answer{}, 0, fmt.Errorf("ask the dialer: %w", err)
	}
	// The other end keeps the deadline, with an error that says more than
	// ours; the grace is for a machine that is short of CPU.
	select {
	case got, ok := <-replies:
		if !ok {
			return Answer{}, 0, fmt.Errorf("the dialer has ended: %w", r.err)
		}
		return got.Answer, c.ID, got.err()
	case <-time.After(c.Timeout + 5*time.Second):
		return Answer{}, 0, fmt.Errorf("no reply from the dialer: %w", os.ErrDeadlineExceeded)
	}
}

func (r *Remote) send(c *call) (<-chan reply, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return nil, r.err
	}
	r.last++
	c.ID = r.last
	line, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	if _, err := r.in.Write(append(line, '\n')); err != nil {
		return nil, err
	}
	replies := make(chan reply, 1)
	r.waiting[c.ID] = replies
	return replies, nil
}

func (r *Remote) read(out io.Reader) {
	decoder := json.NewDecoder(bufio.NewReader(out))
	for {
		var got reply
		err := decoder.Decode(&got)
		r.mu.Lock()
		if err != nil {
			r.err = err
			for _, replies := range r.waiting {
				close(replies)
			}
			r.waiting = nil
			r.mu.Unlock()
			return
		}
		if replies, ok := r.waiting[got.ID]; ok {
			delete(r.waiting, got.ID)
			replies <- got // has room for the one reply that there is
		}
		r.mu.Unlock()
	}
}

// remoteError is an error of the other end, with what can be told of it.
type remoteError struct {
	text    string
	errno   syscall.Errno
	timeout bool
}

func (r reply) err() error {
	if r.Error == "" {
		return nil
	}
	return &remoteError{r.Error, r.Errno, r.Timeout}
}

func (e *remoteError) Error() string { return e.text }

// Is makes errors.Is find the system's error.
func (e *remoteError) Is(target error) bool {
	return e.errno != 0 && errors.Is(e.errno, target)
}

// Timeout is for [IsTimeout].
func (e *remoteError) Timeout() bool { return e.timeout }
