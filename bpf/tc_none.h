/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets that have no flow and no frontend. */
#ifndef NODEPROXY_TC_NONE_H
#define NODEPROXY_TC_NONE_H

#include "base.h"
#include "config.h"
#include "ct.h"
#include "events.h"
#include "fib.h"
#include "flow_repair.h"
#include "icmp_error.h"
#include "metrics.h"
#include "packet.h"
#include "reason.h"
#include "reply.h"
#include "scratch.h"
#include "send.h"
#include "sklookup.h"
#include "source.h"
#include "stats.h"
#include "types.h"

/* A later fragment of a datagram whose first was not seen. */
static __always_inline int orphan_fragment(struct work *w)
{
	__u32 flags = address_flags(&w->p.t.dst);

	if (flags & ADDRESS_VIP)
		return drop(REASON_FRAGMENT_ORPHAN, &w->p);
	if (flags & ADDRESS_LOCAL && !w->egress)
		count(REASON_FRAGMENT_PASSED, w->p.total);
	return NEXT;
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
	init_fib_lookup(w, skb->ifindex, 0);
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
	emit_event(&w->p.t, NULL, EVENT_NO_SERVICE, REASON_UNKNOWN_PORT);
	if (w->p.t.proto == IPPROTO_TCP && w->p.saw == FRAGMENT_NONE)
		return send_rst(skb, w);
	return send_icmp_error(skb, w, ANSWER_PORT_UNREACHABLE, 0);
}

/* Router and neighbour solicitations and advertisements, and redirects: the stack's. */
static __always_inline bool is_discovery(const struct packet *p)
{
	return !p->v4 && p->icmp_type >= 133 && p->icmp_type <= 137;
}

/* ICMP, and all that has no ports. */
static __always_inline int handle_no_ports(struct __sk_buff *skb, struct work *w)
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
		return send_echo_reply(skb, w);
	}
	return refuse_unknown(skb, w);
}

/*
 * No flow, no frontend. Almost everything ends here and goes on. What must not:
 * replies of a flow whose half is lost, for the client does not know their
 * source, and to a masquerade port the stack would answer with a reset; and what
 * is for a service's address.
 */
static __always_inline int handle_no_frontend(struct __sk_buff *skb, struct work *w)
{
	bool syn = is_syn(&w->p), range = in_masquerade_range(w);
	__u32 flags = w->dst_flags;
	struct node *n = node_facts();

	if (!syn && n && n->flags & NODE_PASS_UNKNOWN)
		return NEXT; /* may be netfilter's, which takes ports as it likes */
	if (!syn && w->known && from_backend_port(w) && restore_half(w))
		return deliver_restored(skb, w);
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
	if (lookup_or_restore(w))
		return deliver_restored(skb, w);
	if (is_tracked(&w->p.t))
		return NEXT; /* netfilter takes ports as it likes */
	reverse(&w->to, &w->p.t);
	return reply_has_socket(skb, w) ? NEXT : drop(REASON_UNKNOWN_REPLY, &w->p);
}

#endif
