package ebpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/service"
)

// TestSourceShare: there is no limit while conntrack has room, and it does not come and go
// where conntrack is half full.
func TestSourceShare(t *testing.T) {
	for _, c := range []struct {
		count, max int
		limited    bool
		want       uint32
	}{
		{0, 0, false, 0}, {0, 0, true, 0}, {499, 1000, false, 0}, {500, 1000, false, 32}, {499, 1000, true, 32},
		{375, 1000, true, 32}, {374, 1000, true, 0}, {1000, 1000, false, 32}, {20, 20, true, 1}, {262144, 262144, true, 8193},
	} {
		if got := sourceShare(c.count, c.max, c.limited); got != c.want {
			t.Errorf("%d of %d, limited %v: %d, want %d", c.count, c.max, c.limited, got, c.want)
		}
	}
}

// flood sends forged SYNs to a node port until it is stopped.
type flood struct {
	rate   atomic.Int64 // a second
	sent   atomic.Int64
	source func(*rand.Rand) string
	acks   bool // forged ones follow the SYNs
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// startFlood begins a flood from the client's machine.
func (n *testNet) startFlood(t *testing.T, rate int64, acks bool, source func(*rand.Rand) string) *flood {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	fl := &flood{source: source, acks: acks, cancel: cancel}
	fl.rate.Store(rate)
	host, err := n.hostAddr()
	if err != nil {
		t.Fatal(err)
	}
	fl.done.Add(1)
	go func() {
		defer fl.done.Done()
		if err := inNS(n.client, func() error { return fl.run(ctx, host) }); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(fl.stop)
	return fl
}

func (fl *flood) stop() {
	fl.cancel()
	fl.done.Wait()
}

func (fl *flood) run(ctx context.Context, host net.HardwareAddr) error {
	wire, err := openSender()
	if err != nil {
		return err
	}
	defer wire.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	const pause = 2 * time.Millisecond
	for ctx.Err() == nil {
		next := time.Now().Add(pause)
		for range fl.rate.Load() * int64(pause) / int64(time.Second) {
			if err := fl.sendOne(wire, host, rng); err != nil {
				return err
			}
			fl.sent.Add(1)
		}
		time.Sleep(time.Until(next))
	}
	return nil
}

// sendOne sends a SYN, and where the forger tries to pass for a client, an ACK after it.
func (fl *flood) sendOne(wire *sender, host net.HardwareAddr, rng *rand.Rand) error {
	from, port, to := fl.source(rng), uint16(1024+rng.IntN(60000)), nodeIP[0]
	if strings.Contains(from, ":") {
		to = nodeIP[1]
	}
	flags := []byte{syn}
	if fl.acks {
		flags = append(flags, ack)
	}
	for _, f := range flags {
		packet := frame{proto: service.TCP, flags: f, seq: rng.Uint32(), ack: rng.Uint32()}.to(from, port, to, 30080).bytes()
		copy(packet, host)
		if err := wire.send(packet); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("send a forged segment: %w", err)
		}
	}
	return nil
}

// anySource is one of many addresses outside.
func anySource(rng *rand.Rand) string {
	if rng.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{198, 18, byte(rng.IntN(256)), byte(1 + rng.IntN(254))}).String()
	}
	return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(rng.IntN(256)), byte(rng.IntN(256)), byte(rng.IntN(256)), 0, 15: 9}).String()
}

// fillConntrack adds entries of connections between addresses that nobody has: half of them
// established, the other half SYNs that nobody answered.
func (n *testNet) fillConntrack(t *testing.T, entries int) {
	t.Helper()
	in(t, n.node, func() error {
		s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer s.Close()
		const batch = 500
		for first := 0; first < entries; first += batch {
			var all []byte
			for i := first; i < first+batch; i++ {
				all = append(all, newEntry(uint32(i))...)
			}
			if err := unix.Sendto(s.GetFd(), all, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
				return err
			}
		}
		return nil
	})
}

// newEntry is ctnetlink's message that makes an entry (linux/netfilter/
// nfnetlink_conntrack.h): type IPCTNL_MSG_CT_NEW, 0.
func newEntry(i uint32) []byte {
	assured := i%2 == 0
	client := binary.BigEndian.AppendUint32(nil, 0xc6120000+i/60000)
	server := []byte{198, 51, 100, 1}
	port := binary.BigEndian.AppendUint16(nil, uint16(1024+i%60000))
	tuple := func(kind int, src, dst, sport, dport []byte) *nl.RtAttr {
		t := nl.NewRtAttr(unix.NLA_F_NESTED|kind, nil)
		ip := t.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil)
		ip.AddRtAttr(nl.CTA_IP_V4_SRC, src)
		ip.AddRtAttr(nl.CTA_IP_V4_DST, dst)
		proto := t.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_PROTO, nil)
		proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{unix.IPPROTO_TCP})
		proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, sport)
		proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, dport)
		return t
	}
	status, state := uint32(8), byte(1) // IPS_CONFIRMED, SYN_SENT
	if assured {
		status, state = status|2|4, 3 // IPS_SEEN_REPLY, IPS_ASSURED, ESTABLISHED
	}
	http := []byte{0, 80}
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8, unix.NLM_F_CREATE)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET})
	req.AddData(tuple(nl.CTA_TUPLE_ORIG, client, server, port, http))
	req.AddData(tuple(nl.CTA_TUPLE_REPLY, server, client, http, port))
	req.AddData(nl.NewRtAttr(nl.CTA_STATUS, binary.BigEndian.AppendUint32(nil, status)))
	req.AddData(nl.NewRtAttr(nl.CTA_TIMEOUT, binary.BigEndian.AppendUint32(nil, 600)))
	info := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_PROTOINFO, nil)
	info.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_PROTOINFO_TCP, nil).AddRtAttr(nl.CTA_PROTOINFO_TCP_STATE, []byte{state})
	req.AddData(info)
	return req.Serialize()
}

// tracked is how many entries conntrack has for the node, and may have.
func (n *testNet) tracked(t *testing.T) (count, max int) {
	t.Helper()
	in(t, n.node, func() error {
		for name, into := range map[string]*int{"nf_conntrack_count": &count, "nf_conntrack_max": &max} {
			text, err := os.ReadFile("/proc/sys/net/netfilter/" + name)
			if err != nil {
				return err
			}
			*into, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		return nil
	})
	return count, max
}

// TestFloodOfSYNs fills conntrack with forged SYNs, and goes on at 20,000 a second: 99 of
// 100 honest connections succeed. One source alone cannot hold more than its share, also if it
// forges ACKs.
func TestFloodOfSYNs(t *testing.T) {
	eachWay(t, func(t *testing.T, n *testNet, d *Dataplane) {
		_, most := n.tracked(t)
		n.fillConntrack(t, most)
		fl := n.startFlood(t, 20_000, false, anySource)
		within(t, time.Minute, "conntrack is full", func() bool { count, max := n.tracked(t); return count >= max-max/50 })
		time.Sleep(2 * pressurePause) // the agent asks how full it is
		before, began := fl.sent.Load(), time.Now()
		failed := 0
		for f := range 2 {
			for range 50 {
				if a, err := ask(n.client, networks[0][f], join(nodeIP[f], "30080")); err != nil || a.name != "a" {
					failed++
					t.Logf("%s: %v %v", famNames[f], a, err)
				}
			}
		}
		count, max := n.tracked(t)
		t.Logf("%d of 100 honest connections failed, at %.0f SYNs a second, conntrack has %d of %d", failed,
			float64(fl.sent.Load()-before)/time.Since(began).Seconds(), count, max)
		if failed > 1 {
			t.Errorf("%d of 100 honest connections failed", failed)
		}
		fl.stop()
		one := n.startFlood(t, 20_000, true, func(*rand.Rand) string { return "198.51.100.7" })
		eventually(t, "one source is limited", func() bool { return d.metric(t, bpfReasonREASON_SOURCE_SHARE) > 1000 })
		if a, err := ask(n.client, networks[0][0], join(nodeIP[0], "30080")); err != nil || a.name != "a" {
			t.Errorf("beside a source that is limited: %v %v", a, err)
		}
		one.stop()
	})
}
