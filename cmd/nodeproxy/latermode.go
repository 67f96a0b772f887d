package main

import (
	"slices"

	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
)

// onlyCgroup tells whether ebpf mode lacks a cgroup and nothing else. The rest is the
// kernel's, and does not change while it runs.
func onlyCgroup(features []ebpf.Feature) bool {
	missing := slices.DeleteFunc(slices.Clone(features), func(f ebpf.Feature) bool { return f.Present || !f.Required })
	return len(missing) == 1 && missing[0].Name == ebpf.CgroupFeature
}

// reviewMode says once that the cgroup is there now which --mode auto missed at the
// start. Which mode serves is decided at the start alone, since both modes would have to
// be open at once.
func (o *observer) reviewMode() {
	if !o.awaitsCgroup || !ebpf.ProbeCgroup(o.opts.cgroup).Present {
		return
	}
	o.awaitsCgroup = false
	why := *o.whyMode.Load() + "; it is there now: started anew, the agent takes ebpf mode"
	o.whyMode.Store(&why)
	o.log.Info("mode auto: the cgroup that ebpf mode needs is there now; started anew, the agent takes ebpf mode")
}
