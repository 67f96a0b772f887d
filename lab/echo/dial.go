package echo

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Network is what is dialled: a transport and the server's manner on it.
type Network string

// The networks.
const (
	TCP  Network = "tcp"
	UDP  Network = "udp"
	HTTP Network = "http"
)

// DefaultTimeout bounds an exchange whose context has no deadline. It leaves
// room for one SYN retransmission, no more: the lab loses no packets.
const DefaultTimeout = 2 * time.Second

// Request says what to dial.
type Request struct {
	Network Network
	To      netip.AddrPort
	// From is the local address to dial from, zero (or with a zero address or
	// port) where the kernel chooses.
	From netip.AddrPort `json:"from,omitzero"`
}

// Dial opens what the request says, has one answer and closes again.
//
// The socket belongs to the network namespace of the calling OS thread, so it
// works within a function that has switched its thread. Errors wrap the
// system's: errors.Is(err, syscall.ECONNREFUSED) and [IsTimeout] tell refused
// from dropped. UDP is a connected socket, so an ICMP port unreachable is
// ECONNREFUSED as well.
func Dial(ctx context.Context, r Request) (Answer, error) {
	conn, err := Open(ctx, r)
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close()
	return conn.Ping(ctx)
}

// IsTimeout reports whether err, of this package, says that no answer came in
// time.
func IsTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

// Conn is an open connection to a server, or a connected UDP socket. It is
// for one goroutine at a time.
type Conn struct {
	net.Conn
	request Request
	reader  *bufio.Reader
	banner  Answer // TCP: what the server said first
}

// Open dials and, on TCP, reads the server's first line. For the namespace
// and the errors see [Dial].
func Open(ctx context.Context, r Request) (*Conn, error) {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	network := strings.Replace(string(r.Network), "http", "tcp", 1)
	dialer := net.Dialer{LocalAddr: localAddr(network, r.From)}
	if r.From.Port() != 0 {
		dialer.Control = reuseAddress
	}
	conn, err := dialer.DialContext(ctx, network, r.To.String())
	if err != nil {
		return nil, err // names the operation and the address already
	}
	c := &Conn{Conn: conn, request: r, reader: bufio.NewReader(conn)}
	if r.Network != TCP {
		return c, nil
	}
	c.setDeadline(ctx)
	line, err := c.reader.ReadString('\n')
	if err == nil {
		c.banner, _, err = parseAnswer(line)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("read the first line of %s: %w", r.To, err)
	}
	return c, nil
}

// Ping sends one payload through c and returns the answer: over TCP, the
// server's first line, once the payload has come back.
func (c *Conn) Ping(ctx context.Context) (Answer, error) {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	c.setDeadline(ctx)
	var answer Answer
	var err error
	switch c.request.Network {
	case UDP:
		answer, err = c.pingUDP()
	case HTTP:
		answer, err = c.get()
	default:
		answer, err = c.pingTCP()
	}
	if err != nil {
		return Answer{}, fmt.Errorf("ping %s over %s: %w", c.request.To, c.request.Network, err)
	}
	return answer, nil
}

func (c *Conn) pingTCP() (Answer, error) {
	nonce := rand.Text()
	if _, err := fmt.Fprintln(c.Conn, nonce); err != nil {
		return Answer{}, err
	}
	line, err := c.reader.ReadString('\n')
	if err == nil && line != nonce+"\n" {
		err = fmt.Errorf("sent %q, got %q", nonce, line)
	}
	return c.banner, err
}

func (c *Conn) pingUDP() (Answer, error) {
	nonce := rand.Text()
	if _, err := c.Conn.Write([]byte(nonce)); err != nil {
		return Answer{}, err
	}
	buf := make([]byte, 1<<16)
	for {
		n, err := c.Conn.Read(buf)
		if err != nil {
			return Answer{}, err
		}
		answer, payload, err := parseAnswer(string(buf[:n]))
		if err != nil || payload == nonce {
			return answer, err
		} // else the answer to an earlier ping, which had given up
	}
}

// get is by hand because http.Transport dials on a goroutine of its own,
// whose thread may be in another network namespace.
func (c *Conn) get() (Answer, error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+c.request.To.String()+"/json", nil)
	if err != nil {
		return Answer{}, err
	}
	if err := req.Write(c.Conn); err != nil {
		return Answer{}, err
	}
	resp, err := http.ReadResponse(c.reader, req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	var answer Answer
	if resp.StatusCode != http.StatusOK {
		return answer, fmt.Errorf("status %s", resp.Status)
	}
	return answer, json.NewDecoder(resp.Body).Decode(&answer)
}

func (c *Conn) setDeadline(ctx context.Context) {
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.Conn.SetDeadline(deadline) // fails on a closed one only; so will the next call
	}
}

func withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, DefaultTimeout)
}

func localAddr(network string, from netip.AddrPort) net.Addr {
	switch {
	case from == netip.AddrPort{}:
		return nil
	case network == "udp":
		return &net.UDPAddr{IP: from.Addr().AsSlice(), Port: int(from.Port())}
	}
	return &net.TCPAddr{IP: from.Addr().AsSlice(), Port: int(from.Port())}
}

// reuseAddress lets connections to several destinations have one source port.
func reuseAddress(_, _ string, raw syscall.RawConn) error {
	var err error
	called := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
	return errors.Join(called, err)
}
