/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From a destination to a frontend, and what that says of a source. */
#ifndef NODEPROXY_FRONTEND_H
#define NODEPROXY_FRONTEND_H

#include "base.h"
#include "addr.h"
#include "maps.h"
#include "scratch.h"
#include "source.h"
#include "types.h"

static __always_inline __u32 port_bit(__u8 proto)
{
	if (proto == IPPROTO_TCP)
		return PORT_TCP;
	if (proto == IPPROTO_UDP)
		return PORT_UDP;
	return proto == IPPROTO_SCTP ? PORT_SCTP : 0;
}

/* Whether a protocol is in use by ports of ranges, of frontends or backends. */
static __always_inline bool has_ranges(__u32 bits)
{
	__u32 zero = 0, *use = bpf_map_lookup_elem(&ports, &zero);

	return use && *use & bits;
}

/* The range of ports at key's address that key's port is inside of, or NULL. */
static __always_inline struct frontend *find_range(struct frontend_key *key, __u32 port)
{
	struct frontend *fe;
	__u16 was = key->port;

	key->port = 0;
	fe = bpf_map_lookup_elem(&frontends, key);
	key->port = was;
	return fe && fe->first <= port && port <= fe->last ? fe : NULL;
}

/*
 * The frontend at key, whose address the caller has filled in, or NULL. As a
 * node port it is found only if nodeport says that the address carries them;
 * key's address is then overwritten. Service addresses come first.
 */
static __always_inline struct frontend *find_frontend(struct frontend_key *key,
						      bool carries_nodeports)
{
	__u32 port = bpf_ntohs(key->port);
	__u32 bit = port_bit(key->proto);
	__u32 *use = bpf_map_lookup_elem(&ports, &port);
	struct frontend *fe;

	if (!use || !port)
		return NULL;
	if (*use & bit) {
		fe = bpf_map_lookup_elem(&frontends, key);
		if (fe)
			return fe;
	}
	if (has_ranges(bit)) {
		fe = find_range(key, port);
		if (fe)
			return fe;
	}
	if (!(*use & (bit << PORT_NODEPORT_SHIFT)))
		return NULL;
	if (!carries_nodeports && !(address_flags(&key->addr) & ADDRESS_NODEPORT))
		return NULL;
	if (is_v4(&key->addr)) {
		key->addr.w[3] = 0;
	} else {
		key->addr.w[0] = 0;
		key->addr.w[1] = 0;
		key->addr.w[2] = 0;
		key->addr.w[3] = 0;
	}
	return bpf_map_lookup_elem(&frontends, key);
}

/* The frontend's route for a class of source; the verifier sees that it is one. */
static __always_inline __u8 route_of(const struct frontend *fe, enum source source)
{
	return fe->route[source == FROM_POD    ? FROM_POD
			 : source == FROM_NODE ? FROM_NODE
					       : FROM_OUTSIDE];
}

/* Whether loadBalancerSourceRanges let src in. */
static __always_inline bool in_ranges(const struct frontend *fe, const struct addr *src)
{
	struct range_key key = {.prefixlen = 160, .service = fe->service, .addr = *src};

	return bpf_map_lookup_elem(&source_ranges, &key);
}

/*
 * Rereads the frontend that the packet asked for. The address is asked first:
 * few are in use, so they are in a cache, where the table of ports never is as
 * a whole, and replies go to ports of all kinds.
 */
static __always_inline bool read_frontend(struct work *w)
{
	struct frontend *fe;

	w->dst_flags = address_flags(&w->p.t.dst);
	if (!(w->dst_flags & (ADDRESS_VIP | ADDRESS_NODEPORT)))
		return false;
	w->key.addr = w->p.t.dst;
	w->key.port = w->p.t.dport;
	w->key.proto = w->p.t.proto;
	w->key.pad = 0;
	fe = find_frontend(&w->key, w->dst_flags & ADDRESS_NODEPORT);
	if (!fe)
		return false;
	w->fe = *fe;
	return true;
}

#endif
