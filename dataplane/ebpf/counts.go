package ebpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

// settleEvery is the least time between two passes that take what open flows
// carried into the counters because somebody asks.
const settleEvery = 2 * time.Second

// Counts returns the traffic of every Service of the last Sync, up to now. Safe
// for concurrent use.
func (d *Dataplane) Counts(context.Context) ([]view.Count, error) {
	d.settling.Lock()
	defer d.settling.Unlock()
	d.inUse.RLock()
	defer d.inUse.RUnlock()
	if time.Since(d.settled) > settleEvery {
		if _, err := runCollect(d.objs.Collect, d.o.Timeouts, 0); err != nil {
			return nil, err
		}
		d.settled = time.Now()
	}
	ids := map[uint32]view.Count{}
	d.mu.Lock()
	for _, plans := range d.planner.plans {
		for _, p := range plans {
			ids[p.id] = countOf(p.name, p.family)
		}
	}
	d.mu.Unlock()
	return countAll(ids, d.objs.ServiceCounts, d.objs.BackendCounts)
}

func countOf(name service.PortName, f service.Family) view.Count {
	return view.Count{Service: name, Family: f, Name: name.String(), Protocol: name.Protocol.String(), FamilyIs: f.String()}
}

// Counts returns what was counted when the last agent looked, or a flow ended.
func (r *Reader) Counts(context.Context) ([]view.Count, error) {
	c, err := r.contents()
	if err != nil {
		return nil, err
	}
	ids := map[uint32]view.Count{}
	for k, fe := range c.frontends {
		ids[fe.Service] = countOf(service.ParsePortName(c.nameOf(fe.Service), service.Protocol(k.Proto)), familyOf(k.Addr))
	}
	services, err := r.open(bpfMapServiceCounts)
	if err != nil {
		return nil, err
	}
	defer services.Close()
	backends, err := r.open(bpfMapBackendCounts)
	if err != nil {
		return nil, err
	}
	defer backends.Close()
	return countAll(ids, services, backends)
}

// countAll joins the two maps of counters.
func countAll(ids map[uint32]view.Count, services, backends *ebpf.Map) ([]view.Count, error) {
	perService, perBackend := map[uint32]bpfServiceStats{}, map[bpfMemberKey]bpfBackendStats{}
	if err := errors.Join(readArray(services, perService), readBatch(backends, perBackend)); err != nil {
		return nil, err
	}
	rows := make([]view.Count, 0, len(ids))
	at := make(map[uint32]int, len(ids))
	for id, row := range ids {
		s := perService[id]
		row.Traffic = trafficOf(s.Translated, s.Refused, s.Traffic.Packets, s.Traffic.Bytes)
		at[id] = len(rows)
		rows = append(rows, row)
	}
	for k, b := range perBackend {
		if i, ok := at[k.Service]; ok {
			rows[i].Backends = append(rows[i].Backends, view.BackendCount{Address: endpoint(k.Addr, k.Port).String(),
				Traffic: trafficOf(b.Translated, b.Refused, b.Traffic.Packets, b.Traffic.Bytes)})
		}
	}
	view.SortCounts(rows)
	return rows, nil
}

func trafficOf(translated, refused uint64, packets, bytes [2]uint64) view.Traffic {
	return view.Traffic{Connections: translated, Drops: refused, Packets: packets, Bytes: bytes}
}

// pruneEvery is how often counters of backends that are gone are looked for.
const pruneEvery = 5 * time.Minute

// pruneCounts removes the counters of backends that are in no Service any more.
// A flow that still goes there begins them anew.
func (d *Dataplane) pruneCounts() error {
	counted := map[bpfMemberKey]bpfBackendStats{}
	if err := readBatch(d.objs.BackendCounts, counted); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.synced {
		return nil
	}
	for k := range counted {
		ofRange := k
		ofRange.Port = 0 // an endpoint of a range of ports is listed without one
		_, is := d.planner.kernel.members[k]
		if _, spans := d.planner.kernel.members[ofRange]; is || spans {
			continue
		}
		if err := d.objs.BackendCounts.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("map %s: delete %s: %w", bpfMapBackendCounts, netip.AddrPort.String(endpoint(k.Addr, k.Port)), err)
		}
	}
	return nil
}
