package ebpf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

const (
	// watchRate is how many events a second the programs write at most.
	watchRate = 2000
	// watchPause is how often a watcher looks whether events were lost.
	watchPause = time.Second
)

// verdicts are what reasons amount to; all others are drops.
var verdicts = map[string]string{
	"flow_new": "translate", "socket_translated": "translate",
	"no_endpoints": "reject", "socket_refused": "reject", "unknown_port": "reject", "unknown_flow": "reject",
	"ttl": "reject", "too_big": "reject",
}

// Watch tells emit of every flow that begins or is refused, and of every packet
// that is dropped, until ctx ends. ready is called once nothing is missed any
// more. There can be one watcher of an instance at a time. Events beyond
// 2,000 a second are left out, and told as one of the verdict "lost".
func (r *Reader) Watch(ctx context.Context, ready func(), emit func(view.Event)) error {
	w := &watcher{names: map[uint32]string{}, emit: emit}
	for name, m := range map[string]**ebpf.Map{bpfMapWatch: &w.watch, bpfMapEvents: &w.ring, bpfMapNames: &w.ids} {
		var err error
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(pinsOf(&r.o).maps, name), nil); err != nil {
			return fmt.Errorf("open pinned map %s: %w", name, err)
		}
		defer (*m).Close()
	}
	events, err := ringbuf.NewReader(w.ring)
	if err != nil {
		return fmt.Errorf("map %s: %w", bpfMapEvents, err)
	}
	defer events.Close()
	if err := w.watch.Put(uint32(0), bpfWatch{On: 1, Rate: watchRate}); err != nil {
		return fmt.Errorf("map %s: %w", bpfMapWatch, err)
	}
	defer w.watch.Put(uint32(0), bpfWatch{}) // if that fails, the next agent does it
	ready()
	return w.run(ctx, events)
}

// watcher reads events.
type watcher struct {
	watch, ring, ids *ebpf.Map
	names            map[uint32]string
	lost             uint64
	emit             func(view.Event)
}

func (w *watcher) run(ctx context.Context, events *ringbuf.Reader) error {
	for ctx.Err() == nil {
		events.SetDeadline(time.Now().Add(watchPause))
		record, err := events.Read()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			w.tellLost()
			continue
		case err != nil:
			return fmt.Errorf("map %s: read: %w", bpfMapEvents, err)
		}
		var e bpfEvent
		if len(record.RawSample) < binary.Size(e) {
			continue // from the programs of an older version, before they were replaced
		}
		if _, err := binary.Decode(record.RawSample, binary.NativeEndian, &e); err != nil {
			return fmt.Errorf("map %s: decode: %w", bpfMapEvents, err)
		}
		w.emit(w.event(&e))
	}
	return nil
}

func (w *watcher) tellLost() {
	var state bpfWatch
	if err := w.watch.Lookup(uint32(0), &state); err == nil && state.Lost > w.lost {
		w.emit(view.Event{Time: time.Now(), Verdict: "lost", Reason: "too_many", Packets: state.Lost - w.lost})
		w.lost = state.Lost
	}
}

// event puts an event into a row.
func (w *watcher) event(e *bpfEvent) view.Event {
	out := view.Event{Time: wallTime(e.Time), Verdict: "drop", Reason: fmt.Sprint("reason ", e.Reason), Protocol: service.Protocol(e.T.Proto).String(),
		Service: w.name(e.Service), Destination: endpoint(e.T.Dst, e.T.Dport)}
	if e.Reason < uint32(len(reasonNames)) {
		out.Reason = reasonNames[e.Reason]
	}
	if v, ok := verdicts[out.Reason]; ok {
		out.Verdict = v
	}
	if e.T.Src != (bpfAddr{}) {
		out.Source = endpoint(e.T.Src, e.T.Sport)
	}
	if e.To.Dst != (bpfAddr{}) {
		backend := endpoint(e.To.Dst, e.To.Dport)
		out.Backend = &backend
		if source := endpoint(e.To.Src, e.To.Sport); source != out.Source && e.To.Src != (bpfAddr{}) {
			out.SeenAs = &source
		}
	}
	out.Process = process(e)
	return out
}

// process returns the process that made a socket call; nil for packets, and if it is not known.
func process(e *bpfEvent) *view.Process {
	if e.Process == 0 {
		return nil
	}
	name, _, _ := bytes.Cut(e.Program[:], []byte{0})
	quoted := strconv.Quote(string(name)) // anybody may call a process anything, a terminal's codes too
	return &view.Process{Name: quoted[1 : len(quoted)-1], ID: e.Process}
}

// name is what an id stands for; "" if nothing.
func (w *watcher) name(id uint32) string {
	if name, ok := w.names[id]; ok {
		return name
	}
	var v bpfServiceName
	if err := w.ids.Lookup(id, &v); err != nil {
		return ""
	}
	w.names[id] = v.text()
	return w.names[id]
}

// wallTime is the time of day at which the monotonic clock showed ns.
func wallTime(ns uint64) time.Time {
	now, err := monotonic()
	if err != nil {
		return time.Now()
	}
	return time.Now().Add(-time.Duration(now - min(now, ns)))
}

// stopWatch ends what an agent that was killed may have left on.
func (d *Dataplane) stopWatch() error {
	if err := d.objs.Watch.Put(uint32(0), bpfWatch{}); err != nil {
		return fmt.Errorf("map %s: %w", bpfMapWatch, err)
	}
	return nil
}
