package netevents

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/internal/nettest"
)

// A socket that lost messages is replaced: changes after that are told, and one
// change is told for what was lost.
func TestSocketThatFellBehindIsReplaced(t *testing.T) {
	nettest.Enter(t)
	ns, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	log := &lines{said: make(chan string, 100)}
	f := &Follower{Namespace: &ns, Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})), receiveBuffer: 1} // the kernel's least
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changed, err := f.Addresses(ctx)
	if err != nil {
		t.Fatal(err)
	}
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0"}, PeerName: "veth1"}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	add := func(n int) {
		t.Helper()
		addr, err := netlink.ParseAddr(fmt.Sprintf("10.%d.%d.1/32", n/256, n%256))
		if err == nil {
			err = netlink.AddrAdd(link, addr)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for n := range 2000 {
		add(n)
	}
	// The kernel tells of all of them at once.
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	select {
	case <-log.said: // that the socket failed
	case <-time.After(5 * time.Second):
		t.Fatal("2,000 messages at once did not overrun a buffer of the least size")
	}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	told := false
	for n := 0; n < 50 && !told; n++ { // until the new socket is there
		for len(changed) > 0 {
			<-changed
		}
		add(n)
		select {
		case <-changed:
			told = n > 0 // the first may be that of what was lost
		case <-time.After(again):
		}
	}
	if !told {
		t.Fatal("no change after the failure was told")
	}
}

// Of routes, those are told that a filter finds worth it, which each socket has anew.
func TestRoutesAreFiltered(t *testing.T) {
	nettest.Enter(t)
	ns, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 100)
	f := &Follower{Namespace: &ns, Log: slog.New(slog.DiscardHandler)}
	changed, err := f.Routes(t.Context(), func() func(*netlink.RouteUpdate) bool {
		n := 0 // of this socket alone
		return func(r *netlink.RouteUpdate) bool {
			if r.Dst == nil || r.Dst.IP.To4() == nil {
				return false // of IPv6, the kernel has its own
			}
			n++
			seen <- fmt.Sprintf("%s %d", r.Dst, n)
			return r.Route.Type == unix.RTN_LOCAL
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range []struct {
		dst  string
		kind int
	}{{"10.1.0.0/24", unix.RTN_BLACKHOLE}, {"10.2.0.0/24", unix.RTN_LOCAL}} {
		_, dst, err := net.ParseCIDR(r.dst)
		if err != nil {
			t.Fatal(err)
		}
		route := &netlink.Route{Dst: dst, Type: r.kind}
		if r.kind == unix.RTN_LOCAL {
			route.LinkIndex, route.Scope, route.Table = lo.Attrs().Index, netlink.SCOPE_HOST, unix.RT_TABLE_LOCAL
		}
		if err := netlink.RouteAdd(route); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-seen:
			if want := fmt.Sprintf("%s %d", r.dst, i+1); got != want {
				t.Errorf("the filter saw %s, want %s", got, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("the filter was not asked about %s", r.dst)
		}
		told := false
		select {
		case <-changed:
			told = true
		case <-time.After(again):
		}
		if want := r.kind == unix.RTN_LOCAL; told != want {
			t.Errorf("%s: told %t, want %t", r.dst, told, want)
		}
	}
}

// lines hands over what is logged.
type lines struct{ said chan string }

func (l *lines) Write(p []byte) (int, error) {
	select {
	case l.said <- string(p):
	default:
	}
	return len(p), nil
}
