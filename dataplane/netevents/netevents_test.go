package netevents

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

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

// lines hands over what is logged.
type lines struct{ said chan string }

func (l *lines) Write(p []byte) (int, error) {
	select {
	case l.said <- string(p):
	default:
	}
	return len(p), nil
}
