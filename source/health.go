package source

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// Health says how a source is.
type Health struct {
	// Complete means that everything was read once and handed on.
	Complete bool
	// Problem is why the source cannot be read now, in words; empty if it can. What
	// was read before stays in force.
	Problem string
	// Ignored are objects, parts of them, or files that are not used, each with the
	// reason in words, sorted.
	Ignored []string
}

// Health tells how the source is. It may be called concurrently with Run.
func (f *File) Health() Health {
	if h := f.health.Load(); h != nil {
		return *h
	}
	return Health{Problem: "nothing was read yet"}
}

// noteHealth keeps what Health returns; problem is that of the path itself.
func (f *File) noteHealth(problem string) {
	h := Health{Complete: f.begun, Problem: problem}
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		known, base := f.files[name], filepath.Base(name)
		if known.complain != "" {
			h.Ignored = append(h.Ignored, base+": "+known.complain)
			if !f.begun && h.Problem == "" {
				h.Problem = fmt.Sprintf("%s cannot be read: %s", base, known.complain)
			}
		}
		for _, text := range known.notes {
			h.Ignored = append(h.Ignored, base+": "+text)
		}
	}
	if f.strange != "" {
		h.Ignored = append(h.Ignored, f.strange)
	}
	f.health.Store(&h)
}

// checkNode warns, once, where there are Nodes and none is this one: then its zone
// and Pod CIDRs are not known, and endpoints on it are not seen as local.
func (f *File) checkNode() {
	var names []string
	for _, c := range f.given {
		names = append(names, slices.Collect(maps.Keys(c.nodes))...)
	}
	before := f.strange
	f.strange = ""
	if f.NodeName != "" && len(names) > 0 && !slices.Contains(names, f.NodeName) {
		slices.Sort(names)
		f.strange = fmt.Sprintf("Node %s is not in the manifests (%s are): use --hostname-override", f.NodeName, strings.Join(names[:min(5, len(names))], ", "))
	}
	if f.strange != "" && f.strange != before {
		f.Log.Warn("this Node is not in the manifests; going on without its zone and Pod CIDRs", "problem", f.strange)
	}
}

// Health tells how the source is. It may be called concurrently with Run.
func (k *Kubernetes) Health() Health {
	h := Health{Complete: k.complete.Load(), Problem: k.link.problem()}
	if !h.Complete && h.Problem == "" {
		h.Problem = "waiting for the first lists of the API server"
	}
	k.warned.Range(func(what, text any) bool {
		h.Ignored = append(h.Ignored, fmt.Sprintf("%s: %s", what, text))
		return true
	})
	slices.Sort(h.Ignored)
	return h
}

// problem is what keeps kinds from being read, in one line; empty if nothing does.
func (l *apiLink) problem() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, what := range slices.Sorted(maps.Keys(l.failing)) {
		if text := l.failing[what]; !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return strings.Join(out, "; ")
}
