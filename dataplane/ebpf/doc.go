// Package ebpf makes BPF maps and programs say what a [service.Table] says.
//
// # Hooks
//
// Programs at a cgroup translate sockets when they connect or send
// (bpf/sock.h); after that a flow costs nothing per packet. What a socket call
// cannot know, its own source, is what some decisions hang on: session
// affinity, source ranges, masquerading, and a source port that the application
// chose. Such calls are left alone ("socket_aside") and translated packet by
// packet, where the source is known. So is a route that says drop: no errno is
// right for it, since some callers retry EPERM for ever, and the packet path
// lets them time out. Sockets of the node's own namespace are told by its
// cookie; they count as the node, and their client address is the node's first.
// Sockets elsewhere are a Pod's if all addresses of their namespace are in the Pods'
// network, and a stranger's if none is (bpf/sock_source.h). If some are, the call is left alone.
//
// One program at tc ingress of every selected interface does the rest. At tc
// egress the same code looks only at what this host itself sends, which enters
// by no interface: the replies of backends in the node's network, and sockets
// that no cgroup program saw. Forwarded packets pass egress after one
// comparison. TCX is used where the kernel has it, clsact where not.
//
// # The way of a packet
//
// The kernel's conntrack owns every TCP and UDP flow; docs/design/flows.md has the
// states and the steps.
//
//	parse (packet.h) - half in flows? (ct_bypass.h) - fast, and plain: route (fib.h), rewrite.h, send.h
//	                                                - else: counted, to the stack, which translates
//	                   no: frontend? (frontend.h) - no: tc_none.h, to the next program
//	                       yes: ct_new.h: conntrack is asked (ct.h); policy, backend (backend.h), source,
//	                            conntrack entry with its translation, both halves (ct_note.h); to the stack
//	ICMP errors are conntrack's. reply.h makes resets and ICMP errors, so many a second.
//
// What the stack refuses, cuts, or sends by a route of its own is the stack's. On the fast
// way a packet leaves by bpf_fib_lookup and bpf_redirect_neigh, or bpf_redirect_peer where
// asked for, and meets no netfilter; [Options.Forwarding] says when.
//
// SCTP flows, and those of an agent of an older layout, are translated by flows itself:
// tc_new.h, flow.h, flow_close.h, flow_repair.h, snat.h. So is everything on a kernel without conntrack's
// functions for programs.
//
// A packet that is no Service's costs a look into a Bloom filter (flow_bloom.h), a lookup of
// its destination address, and one of its port if that is in use.
//
// Frames for other hosts are not looked at (tc_receiver.h). Martian sources are dropped
// where they would be translated ("martian"). Of a ClusterIP, what no Service serves is
// refused or dropped ("unknown_port", "unknown_protocol"); of any other Service address
// only what would go back to where it came from.
//
// At XDP of uplinks, where asked for, packets on the fast way that leave by an uplink too
// take a short cut (xdp.h); all others go on to tc.
//
// # Maps
//
//	frontends       address, port, protocol -> service id, generation, counts, routes; a
//	                node port has the address 0.0.0.0 or ::
//	backends        service id, generation, slot -> endpoint; the local list's slots follow
//	                the cluster list's
//	members         service id, endpoint -> in which lists, and whether it serves; asked by
//	                affinity, and by flows after a change
//	services        service id -> epoch, which changes with members
//	source_ranges   service id, prefix
//	addresses       address -> of this node, carries node ports, some frontend's, a ClusterIP
//	ports           port -> bits: has frontends, or backends, by protocol; a filter,
//	                nothing else
//	interfaces      index -> masquerade address, hardware address, Pods', a Pod's veth
//	node            the facts of the node
//	flows           5-tuple -> what the packet becomes, state, last seen; two halves each
//	flow_filters, flow_filter_state
//	                a Bloom filter before flows, filled in turns
//	promotions      flows that the agent is asked to make ready for the fast way
//	answer_times    address -> when the next answer to it is due
//	source_share    half-open flows that one source may have; 0 while conntrack has room
//	sources         source -> how many it has
//	half_open       which flows these are, in turns
//	affinities      service id, client -> endpoint, last use
//	pairs           a flow's key in one direction -> in the other; oldest go first
//	fragments       source, destination, id, protocol -> ports
//	service_counts  service id -> flows begun and refused, packets and bytes
//	backend_counts  service id, endpoint -> the same
//	names           service id -> "namespace/name:port", for who looks without an agent
//	watch, events   whether somebody watches; and the ring of what there is to see
//	metrics         by reason (bpf/reason.h), per CPU
//	sockets         socket storage: what was asked for and what was given
//
// A service id stands for one ServicePort of the Table. It is taken over from
// the frontends in the kernel after a restart.
//
// # Invariants
//
// After each single write a packet sees the old set of endpoints or the new
// one. planner.order says how; a set of slots is never changed under a
// generation that a frontend names. TestTransitionsNeverLeaveAHole looks after
// every write, TestFailAtEveryWrite fails each.
//
// A flow that conntrack owns outlives its halves: flows is a cache of it.
//
// A flow that flows owns is two halves. What a half makes of a packet, read backwards, is
// the other's key. The reply half is inserted first and deleted last. Each half looks for
// the other once a second and makes it again. It is never given up for a new one: when
// flows is full, new flows are dropped and counted. From 80 % on, unanswered and closing
// flows are collected early.
//
// The collect program decides and deletes in one go in the kernel.
//
// UDP flows leave a backend that does not serve any more with the next packet;
// TCP flows stay with it, but for a new SYN. A connected socket that was
// translated to it gets ECONNABORTED, as [Options.Terminate] says.
//
// # Restart
//
// Maps and links are pinned in PinRoot/instance/version. [New] replaces the
// programs in the pinned links, which is atomic for each, and opens the pinned
// maps. Nothing in them changes until the first [Dataplane.Sync].
//
// # Limits
//
//   - SCTP ports cannot be changed, since no helper sums CRC32c: such flows are
//     dropped ("sctp_port"). Equal ports work.
//   - A socket that talks to two destinations with one backend by UDP, without
//     connecting, cannot tell their answers apart: they bear the older's address.
//   - Where Pods are told from others by interfaces, sockets of Pods are translated only
//     where that makes no difference: by which interface packets will come, a socket call
//     does not tell.
//   - conntrack's own events and counters do not show these flows (a limit of the kernel's
//     functions for programs): the counters and events here do.
//   - Kernels before 6.7 do not tell a program the source that a route gives: the
//     interface's first address is used.
package ebpf
