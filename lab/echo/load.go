package echo

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// LoadKind is a kind of work that [Load] does.
type LoadKind string

// The kinds of load.
const (
	// Connections are made one after the other, each until the server has
	// answered, and reset.
	Connections LoadKind = "connections"
	// Requests go over one connection, each after the answer to the last.
	Requests LoadKind = "requests"
)

// LoadResult is what a load has done.
type LoadResult struct {
	Count   int
	Seconds float64
}

// PerSecond is the rate.
func (r LoadResult) PerSecond() float64 { return float64(r.Count) / r.Seconds }

// Load works against an echo server over TCP for a duration, from one thread,
// and counts. An error ends it.
func Load(kind LoadKind, to netip.AddrPort, d time.Duration) (LoadResult, error) {
	var n int
	var err error
	start := time.Now()
	switch kind {
	case Connections:
		n, err = loadConnections(to, start.Add(d))
	case Requests:
		n, err = loadRequests(to, start.Add(d))
	default:
		err = fmt.Errorf("unknown kind %q of load: use %s or %s", kind, Connections, Requests)
	}
	if err != nil {
		return LoadResult{}, fmt.Errorf("%s to %s: %w", kind, to, err)
	}
	return LoadResult{n, time.Since(start).Seconds()}, nil
}

func loadConnections(to netip.AddrPort, end time.Time) (n int, err error) {
	answer := make([]byte, 64)
	for time.Now().Before(end) {
		conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
		if err != nil {
			return n, err
		}
		_, err = conn.Read(answer)
		conn.SetLinger(0) // without TIME_WAIT, or the ports run out
		conn.Close()
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

func loadRequests(to netip.AddrPort, end time.Time) (n int, err error) {
	conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	if _, err := answers.ReadSlice('\n'); err != nil { // the greeting
		return 0, err
	}
	request := []byte("x\n")
	for time.Now().Before(end) {
		if _, err := conn.Write(request); err != nil {
			return n, err
		}
		if _, err := answers.ReadSlice('\n'); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}
