/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The way that a packet takes from here, by the kernel's routes. */
#ifndef NODEPROXY_FIB_H
#define NODEPROXY_FIB_H

#include "base.h"
#include "config.h"
#include "packet.h"
#include "scratch.h"

/* What there is to be done with a packet, as the routes say. */
enum way {
	WAY_OUT,     /* through w->fib.ifindex */
	WAY_LOCAL,   /* to this host's own sockets */
	WAY_STACK,   /* only the stack can send it */
	WAY_TOO_BIG, /* w->fib.mtu_result is the most it may have */
	WAY_NONE,
};

/* The length that has to fit: of a GSO packet, that of its segments. */
static __always_inline __u32 sent_length(struct __sk_buff *skb, const struct packet *p)
{
	if (skb->gso_size)
		return p->l4 - p->l3 + p->l4_len + skb->gso_size;
	return p->total;
}

/* What the routes are asked: for a packet with the addresses of w->to that came
 * by an interface. */
static __always_inline void init_fib_lookup(struct work *w, __u32 ifindex, __u32 length)
{
	struct bpf_fib_lookup *fib = &w->fib;
	struct packet *p = &w->p;

	__builtin_memset(fib, 0, sizeof(*fib));
	fib->ifindex = ifindex;
	fib->tot_len = length;
	fib->l4_protocol = p->t.proto;
	if (p->v4) {
		fib->family = AF_INET;
		fib->tos = p->tos;
		fib->ipv4_src = w->to.src.w[3];
		fib->ipv4_dst = w->to.dst.w[3];
	} else {
		fib->family = AF_INET6;
		__builtin_memcpy(fib->ipv6_src, &w->to.src, 16);
		__builtin_memcpy(fib->ipv6_dst, &w->to.dst, 16);
	}
	fib->sport = w->to.sport;
	fib->dport = w->to.dport;
}

__noinline enum way lookup_route(struct __sk_buff *skb, struct work *w)
{
	struct bpf_fib_lookup *fib;
	struct packet *p;
	long rc;

	if (!w)
		return WAY_NONE;
	fib = &w->fib;
	p = &w->p;
	init_fib_lookup(w, skb->ifindex, sent_length(skb, p));
	rc = bpf_fib_lookup(skb, fib, sizeof(*fib), redirect_peer ? 0 : fib_flags);
	switch (rc) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return WAY_OUT;
	case BPF_FIB_LKUP_RET_NOT_FWDED:
		return WAY_LOCAL;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return p->may_fragment ? WAY_STACK : WAY_TOO_BIG;
	case BPF_FIB_LKUP_RET_FWD_DISABLED:
	case BPF_FIB_LKUP_RET_UNSUPP_LWT:
		return WAY_STACK;
	}
	return WAY_NONE;
}

#endif
