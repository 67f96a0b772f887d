package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// flowMaps are what a new layout takes over from an old one. A change of
// what is in them, but for more at the end, has to rename the map.
var flowMaps = []string{bpfMapFlows, bpfMapPairs, bpfMapAffinities, bpfMapFragments}

// otherLayouts are the directories of releases with another layout.
func (p pins) otherLayouts() ([]string, error) {
	entries, err := os.ReadDir(p.root)
	if err != nil {
		return nil, fmt.Errorf("pins: %w", err)
	}
	var dirs []string
	for _, e := range entries {
		if e.Name() != layoutVersion {
			dirs = append(dirs, filepath.Join(p.root, e.Name()))
		}
	}
	return dirs, nil
}

// hasOtherLayouts reports whether the programs of another layout are attached.
func (p pins) hasOtherLayouts() bool {
	dirs, _ := p.otherLayouts() // a directory that cannot be read is reported when it is removed
	return len(dirs) > 0
}

// otherLink is the link of another layout at the same hook, or nil.
func (p pins) otherLink(name string) link.Link {
	dirs, _ := p.otherLayouts() // as above
	for _, dir := range dirs {
		if l, err := link.LoadPinnedLink(filepath.Join(dir, "links", name), nil); err == nil {
			return l
		}
	}
	return nil
}

// removeOther ends the link of other layouts at a hook that takes one only.
func (p pins) removeOther(name string) error {
	dirs, _ := p.otherLayouts() // as above
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, detachPinned(filepath.Join(dir, "links", name)))
	}
	return errors.Join(errs...)
}

// copyFlows takes over the flows of other layouts. A map whose keys have
// another size, or whose values were longer, is left: its flows end with their
// programs.
func (p pins) copyFlows(objs *objects) error {
	dirs, err := p.otherLayouts()
	if err != nil {
		return err
	}
	ours := map[string]*ebpf.Map{bpfMapFlows: objs.Flows, bpfMapPairs: objs.Pairs,
		bpfMapAffinities: objs.Affinities, bpfMapFragments: objs.Fragments}
	for _, dir := range dirs {
		for _, name := range flowMaps {
			old, err := ebpf.LoadPinnedMap(filepath.Join(dir, "maps", name), &ebpf.LoadPinOptions{ReadOnly: true})
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("pinned map %s of another layout: %w", name, err)
			}
			err = errors.Join(copyMap(ours[name], old, visitOf(name)), old.Close())
			if err != nil {
				return fmt.Errorf("take over map %s: %w", name, err)
			}
		}
	}
	return nil
}

// removeOtherLayouts ends what a release with another layout left, once ours
// works.
func (p pins) removeOtherLayouts() error {
	dirs, err := p.otherLayouts()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		// Programs before their maps, as in Cleanup.
		if err := errors.Join(os.RemoveAll(filepath.Join(dir, "links")), os.RemoveAll(dir)); err != nil {
			return fmt.Errorf("pins: remove layout %s: %w", filepath.Base(dir), err)
		}
	}
	return nil
}
