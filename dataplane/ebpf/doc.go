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
//
// One program at tc ingress of every selected interface does the rest. At tc
// egress the same code looks only at what this host itself sends, which enters
// by no interface: the replies of backends in the node's network, and sockets
// that no cgroup program saw. Forwarded packets pass egress after one
// comparison. TCX is used where the kernel has it, clsact where not.
//
// # The way of a packet
//
//	parse (packet.h) - flow? (flow.h) - yes: route, rewrite, send (forward.h, nat.h)
//	                                  - no: frontend? (lookup.h) - no: lost.h, to the next program
//	                                        yes: begin.h: policy, backend, route, source port,
//	                                             both halves of the flow, rewrite, send
//	ICMP errors (icmp.h) are about a flow or go on. answer.h makes resets and ICMP errors.
//
// A translated packet leaves by bpf_fib_lookup and bpf_redirect_neigh, or
// bpf_redirect_peer where asked for, and meets no netfilter. It is left to the
// stack if its destination is this host, and where only the stack can send it
// (IPv4 to be cut in pieces, forwarding off, routes that encapsulate). The stack
// refuses packets that come with the host's own source, so a masqueraded one of
// those is dropped and counted ("unsendable").
//
// A flow hit costs one hash lookup. A packet that is no service's costs the
// same miss and two array lookups by port, and another hash lookup for each of
// these: some frontend has its destination port; a backend somewhere has its
// source port, and it is no SYN; it is no TCP, or a SYN.
//
// At XDP of uplinks, where asked for, packets of known flows that leave by an
// uplink too take a short cut (xdp.h); all others go on to tc.
//
// An unknown port of an address that only Services have is refused, and so are
// echo requests to it ("unknown_port").
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
//	addresses       address -> of this node, carries node ports, some frontend's
//	ports           port -> bits: has frontends, or backends, by protocol; a filter,
//	                nothing else
//	interfaces      index -> masquerade address, Pods', a Pod's veth
//	node            the facts of the node
//	flows           5-tuple -> what the packet becomes, state, last seen; two halves each
//	affinities      service id, client -> endpoint, last use
//	pairs           a flow's key in one direction -> in the other; oldest go first
//	fragments       source, destination, id, protocol -> ports
//	service_counts  service id -> flows begun and refused, packets and bytes
//	backend_counts  service id, endpoint -> the same
//	names           service id -> "namespace/name:port", for who looks without an agent
//	watch, events   whether somebody watches; and the ring of what there is to see
//	metrics         by reason (bpf/drop.h), per CPU
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
// A flow is two halves. What a half makes of a packet, read backwards, is the
// other's key. The reply half is inserted first and deleted last. Each half
// looks for the other once a second and makes it again. A packet that finds no
// half of its own asks pairs where the other would be, and makes it again at
// once if that one is there (lost.h).
//
// An established flow is never given up for a new one: flows is a plain hash.
// When it is full, new flows are dropped and counted. From 80 % on, unanswered
// and closing flows are collected early.
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
//   - Masqueraded flows towards one endpoint at a time: as many as there are
//     masquerade ports, 4,536 by default. When free ones are hard to find, those
//     of closed TCP connections are taken, and of UDP flows that were one
//     question and answer five seconds ago.
//   - Without socket programs ([Options.PacketsOnly]) a process of the host
//     reaches neither node ports on loopback nor, through a Service, a backend
//     in the host's own network: no program is on lo.
//   - SCTP ports cannot be changed, since no helper sums CRC32c: such flows are
//     dropped ("sctp_port"). Equal ports work.
//   - A later fragment that overtakes the first is dropped ("fragment_orphan")
//     if it is to a service's own address, and left to the stack otherwise.
//   - At an external or load-balancer address that some machine has besides, the
//     programs refuse every port that no Service has; [service.Kind.MayBeAMachines]
//     says what is meant. At most 1,024 addresses of each network that is local by
//     a route are known.
//   - A socket that talks to two destinations with one backend by UDP, without
//     connecting, cannot tell their answers apart: they bear the older's address.
package ebpf
