package ebpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The kernel cannot resize a map. So resize makes maps of another size beside those that
// serve, fills them with what these hold, and loads new programs with them, which replace
// the old ones. Old and new programs share all maps that keep their size.
//
//  1. The agent stops writing to maps.
//  2. All maps are pinned in "maps_next". The new ones are filled.
//  3. "maps_next" and "maps" change their names in one step: from now on an agent that
//     starts, and a command that reads, finds the new ones, which are complete.
//  4. The links get the new programs, each in one step.
//  5. What the old programs wrote to old maps since 2 is added to the new ones.
//
// An agent that ends anywhere leaves maps that are complete, and the next one goes on
// from there: its start attaches its programs, as any start does, and removes "maps_next".

// holding is what a Dataplane has of the kernel: it changes as a whole.
type holding struct {
	objs       *objects
	filter     *flowFilter
	maps       writer
	read       func() (*contents, error)
	interfaces *interfaces // nil while the mode ends
}

// hold makes a holding of objects.
func (d *Dataplane) hold(objs *objects, p pins) holding {
	km := newKernelMaps(&objs.bpfMaps)
	h := holding{objs: objs, filter: &flowFilter{maps: &objs.bpfMaps, dir: p.maps}, maps: km, read: km.read}
	if !d.o.Drain {
		h.interfaces = &interfaces{o: &d.o, objs: objs, pins: p, features: d.features, attached: map[int]string{},
			accelerated: map[int]bool{}, refused: map[int]bool{}}
	}
	return h
}

// resize gives maps other sizes under traffic. No flow is lost, and no Service is
// without its maps at any moment. It must not run beside Sync, and d.mu must be free.
// If it fails, all is as it was.
func (d *Dataplane) resize(sizes Sizes) (err error) {
	d.pause()
	defer func() { err = errors.Join(err, d.work()) }()
	p := pinsOf(&d.o)
	if err := p.removeNext(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.removeNext()) }()
	o := d.o
	o.Sizes = sizes
	objs, moved, err := d.prepare(&o, p)
	if err != nil {
		return fmt.Errorf("resize maps: %w", err)
	}
	old := d.objs
	if err := d.replace(objs, moved, p); err != nil {
		return errors.Join(fmt.Errorf("resize maps: %w", err), objs.Close())
	}
	var names []any
	for _, m := range moved {
		names = append(names, m.name, m.to.MaxEntries())
	}
	d.o.Logger.Info("maps have other sizes now", names...)
	return old.Close()
}

// movedMap is a map that has another size than before.
type movedMap struct {
	name     string
	from, to *ebpf.Map
	copied   map[string][]byte // of counters: what was copied
}

// prepare makes programs with maps of o's sizes, and fills these.
func (d *Dataplane) prepare(o *Options, p pins) (_ *objects, moved []*movedMap, err error) {
	entries := o.Sizes.entries()
	next := p
	next.maps = p.next()
	if err := os.MkdirAll(next.maps, 0o700); err != nil {
		return nil, nil, fmt.Errorf("pins: %w", err)
	}
	named := d.objs.named()
	for _, name := range slices.Sorted(maps.Keys(named)) {
		m := named[name]
		if want, sized := entries[name]; sized && m.MaxEntries() != want {
			moved = append(moved, &movedMap{name: name, from: m})
		} else if err := pinAlso(m, next.maps+"/"+name); err != nil {
			return nil, nil, err
		}
	}
	// Flows add what they carried to the counters before these are copied.
	if _, err := runCollect(d.objs.Collect, d.o.Timeouts, 0); err != nil {
		return nil, nil, err
	}
	objs, err := loadObjects(o, next, d.features)
	if err != nil {
		return nil, nil, err
	}
	for _, m := range moved {
		m.to = objs.named()[m.name]
		if err := m.fill(); err != nil {
			return nil, nil, errors.Join(err, objs.Close())
		}
	}
	return objs, moved, nil
}

// replace attaches new programs in place of those that are at work, and moves on what
// these wrote meanwhile.
func (d *Dataplane) replace(objs *objects, moved []*movedMap, p pins) error {
	d.inUse.Lock()
	defer d.inUse.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := p.exchange(); err != nil {
		return err
	}
	old := d.holding
	d.holding = d.hold(objs, p)
	d.interfaces.pods, d.interfaces.waiting = old.interfaces.pods, d.waiting
	attach := func() error {
		if d.waiting { // for the first Sync, which attaches
			return nil
		}
		return d.inNamespace(func() error { return d.attach(p) })
	}
	if err := attach(); err != nil {
		d.holding = old
		d.interfaces.attached = map[int]string{}
		return errors.Join(err, p.exchange(), attach())
	}
	d.o.Sizes = sizesOf(&objs.bpfMaps)
	d.planner.limits, d.planner.maxID = limitsOf(d.o.Sizes), d.o.Sizes.Services
	errs := []error{awaitPrograms()}
	if errors.Is(errs[0], errNoBarrier) {
		errs = nil
	}
	for _, m := range moved {
		errs = append(errs, m.fillLate())
	}
	if err := errors.Join(errs...); err != nil {
		d.o.Logger.Warn("some of what was counted or cached while maps were resized is lost", "error", err)
	}
	return nil
}

// next is where maps of other sizes are pinned until they serve.
func (p pins) next() string { return p.maps + "_next" }

// exchange lets "maps" and "maps_next" change names in one step.
func (p pins) exchange() error {
	if err := unix.Renameat2(unix.AT_FDCWD, p.next(), unix.AT_FDCWD, p.maps, unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("pins: exchange %s and maps_next: %w", p.maps, err)
	}
	return nil
}

// removeNext removes maps that serve no more, or never did.
func (p pins) removeNext() error {
	if err := os.RemoveAll(p.next()); err != nil {
		return fmt.Errorf("pins: %w", err)
	}
	return nil
}

// pinAlso pins a map at one more place.
func pinAlso(m *ebpf.Map, path string) error {
	again, err := m.Clone() // which has no place yet
	if err != nil {
		return fmt.Errorf("map %s: %w", m, err)
	}
	defer again.Close()
	if err := again.Pin(path); err != nil {
		return fmt.Errorf("map %s: pin: %w", m, err)
	}
	return nil
}

// named are the maps that are pinned, by name.
func (m *bpfMaps) named() map[string]*ebpf.Map {
	out := map[string]*ebpf.Map{}
	v := reflect.ValueOf(m).Elem()
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("ebpf")
		if name != bpfMapScratch && !strings.HasPrefix(name, ".") {
			out[name] = v.Field(i).Interface().(*ebpf.Map)
		}
	}
	return out
}

// fill copies a map before the new one is in use.
func (m *movedMap) fill() error {
	if m.name != bpfMapServiceCounts && m.name != bpfMapBackendCounts {
		return copyMap(m.to, m.from, visitOf(m.name))
	}
	m.copied = map[string][]byte{}
	return copyMap(m.to, m.from, func(key, value []byte) { m.copied[string(key)] = bytes.Clone(value) })
}

// fillLate copies what programs wrote to the old map after fill: new entries, and what
// counters gained. Go's own maps have nothing of the kind.
func (m *movedMap) fillLate() error {
	switch m.name {
	case bpfMapFlows, bpfMapPairs, bpfMapAffinities, bpfMapFragments:
		return copyMap(m.to, m.from, visitOf(m.name))
	case bpfMapServiceCounts, bpfMapBackendCounts:
		return eachEntry(m.from, m.addGain)
	}
	return nil
}

// addGain adds to a counter what the old one has more than was copied.
func (m *movedMap) addGain(key, value []byte) error {
	was := m.copied[string(key)]
	if bytes.Equal(was, value) {
		return nil
	}
	if was == nil {
		was = make([]byte, len(value))
	}
	sum := make([]byte, len(value))
	if err := m.to.Lookup(key, &sum); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("map %s: %w", m.name, err)
	}
	for i := 0; i < len(value); i += 8 { // these are made of 64-bit counters alone
		gain := binary.NativeEndian.Uint64(value[i:]) - binary.NativeEndian.Uint64(was[i:])
		binary.NativeEndian.PutUint64(sum[i:], binary.NativeEndian.Uint64(sum[i:])+gain)
	}
	if err := m.to.Put(key, sum); err != nil {
		return fmt.Errorf("map %s: %w", m.name, err)
	}
	m.copied[string(key)] = bytes.Clone(value)
	return nil
}
