package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
)

// objects are the maps, and the programs that nearly every node needs. What a
// field is called in the kernel, its tag says.
// Programs for sockets are nil where packets only are translated.
type objects struct {
	bpfMaps
	packetPrograms
	socketPrograms
	l3  l3Programs  // nil until an interface needs them
	xdp xdpPrograms // as well
}

type packetPrograms struct {
	Accelerate *ebpf.Program `ebpf:"accelerate"`
	Collect    *ebpf.Program `ebpf:"collect"`
	Egress     *ebpf.Program `ebpf:"egress"`
	Ingress    *ebpf.Program `ebpf:"ingress"`
}

// l3Programs are for interfaces without link-layer headers, which few nodes have.
type l3Programs struct {
	Egress  *ebpf.Program `ebpf:"egress_l3"`
	Ingress *ebpf.Program `ebpf:"ingress_l3"`
}

// xdpPrograms are for uplinks, if XDP is asked for.
type xdpPrograms struct {
	Uplink *ebpf.Program `ebpf:"uplink"`
}

type socketPrograms struct {
	Connect4     *ebpf.Program `ebpf:"connect4"`
	Connect6     *ebpf.Program `ebpf:"connect6"`
	Getpeername4 *ebpf.Program `ebpf:"getpeername4"`
	Getpeername6 *ebpf.Program `ebpf:"getpeername6"`
	ListGoneTCP  *ebpf.Program `ebpf:"list_gone_tcp"`
	ListGoneUDP  *ebpf.Program `ebpf:"list_gone_udp"`
	Recvmsg4     *ebpf.Program `ebpf:"recvmsg4"`
	Recvmsg6     *ebpf.Program `ebpf:"recvmsg6"`
	Sendmsg4     *ebpf.Program `ebpf:"sendmsg4"`
	Sendmsg6     *ebpf.Program `ebpf:"sendmsg6"`
}

func (p *packetPrograms) Close() error {
	return _BpfClose(p.Accelerate, p.Collect, p.Egress, p.Ingress)
}

func (p *l3Programs) Close() error { return _BpfClose(p.Egress, p.Ingress) }

func (p *xdpPrograms) Close() error { return _BpfClose(p.Uplink) }

func (p *socketPrograms) Close() error {
	return _BpfClose(p.Connect4, p.Connect6, p.Getpeername4, p.Getpeername6,
		p.ListGoneTCP, p.ListGoneUDP, p.Recvmsg4, p.Recvmsg6, p.Sendmsg4, p.Sendmsg6)
}

func (o *objects) Close() error {
	return _BpfClose(&o.bpfMaps, &o.packetPrograms, &o.socketPrograms, &o.l3, &o.xdp)
}

// loadObjects loads programs and maps, and takes over the maps that are pinned.
// A pinned map keeps its size: the options say the size of new ones.
//
// Nearly all of an agent's start goes into the kernel's verifier, which takes
// one program on each CPU: the two kinds are loaded side by side.
func loadObjects(o *Options, p pins, f kernelFeatures) (*objects, error) {
	spec, err := specOf(o, p, f)
	if err != nil {
		return nil, err
	}
	objs := new(objects)
	if err := load(spec, p, &objs.bpfMaps); err != nil {
		return nil, err
	}
	var both errgroup.Group
	kinds := []any{&objs.packetPrograms}
	if !o.PacketsOnly {
		kinds = append(kinds, &objs.socketPrograms)
	}
	for _, programs := range kinds {
		own := spec.Copy()
		both.Go(func() error { return load(own, p, programs) })
	}
	if err := both.Wait(); err != nil {
		return nil, errors.Join(err, objs.Close())
	}
	return objs, nil
}

// loadMore does so for programs that it left out: the fields of into.
func (o *objects) loadMore(opts *Options, p pins, f kernelFeatures, into any) error {
	spec, err := specOf(opts, p, f)
	if err != nil {
		return err
	}
	return load(spec, p, into)
}

// load loads what the fields of into name, with the maps that are pinned.
func load(spec *ebpf.CollectionSpec, p pins, into any) error {
	if err := spec.LoadAndAssign(into, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: p.maps}}); err != nil {
		return fmt.Errorf("load programs: %w", err)
	}
	return nil
}

// specOf is what is to be loaded: the maps in the sizes that they have or shall
// have, and the programs with their constants.
func specOf(o *Options, p pins, f kernelFeatures) (*ebpf.CollectionSpec, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, fmt.Errorf("read embedded programs: %w", err)
	}
	o.Sizes.apply(spec)
	for name, m := range spec.Maps {
		if name == bpfMapScratch || strings.HasPrefix(name, ".") {
			continue
		}
		m.Pinning = ebpf.PinByName
		if err := adoptSize(m, filepath.Join(p.maps, name)); err != nil {
			return nil, err
		}
	}
	return spec, setConstants(spec, o, f)
}

// adoptSize gives a map the size that it has where it is pinned.
func adoptSize(m *ebpf.MapSpec, path string) error {
	pinned, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pinned map %s: %w", m.Name, err)
	}
	m.MaxEntries = pinned.MaxEntries()
	return pinned.Close()
}

func setConstants(spec *ebpf.CollectionSpec, o *Options, f kernelFeatures) error {
	cookie, err := netnsCookie()
	if err != nil {
		return err
	}
	for name, value := range map[string]any{
		bpfVarNatPortMin:       o.NATPortMin,
		bpfVarNatPortMax:       o.NATPortMax,
		bpfVarNatSpareMin:      o.spareMin,
		bpfVarNatSpareMax:      o.spareMax,
		bpfVarHostNetns:        cookie,
		bpfVarFibFlags:         f.fibFlags,
		bpfVarFibSource:        f.fibSource,
		bpfVarHasConntrack:     f.conntrack,
		bpfVarCsumIpv6:         f.csumIPv6,
		bpfVarRedirectPeer:     o.RedirectPeer,
		bpfVarTranslateSockets: !o.PacketsOnly,
		bpfVarXdpGeneric:       o.XDP == XDPGeneric,
		bpfVarPingServices:     o.PingServiceIPs,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("setting %s: %w", name, err)
		}
	}
	return nil
}
