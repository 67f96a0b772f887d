/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets that no half of a flow knows, though it may have been deleted only. */
#ifndef NODEPROXY_LOST_H
#define NODEPROXY_LOST_H

/*
 * Makes the half of the packet's direction again from the other half, and fills
 * in w->to. pairs only says where that one would be: while it is there, the
 * flow lives; if both are gone, it is over, whatever pairs still says.
 */
static __noinline bool revive(struct work *w)
{
	struct tuple *other, key;
	struct flow *f;

	if (!w)
		return false;
	other = bpf_map_lookup_elem(&pairs, &w->p.t);
	if (!other)
		return false;
	key = *other;
	f = bpf_map_lookup_elem(&flows, &key);
	if (!f || f->flags & FLOW_REST)
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
static __noinline bool find_lost(struct work *w)
{
	struct flow *f;

	if (!w)
		return false;
	if (w->known)
		return revive(w);
	f = bpf_map_lookup_elem(&flows, &w->p.t);
	if (!f)
		return revive(w);
	if (f->flags & (FLOW_FOREIGN | FLOW_REST) || !keep_flow(w, f, 0))
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
static __noinline int resume(struct __sk_buff *skb, struct work *w)
{
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

/* Whether some frontend has the address, and no interface of this node. */
static __always_inline bool is_owned(__u32 flags)
{
	return (flags & (ADDRESS_VIP | ADDRESS_LOCAL)) == ADDRESS_VIP;
}

/*
 * An unknown port of an address that exists for services alone is refused:
 * left to the stack it would go back to the router that sent it here, and round
 * until its TTL is used up.
 */
static __always_inline int refuse_unknown(struct __sk_buff *skb, struct work *w)
{
	count(REASON_UNKNOWN_PORT, w->p.total);
	tell(&w->p.t, NULL, EVENT_NO_SERVICE, REASON_UNKNOWN_PORT);
	if (w->p.t.proto == IPPROTO_TCP && w->p.saw == FRAGMENT_NONE)
		return answer_reset(skb, w);
	return answer_icmp(skb, w, ANSWER_PORT_UNREACHABLE, 0);
}

/* ICMP and all other protocols without ports. */
static __always_inline int no_ports(struct __sk_buff *skb, struct work *w)
{
	bool error = is_icmp_error(&w->p);

	if (error && find_quoted(skb, w, &w->quote, &w->inner))
		return deliver_error(skb, w);
	/* Neighbour discovery and the like is the stack's. */
	if (!error && w->p.icmp_type != (w->p.v4 ? ICMP_ECHO : ICMPV6_ECHO_REQUEST))
		return NEXT;
	if (!is_owned(address_flags(&w->p.t.dst)))
		return NEXT;
	if (error)
		return drop(REASON_UNKNOWN_PORT, &w->p);
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
	if (is_owned(flags) && (syn || w->p.t.proto != IPPROTO_TCP))
		return refuse_unknown(skb, w);
	if (!range || w->egress || syn || !(flags & ADDRESS_LOCAL))
		return NEXT;
	if (find_lost(w))
		return resume(skb, w);
	reverse(&w->to, &w->p.t);
	return socket_holds(skb, w) ? NEXT : drop(REASON_UNKNOWN_REPLY, &w->p);
}

#endif
