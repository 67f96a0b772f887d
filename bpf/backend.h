/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From a frontend to a backend. */
#ifndef NODEPROXY_BACKEND_H
#define NODEPROXY_BACKEND_H

#include "base.h"
#include "maps.h"
#include "types.h"

/* An endpoint of a range of ports is a member at port 0, for all of these ports. */
static __always_inline __u32 member_flags(__u32 service, const struct addr *a, __u16 port)
{
	struct member_key key = {.addr = *a, .service = service, .port = port};
	__u32 *flags = bpf_map_lookup_elem(&members, &key);

	if (!flags && port) {
		key.port = 0;
		flags = bpf_map_lookup_elem(&members, &key);
	}
	return flags ? *flags : 0;
}

static __always_inline __u32 service_epoch(__u32 id)
{
	struct service *s = bpf_map_lookup_elem(&services, &id);

	return s ? s->epoch : 0;
}

/* The backend that client got before, if it may still be chosen. */
static __always_inline bool recall_affinity(const struct frontend *fe, __u8 route,
					    const struct addr *client, struct backend *be)
{
	struct affinity_key key = {.client = *client, .service = fe->service};
	struct affinity *a = bpf_map_lookup_elem(&affinities, &key);
	__u64 now = bpf_ktime_get_ns();
	__u32 want = route & ROUTE_LOCAL ? MEMBER_LOCAL : MEMBER_CLUSTER;

	if (!a || now - a->seen > (__u64)fe->affinity * 1000000000)
		return false;
	be->addr = a->addr;
	be->port = a->port;
	if (!(member_flags(fe->service, &be->addr, be->port) & want))
		return false;
	a->seen = now;
	return true;
}

static __always_inline void remember_affinity(const struct frontend *fe, const struct addr *client,
					      const struct backend *be)
{
	struct affinity_key key = {.client = *client, .service = fe->service};
	struct affinity value = {.addr = be->addr, .port = be->port};

	value.seen = bpf_ktime_get_ns();
	bpf_map_update_elem(&affinities, &key, &value, BPF_ANY);
}

static __always_inline __u32 rotate(__u32 x, int by)
{
	return x << by | x >> (32 - by);
}

/*
 * A flow's hash, equal on every node (MurmurHash3, x86 32 bits). With affinity, all
 * ports of a client have one hash.
 */
static __always_inline __u32 hash_flow(const struct addr *src, const struct addr *dst, __u16 sport,
				       __u16 dport, __u8 proto)
{
	__u32 words[10], h = 0;

	for (int i = 0; i < 4; i++) {
		words[i] = src->w[i];
		words[4 + i] = dst->w[i];
	}
	words[8] = (__u32)sport << 16 | dport;
	words[9] = proto;
	for (int i = 0; i < 10; i++)
		h = rotate(h ^ rotate(words[i] * 0xcc9e2d51, 15) * 0x1b873593, 13) * 5 + 0xe6546b64;
	h ^= sizeof(words);
	h = (h ^ h >> 16) * 0x85ebca6b;
	h = (h ^ h >> 13) * 0xc2b2ae35;
	return h ^ h >> 16;
}

/*
 * Chooses a backend for a new flow. False if there is none in the slot: the
 * frontend was read before an update and the slot after it, so that reading
 * the frontend again helps. The hash is for FRONTEND_MAGLEV.
 */
__noinline bool pick(const struct frontend *fe, __u8 route, const struct addr *client,
		     struct backend *be, __u32 hash)
{
	struct backend_key key = {};
	struct backend *found;
	__u32 n, first;

	if (!fe || !client || !be)
		return false;
	if (fe->flags & FRONTEND_AFFINITY && recall_affinity(fe, route, client, be))
		return true;
	first = route & ROUTE_LOCAL ? fe->count[0] : 0;
	n = route & ROUTE_LOCAL ? fe->count[1] : fe->count[0];
	if (!n)
		return false;
	key.service = fe->service;
	key.generation = fe->generation;
	key.slot = first + (fe->flags & FRONTEND_MAGLEV ? hash : bpf_get_prandom_u32()) % n;
	found = bpf_map_lookup_elem(&backends, &key);
	if (!found)
		return false;
	*be = *found;
	if (fe->flags & FRONTEND_AFFINITY)
		remember_affinity(fe, client, be);
	return true;
}

#endif
