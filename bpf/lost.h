/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets that no half of a flow knows, though it may have been deleted only. */
#ifndef NODEPROXY_LOST_H
#define NODEPROXY_LOST_H

/*
 * Makes the half of the packet's direction again from the other half, and fills
 * in w->to. pairs only says where that one would be: while it is there, the
 * flow lives; if both are gone, it is over, whatever pairs still says.
 */
__noinline bool revive(struct work *w)
{
	struct tuple *other, key;
	struct flow *f;

	w = own_work(w);
	if (!w)
		return false;
	other = bpf_map_lookup_elem(&pairs, &w->p.t);
	if (!other)
		return false;
	key = *other;
	f = bpf_map_lookup_elem(&flows, &key);
	if (!f || f->flags & (FLOW_REST | FLOW_STACK))
		return false;
	other_half(w, &key, f);
	if (!same_tuple(&w->peer, &w->p.t))
		return false;
	w->flow.seen = bpf_ktime_get_coarse_ns();
	w->flow.tcp = TCP_SEEN_ACK;
	w->to = w->flow.to;
	announce_flow(&w->p.t);
	if (bpf_map_update_elem(&flows, &w->p.t, &w->flow, BPF_NOEXIST) == 0)
		count(REASON_FLOW_REBUILT, w->p.total);
	return true;
}

/*
 * revive for a packet whose flow was perhaps not looked up at all: should the
 * filter lack a half, a connection must not be reset for it. For packets that
 * would be, so that all others are spared the lookup.
 */
__noinline bool find_lost(struct work *w)
{
	struct flow *f;

	w = own_work(w);
	if (!w)
		return false;
	if (w->known)
		return revive(w);
	f = bpf_map_lookup_elem(&flows, &w->p.t);
	if (!f)
		return revive(w);
	if (f->flags & (FLOW_FOREIGN | FLOW_REST | FLOW_STACK) || !keep_flow(w, f, 0))
		return false;
	f->packets++;
	f->bytes += w->p.total;
	w->to = f->to;
	announce_flow(&w->p.t);
	reverse(&w->peer, &f->to);
	announce_flow(&w->peer);
	return true;
}

/* A packet that revive found a flow for: rare, so it is not worth its place in
 * the program three times. */
__noinline int resume(struct __sk_buff *skb, struct work *w)
{
	w = own_work(w);
	return w ? deliver(skb, w) : TC_ACT_SHOT;
}

/* Whether the packet comes from a port at which some service has a backend. */
static __always_inline bool from_backend_port(const struct work *w)
{
	__u32 port = bpf_ntohs(w->p.t.sport);
	__u32 bit = port_bit(w->p.t.proto) << PORT_BACKEND_SHIFT;
	__u32 *use = bpf_map_lookup_elem(&ports, &port);

	return (use && *use & bit) || has_ranges(bit);
}

static __always_inline bool in_masquerade_range(const struct work *w)
{
	__u16 port = bpf_ntohs(w->p.t.dport);

	return port >= nat_port_min && port <= nat_port_max && w->p.t.proto != IPPROTO_SCTP;
}

/* Whether forwarding would send the packet back to where it came from.
 * writes w->to, w->fib */
static __always_inline bool would_return(struct __sk_buff *skb, struct work *w)
{
	w->to = w->p.t;
	fill_question(w, skb->ifindex, 0);
	if (bpf_fib_lookup(skb, &w->fib, sizeof(w->fib), fib_flags) < 0)
		return false;
	return w->fib.ifindex == skb->ifindex;
}

/*
 * Whether the packet's destination, whose flags are given, is not to be forwarded
 * untranslated: a ClusterIP, which no machine has; and any other address of a service
 * if the packet would only go back, for there may be a machine that has it.
 */
static __always_inline bool is_owned(struct __sk_buff *skb, struct work *w, __u32 flags)
{
	if ((flags & (ADDRESS_VIP | ADDRESS_LOCAL)) != ADDRESS_VIP)
		return false;
	return flags & ADDRESS_CLUSTER_IP || (!w->egress && would_return(skb, w));
}

/*
 * An unknown port of an address that exists for services alone is refused:
 * left to the stack it would go back to the router that sent it here, and round
 * until its TTL is used up.
 */
static __always_inline int refuse_unknown(struct __sk_buff *skb, struct work *w)
{
	if (!w->egress && is_martian(&w->p.t.src))
		return drop(REASON_MARTIAN, &w->p);
	count(REASON_UNKNOWN_PORT, w->p.total);
	tell(&w->p.t, NULL, EVENT_NO_SERVICE, REASON_UNKNOWN_PORT);
	if (w->p.t.proto == IPPROTO_TCP && w->p.saw == FRAGMENT_NONE)
		return answer_reset(skb, w);
	return answer_icmp(skb, w, ANSWER_PORT_UNREACHABLE, 0);
}

/* Router and neighbour solicitations and advertisements, and redirects: the stack's. */
static __always_inline bool is_discovery(const struct packet *p)
{
	return !p->v4 && p->icmp_type >= 133 && p->icmp_type <= 137;
}

/* ICMP, and all that has no ports. */
static __always_inline int no_ports(struct __sk_buff *skb, struct work *w)
{
	bool icmp = !w->p.opaque, error = icmp && is_icmp_error(&w->p);

	if (error) {
		switch (find_quoted(skb, w, &w->quote, &w->inner)) {
		case QUOTED_FLOW:
			return deliver_error(skb, w);
		case QUOTED_TRACKED:
			return NEXT;
		case QUOTED_NONE:
			break;
		}
	}
	if (icmp && is_discovery(&w->p))
		return NEXT;
	if (!is_owned(skb, w, address_flags(&w->p.t.dst)))
		return NEXT;
	if (!w->egress && is_martian(&w->p.t.src))
		return drop(REASON_MARTIAN, &w->p);
	if (!icmp)
		return drop(REASON_UNKNOWN_PROTOCOL, &w->p);
	if (w->p.icmp_type != (w->p.v4 ? ICMP_ECHO : ICMPV6_ECHO_REQUEST))
		return drop(error ? REASON_UNKNOWN_PORT : REASON_UNKNOWN_PROTOCOL, &w->p);
	if (ping_services && w->p.saw == FRAGMENT_NONE) {
		count(REASON_ECHO, w->p.total);
		return answer_echo(skb, w);
	}
	return refuse_unknown(skb, w);
}

/*
 * No flow, no frontend. Almost everything ends here and goes on. What must not:
 * replies of a flow whose half is lost, for the client does not know their
 * source, and to a masquerade port the stack would answer with a reset; and what
 * is for a service's address.
 */
static __always_inline int stranger(struct __sk_buff *skb, struct work *w)
{
	bool syn = is_syn(&w->p), range = in_masquerade_range(w);
	__u32 flags = w->dst_flags;
	struct node *n = node_facts();

	if (!syn && n && n->flags & NODE_PASS_UNKNOWN)
		return NEXT; /* may be netfilter's, which takes ports as it likes */
	if (!syn && w->known && from_backend_port(w) && revive(w))
		return resume(skb, w);
	if (is_tracked(&w->p.t) && is_owned(skb, w, flags)) {
		enum tracked found = find_tracked(skb, w, &w->p.t);

		if (found != TRACKED_NONE && found != TRACKED_HALF)
			return NEXT;
		return refuse_unknown(skb, w);
	}
	if ((syn || w->p.t.proto != IPPROTO_TCP) && is_owned(skb, w, flags))
		return refuse_unknown(skb, w);
	if (!range || w->egress || syn || !(flags & ADDRESS_LOCAL))
		return NEXT;
	if (find_lost(w))
		return resume(skb, w);
	if (is_tracked(&w->p.t))
		return NEXT; /* netfilter takes ports as it likes */
	reverse(&w->to, &w->p.t);
	return socket_holds(skb, w) ? NEXT : drop(REASON_UNKNOWN_REPLY, &w->p);
}

#endif
