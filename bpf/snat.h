/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The source that hides a client, of flows that are translated here: address and port. */
#ifndef NODEPROXY_SNAT_H
#define NODEPROXY_SNAT_H

#include "base.h"
#include "addr.h"
#include "config.h"
#include "flow.h"
#include "flow_close.h"
#include "flow_types.h"
#include "frontend.h"
#include "maps.h"
#include "scratch.h"
#include "sklookup.h"
#include "source.h"
#include "types.h"

struct port_search {
	struct __sk_buff *skb;
	struct work *w;
	__u32 start;
	enum insert result;
};

/* So many tries want a port that nobody has in mind, in the range and then among
 * the spare ones, where no socket of this host may be; later ones take one of a
 * flow that is over, as many as QUIET_TRIES only if that is a while ago. */
#define FRESH_TRIES 8
#define SPARE_TRIES 16
#define QUIET_TRIES 64

/* From one try to the next: neighbours would have been taken together, and be busy
 * together. As a prime number above all ports it leaves none out. */
#define STRIDE 65537

/* One try of the search for a free source port; 1 ends it. */
static long try_port(__u32 i, struct port_search *s)
{
	__u32 range = (__u32)nat_port_max - nat_port_min + 1,
	      spare = nat_spare_max ? SPARE_TRIES : 0;
	enum reclaim which = RECLAIM_GONE;
	struct work *w = s->w;
	bool tcp = w->to.proto == IPPROTO_TCP;
	__u32 port, *use;

	if (i - FRESH_TRIES < spare) {
		port = nat_spare_min +
		       (s->start + i * STRIDE) % ((__u32)nat_spare_max - nat_spare_min + 1);
	} else {
		if (i >= FRESH_TRIES)
			i -= spare;
		if (i >= 2 * range + FRESH_TRIES) /* all, with both */
			return 1;
		/* A rest makes no difference to UDP. */
		if (i >= FRESH_TRIES)
			which = tcp && i - FRESH_TRIES < range && i - FRESH_TRIES < QUIET_TRIES
				    ? RECLAIM_QUIET
				    : RECLAIM_ANY;
		port = nat_port_min + (s->start + i * STRIDE) % range;
	}
	use = bpf_map_lookup_elem(&ports, &port);
	if (use && *use & (port_bit(w->to.proto) << PORT_NODEPORT_SHIFT))
		return 0;
	w->to.sport = bpf_htons(port);
	if (!is_vacant(w, which))
		return 0;
	if (address_flags(&w->to.src) & ADDRESS_LOCAL && reply_has_socket(s->skb, w))
		return 0;
	s->result = insert_reply(w, which);
	return s->result != INSERT_TAKEN;
}

/*
 * Gives w->to a source port from the reserved range under which the reply half
 * is free, and inserts that half. The client's own port is tried first where it
 * is in the range.
 */
__noinline enum insert take_port(struct __sk_buff *skb, struct work *w)
{
	struct port_search s = {.skb = skb, .result = INSERT_TAKEN};
	__u32 port;

	w = own_work(w);
	if (!w)
		return INSERT_FULL;
	s.w = w;
	port = bpf_ntohs(w->p.t.sport);
	if (w->to.proto == IPPROTO_SCTP) /* its checksum covers ports */
		return insert_reply(w, RECLAIM_ANY);
	if (port >= nat_port_min && port <= nat_port_max)
		s.start = port - nat_port_min;
	else
		s.start = bpf_get_prandom_u32() & 0xffff;
	w->flow.flags |= FLOW_SOURCE;
	bpf_loop(nat_port_tries, try_port, &s, 0);
	return s.result;
}

/* The address that hides a client towards interface ifindex, or NULL. */
static __always_inline const struct addr *masquerade_address(__u32 ifindex, bool v4)
{
	struct interface *out = bpf_map_lookup_elem(&interfaces, &ifindex);
	struct node *n;
	const struct addr *a;

	if (out) {
		a = v4 ? &out->masquerade[0] : &out->masquerade[1];
		if (!is_zero(a))
			return a;
	}
	n = node_facts();
	if (!n)
		return NULL;
	a = v4 ? &n->address[0] : &n->address[1];
	return is_zero(a) ? NULL : a;
}

#endif
