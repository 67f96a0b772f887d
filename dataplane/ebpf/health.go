package ebpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// probeSample is how many frontends a Probe looks up.
const probeSample = 32

// actShot is TC_ACT_SHOT of linux/pkt_cls.h.
const actShot = 2

// probeAddress is where a Probe sends to: discard-only (RFC 6666), so it is
// nobody's Service.
var probeAddress = netip.MustParseAddrPort("[100::1]:9")

// Probe proves the data path (pitfall P50): our programs are at their hooks, the
// one at ingress finds a frontend in the maps when it gets a packet, and
// frontends and their slots, a few at random, are what was last written. It may
// be called beside Sync. The packet is never sent: BPF_PROG_TEST_RUN.
func (d *Dataplane) Probe(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.unsure || !d.synced || d.waiting {
		return nil // a Sync is to come, and has its own health
	}
	return d.inNamespace(func() error {
		if lost := d.lostHooks(); len(lost) > 0 {
			return fmt.Errorf("no program of ours is at %s", lost[0].name)
		}
		return errors.Join(d.probeProgram(), d.probeMaps())
	})
}

// probeProgram leads a packet through the program at ingress, to a frontend that
// is there for that moment alone.
func (d *Dataplane) probeProgram() (err error) {
	key := bpfFrontendKey{Addr: mapAddr(probeAddress.Addr()), Port: networkPort(probeAddress.Port()), Proto: unix.IPPROTO_UDP}
	port := uint32(probeAddress.Port())
	bits := d.planner.kernel.ports[port]
	// Port first and last: it is a filter, and lets all pass that it should.
	err = errors.Join(
		d.objs.Ports.Put(port, bits|uint32(bpfPortFlagPORT_UDP)),
		d.objs.Frontends.Put(key, bpfFrontend{Flags: uint8(bpfFrontendFlagFRONTEND_PROBE)}),
		d.objs.Addresses.Put(key.Addr, uint32(bpfAddressFlagADDRESS_VIP)))
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	// Linux turns bottom halves off for that since some release after 6.1: before,
	// a packet may take the CPU's scratch map meanwhile.
	verdict, err := uint32(0), error(nil)
	for try := 0; try < 3 && err == nil && verdict != actShot; try++ {
		verdict, err = d.objs.Ingress.Run(&ebpf.RunOptions{Data: probeFrame()})
	}
	err = errors.Join(err, d.objs.Addresses.Delete(key.Addr), d.objs.Frontends.Delete(key), d.objs.Ports.Put(port, bits))
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	if verdict != actShot {
		return fmt.Errorf("the program at ingress did not find the probe's frontend: verdict %d", int32(verdict))
	}
	return nil
}

// probeFrame is a UDP datagram to probeAddress, with an Ethernet header.
func probeFrame() []byte {
	f := make([]byte, 14+40+8)
	binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IPV6)
	ip := f[14:]
	ip[0] = 6 << 4
	binary.BigEndian.PutUint16(ip[4:], 8)
	ip[6], ip[7] = unix.IPPROTO_UDP, 64
	from, to := netip.MustParseAddr("100::2").As16(), probeAddress.Addr().As16()
	copy(ip[8:], from[:])
	copy(ip[24:], to[:])
	udp := ip[40:]
	binary.BigEndian.PutUint16(udp, 9)
	binary.BigEndian.PutUint16(udp[2:], probeAddress.Port())
	binary.BigEndian.PutUint16(udp[4:], 8)
	return f
}

// probeMaps compares some frontends, and one slot of each, with the mirror. Go
// visits a map in an order of its own each time.
func (d *Dataplane) probeMaps() error {
	want, n := d.planner.kernel, 0
	for key, fe := range want.frontends {
		if n++; n > probeSample {
			break
		}
		var is bpfFrontend
		if err := d.objs.Frontends.Lookup(key, &is); err != nil || is != fe {
			return fmt.Errorf("frontend %s of %s is not what was written: %w", endpoint(key.Addr, key.Port), want.nameOf(fe.Service), orChanged(err))
		}
		slot := bpfBackendKey{Service: fe.Service, Generation: fe.Generation}
		if b, ok := want.backends[slot]; ok {
			var is bpfBackend
			if err := d.objs.Backends.Lookup(slot, &is); err != nil || is != b {
				return fmt.Errorf("backends of %s are not what was written: %w", want.nameOf(fe.Service), orChanged(err))
			}
		}
	}
	return nil
}

// errChanged says that another program wrote to a map.
var errChanged = errors.New("another program has changed it")

func orChanged(err error) error {
	if err == nil {
		return errChanged
	}
	return err
}
