/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whom a frame is for: others' are none of our business. */
#ifndef NODEPROXY_TC_RECEIVER_H
#define NODEPROXY_TC_RECEIVER_H

#include "base.h"
#include "addr.h"
#include "fragment.h"
#include "maps.h"
#include "packet.h"
#include "scratch.h"
#include "types.h"

#define PACKET_HOST 0 /* linux/if_packet.h */

enum receiver {
	FOR_HOST,
	FOR_NEIGHBOR, /* at a bridge's port, and for another port of that bridge */
	FOR_OTHERS,   /* flooded, or mirrored */
};

/* Whom a frame at ingress is for. The kernel takes what is for a bridge, at its port,
 * for another host's. */
static __always_inline enum receiver receiver_of(struct __sk_buff *skb, __u32 l3)
{
	__u32 ifindex = skb->ifindex;
	struct interface *in;
	__u8 dst[8];

	if (skb->pkt_type == PACKET_HOST || !l3)
		return FOR_HOST;
	in = bpf_map_lookup_elem(&interfaces, &ifindex);
	if (!in || !(in->flags & INTERFACE_PORT) || bpf_skb_load_bytes(skb, 0, dst, 6) < 0)
		return FOR_OTHERS;
	return same_mac(dst, in->mac) ? FOR_HOST : FOR_NEIGHBOR;
}

/*
 * The answer of a backend to a client at the same bridge goes past the stack, which
 * has to translate it: it is given to this host.
 */
static __always_inline void take_in(struct __sk_buff *skb, struct work *w)
{
	__u32 ifindex = skb->ifindex;
	struct interface *in = bpf_map_lookup_elem(&interfaces, &ifindex);
	__u8 mac[8];

	if (w->p.saw == FRAGMENT_FIRST)
		remember_fragment(w);
	if (!in || !(in->flags & INTERFACE_PORT))
		return;
	__builtin_memcpy(mac, in->mac, 6);
	bpf_skb_store_bytes(skb, 0, mac, 6, 0);
}

#endif
