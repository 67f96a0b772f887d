package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/service"
)

// Affinities returns whom an agent of the instance left remembered in its
// maps, for the Services of a Table. What has timed out is left out.
func Affinities(o Options, table *service.Table) ([]service.Affinity, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	frontends, known := map[bpfFrontendKey]bpfFrontend{}, map[bpfAffinityKey]bpfAffinity{}
	if err := errors.Join(readPinned(o, bpfMapFrontends, frontends), readPinned(o, bpfMapAffinities, known)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	ports := map[uint32]*service.ServicePort{}
	for _, res := range table.Services {
		for i := range res.Ports {
			sp := &res.Ports[i]
			for _, f := range sp.Frontends {
				if fe, ok := frontends[frontendKey(sp, f)]; ok && sp.AffinityTimeout > 0 {
					ports[fe.Service] = sp
				}
			}
		}
	}
	now, err := monotonic()
	if err != nil {
		return nil, err
	}
	var out []service.Affinity
	for k, v := range known {
		if sp := ports[k.Service]; sp != nil && now < v.Seen+uint64(sp.AffinityTimeout) {
			out = append(out, service.Affinity{Port: sp.Name, Family: sp.Family, Client: unmapAddr(k.Client),
				Backend: netip.AddrPortFrom(unmapAddr(v.Addr), networkPort(v.Port))})
		}
	}
	return out, nil
}

func readPinned[K comparable, V any](o Options, name string, into map[K]V) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(pinsOf(&o).maps, name), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("open pinned map %s: %w", name, err)
	}
	defer m.Close()
	return readMap(m, into)
}

// Remember takes in what another mode remembered, after a Sync. Whom the
// programs know already stays as they know them.
func (d *Dataplane) Remember(all []service.Affinity) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	now, err := monotonic()
	if err != nil {
		return err
	}
	for _, a := range all {
		for _, p := range d.planner.plans[a.Port.Name] {
			if p.name != a.Port || p.family != a.Family {
				continue
			}
			key := bpfAffinityKey{Client: mapAddr(a.Client), Service: p.id}
			value := bpfAffinity{Addr: mapAddr(a.Backend.Addr()), Port: networkPort(a.Backend.Port()), Seen: now}
			if err := d.objs.Affinities.Update(key, value, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
				return fmt.Errorf("remember %s: %w", a.Client, err)
			}
		}
	}
	return nil
}

// monotonic is the clock of bpf_ktime_get_ns.
func monotonic() (uint64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	return uint64(ts.Nano()) / uint64(time.Nanosecond), nil
}
