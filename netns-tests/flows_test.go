package netnstests

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// heldFlow is a connection, or a connected UDP socket, that stays open.
type heldFlow struct {
	text   string
	conn   *echo.RemoteConn
	answer echo.Answer // the first
}

// hold opens n flows over TCP and n over UDP from the place to each target,
// in both families by turns.
func hold(t *testing.T, l *lab.Lab, n int, from string, targets ...string) []heldFlow {
	t.Helper()
	return append(holdOver(t, l, echo.TCP, n, from, targets...), holdOver(t, l, echo.UDP, n, from, targets...)...)
}

// holdOver opens n flows over one protocol, as hold does.
func holdOver(t *testing.T, l *lab.Lab, network echo.Network, n int, from string, targets ...string) []heldFlow {
	t.Helper()
	remote, err := l.Dialer(from)
	if err != nil {
		t.Fatal(err)
	}
	var flows []heldFlow
	for _, target := range targets {
		for i := range n {
			_, to := parseTarget(target, i%2 == 1)
			f := heldFlow{text: fmt.Sprintf("%s -> %s (%s) over %s", from, target, to, network)}
			if f.conn, err = remote.Open(t.Context(), echo.Request{Network: network, To: to}); err == nil {
				f.answer, err = f.conn.Ping(t.Context())
			}
			if err != nil {
				t.Fatalf("%s: %v", f.text, err)
			}
			flows = append(flows, f)
		}
	}
	return flows
}

// pingAll checks that every flow is still answered, by whom it was before.
func pingAll(t *testing.T, flows []heldFlow) {
	t.Helper()
	for _, f := range flows {
		if answer, err := f.conn.Ping(t.Context()); err != nil || answer != f.answer {
			t.Errorf("%s: answer %v, error %v; want %v as before", f.text, answer, err, f.answer)
		}
	}
}

// stream dials again and again from one place.
type stream struct {
	text  string
	stop  chan struct{}
	done  chan struct{}
	count int
	errs  []error
}

// startStream dials some 50 times a second: many streams at a time leave a
// machine of two cores something to start agents with.
func startStream(l *lab.Lab, from, target string, network echo.Network, v6 bool) *stream {
	return startStreamEvery(20*time.Millisecond, l, from, target, network, v6)
}

func startStreamEvery(pause time.Duration, l *lab.Lab, from, target string, network echo.Network, v6 bool) *stream {
	_, to := parseTarget(target, v6)
	s := &stream{
		text: fmt.Sprintf("%s -> %s (%s) over %s", from, target, to, network),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		remote, err := l.Dialer(from)
		if err != nil {
			s.errs = append(s.errs, err)
			return
		}
		for {
			select {
			case <-s.stop:
				return
			case <-time.After(pause):
			}
			s.count++
			if _, err := remote.Dial(context.Background(), echo.Request{Network: network, To: to}); err != nil {
				s.errs = append(s.errs, err)
			}
		}
	}()
	return s
}

// end stops the stream; every dial must have been answered.
func (s *stream) end(t *testing.T) {
	t.Helper()
	close(s.stop)
	<-s.done
	if err := errors.Join(s.errs...); err != nil {
		t.Errorf("%s: %d of %d dials failed: %v", s.text, len(s.errs), s.count, err)
	}
	if s.count < 20 {
		t.Errorf("%s: only %d dials, which shows little", s.text, s.count)
	}
	t.Logf("%s: %d dials", s.text, s.count)
}

// conntrack returns when each entry of a node began, by its addresses.
func conntrack(t *testing.T, l *lab.Lab, node string) map[string]uint64 {
	t.Helper()
	entries := map[string]uint64{}
	err := l.Do(node, func() error {
		for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			list, err := dumpConntrack(family)
			if err != nil {
				return err
			}
			for _, f := range list {
				if f.Forward.SrcIP.IsLoopback() { // the agent's own probes come and go
					continue
				}
				entries[fmt.Sprintf("%d %s, answered %s", f.Forward.Protocol, tuple(f.Forward), tuple(f.Reverse))] = f.TimeStart
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func dumpConntrack(family netlink.InetFamily) (list []*netlink.ConntrackFlow, err error) {
	for range 10 { // one that something changed under is begun again
		list, err = netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return list, err
}

func tuple(t netlink.IPTuple) string {
	return fmt.Sprintf("%s -> %s", endpoint(t.SrcIP, t.SrcPort), endpoint(t.DstIP, t.DstPort))
}

func endpoint(ip net.IP, port uint16) string {
	addr, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(addr.Unmap(), port).String()
}

// checkUntouched checks that the entries are there that were before, and that
// none of them was made anew. Those that programs make have no time to tell by: of
// them only that they are there.
func (c column) checkUntouched(t *testing.T, before, now map[string]uint64) {
	t.Helper()
	if len(before) == 0 {
		t.Error("there were no conntrack entries, which shows nothing")
	}
	for text, start := range before {
		if start == 0 && c.Mode != lab.ModeEBPF {
			t.Fatalf("conntrack entry without a time: %s", text)
		}
		if got, ok := now[text]; !ok {
			t.Errorf("conntrack entry is gone: %s", text)
		} else if got != start {
			t.Errorf("conntrack entry was made anew: %s", text)
		}
	}
}
