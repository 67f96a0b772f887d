package iptables

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ForgetFrozenFlows deletes the TCP entries of conntrack if it does not look at
// packets in this network namespace at the moment, and returns how many there
// were. The kernel tracks connections only while some rule asks for it, and
// keeps what it knew when the last such rule went. A connection that has the
// addresses and ports of one from that time is out of its window, and each of
// its packets INVALID, as soon as rules come back. While nothing is tracked, no
// rule can miss such an entry. It is to be called before rules are written.
func ForgetFrozenFlows() (uint, error) {
	tracks, err := tracksFlows()
	if err != nil || tracks {
		return 0, err
	}
	var deleted uint
	var errs []error
	for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		n, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, everyTCP{})
		deleted += n
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			errs = append(errs, fmt.Errorf("delete conntrack entries from before: %w", err))
		}
	}
	return deleted, errors.Join(errs...)
}

// everyTCP implements netlink.CustomConntrackFilter.
type everyTCP struct{}

func (everyTCP) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	return f.Forward.Protocol == unix.IPPROTO_TCP
}

// tracksFlows sends a datagram over loopback and looks whether conntrack has
// seen it.
func tracksFlows() (bool, error) {
	fail := func(err error) (bool, error) {
		return false, fmt.Errorf("find out whether connections are tracked: %w", err)
	}
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return fail(err)
	}
	defer server.Close()
	to := server.LocalAddr().(*net.UDPAddr)
	client, err := net.DialUDP("udp4", nil, to)
	if err != nil {
		return fail(err)
	}
	defer client.Close()
	if _, err := client.Write([]byte{0}); err != nil {
		return fail(err)
	}
	if err := server.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return fail(err)
	}
	if _, err := server.Read(make([]byte, 1)); err != nil {
		return fail(err)
	}
	from := client.LocalAddr().(*net.UDPAddr)
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fail(err)
	}
	for _, f := range flows {
		if f.Forward.Protocol == unix.IPPROTO_UDP && f.Forward.SrcPort == uint16(from.Port) && f.Forward.DstPort == uint16(to.Port) {
			return true, nil
		}
	}
	// Half a list may lack it: what is not known to be off counts as on.
	return err != nil, nil
}
