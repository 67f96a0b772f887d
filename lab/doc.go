// Package lab builds a small cluster out of network namespaces, for tests,
// benchmarks and demonstrations of a node proxy: real links, real routes, real
// processes, on one machine.
//
//	client ── router ──┬── node-a ── pod-a1, pod-a2
//	                   └── node-b ── pod-b1, pod-b2
//
// Every place is a named network namespace ("np-LAB-PLACE", so that `ip netns
// exec` works) and a cgroup, in which all processes of that place are born: a
// program attached to a node's cgroup sees the processes of that node and its
// Pods, and no other of the machine. All of it is dual-stack. [Places] lists
// the addresses.
//
// Labs with different names live side by side. Everything that a lab makes
// has a name that follows from its own, so [Down] finds it all, also after the
// process that made it was killed.
package lab
