/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What an address is: the node's, a Service's, a Pod's, or nobody's. */
#ifndef NODEPROXY_SOURCE_H
#define NODEPROXY_SOURCE_H

#include "base.h"
#include "addr.h"
#include "maps.h"
#include "types.h"

static __always_inline __u32 address_flags(const struct addr *a)
{
	__u32 *flags = bpf_map_lookup_elem(&addresses, a);

	return flags ? *flags : 0;
}

static __always_inline struct node *node_facts(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&node, &zero);
}

static __always_inline bool is_loopback(const struct addr *a)
{
	if (is_v4(a))
		return (a->w[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !(a->w[0] | a->w[1] | a->w[2]) && a->w[3] == bpf_htonl(1);
}

/*
 * Whether a packet that comes in by an interface cannot be from its source: this
 * network, loopback, multicast, reserved and broadcast (RFC 1122, 3.2.1.3; RFC 4291),
 * and what is a service's address alone. What may be a machine's is the stack's to judge.
 */
static __always_inline bool is_martian(const struct addr *a)
{
	__u32 first = bpf_ntohl(a->w[3]) >> 24;

	if (is_v4(a)) {
		if (first == 0 || first == 127 || first >= 224)
			return true;
	} else if (is_zero(a) || is_loopback(a) ||
		   (a->w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000)) {
		return true;
	}
	return (address_flags(a) & (ADDRESS_CLUSTER_IP | ADDRESS_LOCAL)) == ADDRESS_CLUSTER_IP;
}

static __always_inline bool is_link_local(const struct addr *a)
{
	if (is_v4(a))
		return (a->w[3] & bpf_htonl(0xffff0000)) == bpf_htonl(0xa9fe0000);
	return (a->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* Whether an address is in the Pods' network, as far as that is known. */
static __always_inline bool in_pod_network(const struct node *n, const struct addr *a)
{
	bool v4 = is_v4(a);
	const struct addr *net = v4 ? &n->pods[0] : &n->pods[1];
	const struct addr *mask = v4 ? &n->pods_mask[0] : &n->pods_mask[1];

	if (!(n->flags & (v4 ? NODE_CIDR4 : NODE_CIDR6)))
		return false;
	return !(((a->w[0] ^ net->w[0]) & mask->w[0]) | ((a->w[1] ^ net->w[1]) & mask->w[1]) |
		 ((a->w[2] ^ net->w[2]) & mask->w[2]) | ((a->w[3] ^ net->w[3]) & mask->w[3]));
}

/* The class of a packet that arrived on ifindex; 0 means that it was sent here. */
static __always_inline enum source source_of(const struct addr *src, __u32 ifindex)
{
	bool v4 = is_v4(src);
	struct node *n = node_facts();
	struct interface *in;

	if (n && n->flags & (v4 ? NODE_CIDR4 : NODE_CIDR6)) {
		if (in_pod_network(n, src))
			return FROM_POD;
	} else if (n && ifindex && n->flags & (v4 ? NODE_DETECTS4 : NODE_DETECTS6)) {
		in = bpf_map_lookup_elem(&interfaces, &ifindex);
		if (in && in->flags & (v4 ? INTERFACE_POD4 : INTERFACE_POD6))
			return FROM_POD;
	}
	if (address_flags(src) & ADDRESS_LOCAL || is_loopback(src))
		return FROM_NODE;
	return FROM_OUTSIDE;
}

#endif
