package iptables

import (
	"context"
	"encoding/binary"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

// While somebody watches, the rules that log are wanted: nothing differs, and a
// full sync writes nothing. When nobody does, or the agent ends, the kernel holds
// what it held before; and after an agent was killed, a new one sees to it.
func TestKernelHoldsWhatLogs(t *testing.T) {
	eachBackend(t, func(t *testing.T, b Backend) {
		r := service.NewResolver(synth.NewRandom(3).Config())
		r.Apply(synth.NewRandom(3).Cluster(40))
		d := mustNew(t, b)
		d.mustSync(t, r.Table(), nil)
		before := saved(t)
		same := func(when string) {
			t.Helper()
			if now := saved(t); now != before {
				t.Errorf("%s, the kernel holds other rules:\n%s\nbefore:\n%s", when, now, before)
			}
		}
		watch := func(on bool) {
			t.Helper()
			if err := d.setWatched(context.Background(), on); err != nil {
				t.Fatal(err)
			}
		}
		watch(true)
		if saved(t) == before {
			t.Fatal("no rule logs")
		}
		wrote := d.writes()
		d.mustSync(t, r.Table(), nil)
		found, err := d.Verify(context.Background())
		if err != nil || len(found) > 0 || d.writes() != wrote || d.Drift() != 0 {
			t.Errorf("while somebody watches: %v, differences %v, %d writes, drift %d", err, found, d.writes()-wrote, d.Drift())
		}
		watch(false)
		same("after the watch")
		watch(true)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		same("after the end of the agent")
		watch(true)
		d = mustNew(t, b)
		d.mustSync(t, r.Table(), nil)
		same("after an agent was killed, and one was started")
		d.settings.watched = true // before the first sync of a family
		d.mustSync(t, r.Table(), nil)
	})
}

// message is a packet as nfnetlink_log hands it over.
func message(prefix string, packet []byte) syscall.NetlinkMessage {
	m := syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.NFNL_SUBSYS_ULOG << 8}, Data: make([]byte, 4)}
	for kind, value := range map[uint16][]byte{nfulaPrefix: append([]byte(prefix), 0), nfulaPayload: packet} {
		attr := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
		attr = append(binary.NativeEndian.AppendUint16(attr, kind), value...)
		m.Data = append(append(m.Data, attr...), make([]byte, (4-len(attr)%4)%4)...)
	}
	return m
}

func TestParseLogged(t *testing.T) {
	v4 := []byte{0x46, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0, 192, 0, 2, 1, 10, 96, 0, 1, 1, 1, 1, 1, 0x9c, 0x40, 0, 53, 0, 8, 0, 0} // with options
	v6 := append([]byte{0x60, 0, 0, 0, 0, 20, unix.IPPROTO_TCP, 64}, netip.MustParseAddr("2001:db8::1").AsSlice()...)
	v6 = append(append(v6, netip.MustParseAddr("fd00::1").AsSlice()...), 0x9c, 0x40, 0, 80)
	for name, test := range map[string]struct {
		m    syscall.NetlinkMessage
		want logged
	}{
		"IPv4": {message("nodeproxy no_endpoints", v4), logged{noEndpoints, tuple{netip.MustParseAddrPort("192.0.2.1:40000"), netip.MustParseAddrPort("10.96.0.1:53"), unix.IPPROTO_UDP}}},
		"IPv6": {message("nodeproxy source_range", v6), logged{sourceRange, tuple{netip.MustParseAddrPort("[2001:db8::1]:40000"), netip.MustParseAddrPort("[fd00::1]:80"), unix.IPPROTO_TCP}}},
	} {
		if got, ok := parseLogged(test.m); !ok || got != test.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, ok, test.want)
		}
	}
	other := message("nodeproxy policy", v4)
	other.Header.Type = unix.NFNL_SUBSYS_CTNETLINK << 8
	icmp := append([]byte(nil), v4...)
	icmp[9] = unix.IPPROTO_ICMP
	for name, m := range map[string]syscall.NetlinkMessage{
		"of another subsystem": other, "of other rules": message("ufw block", v4), "ICMP": message("nodeproxy policy", icmp), "nothing": message("nodeproxy policy", nil),
		"cut in addresses": message("nodeproxy policy", v4[:18]), "cut in options": message("nodeproxy policy", v4[:22]), "cut in ports": message("nodeproxy policy", v6[:42]),
	} {
		if got, ok := parseLogged(m); ok {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// A packet that was shown is not counted again, whichever comes first; one that
// was not is told of one look later.
func TestUntold(t *testing.T) {
	for name, test := range map[string]struct{ counted, shown, want []uint64 }{
		"shown":                {[]uint64{3, 0, 0}, []uint64{3, 0, 0}, []uint64{0, 0, 0}},
		"counted first":        {[]uint64{1, 0, 0}, []uint64{0, 1, 0}, []uint64{0, 0, 0}},
		"shown first":          {[]uint64{0, 1, 0}, []uint64{1, 0, 0}, []uint64{0, 0, 0}},
		"beyond the rate":      {[]uint64{150, 0, 0}, []uint64{100, 0, 0}, []uint64{0, 50, 0}},
		"counter was lost":     {[]uint64{0, 0, 0, 5, 0}, []uint64{4, 0, 0, 0, 0}, []uint64{0, 0, 0, 0, 5}},
		"beyond it and beyond": {[]uint64{150, 150, 0}, []uint64{100, 100, 0}, []uint64{0, 50, 50}},
	} {
		w := &watcher{logs: true, owed: map[string]int64{}, shown: map[string]uint64{}}
		for i, n := range test.counted {
			w.shown["x"] = test.shown[i]
			if got := w.untold("x", n); got != test.want[i] {
				t.Errorf("%s, look %d: %d, want %d", name, i, got, test.want[i])
			}
		}
	}
}
