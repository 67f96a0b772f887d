/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From a destination to a frontend, from a frontend to a backend. */
#ifndef NODEPROXY_LOOKUP_H
#define NODEPROXY_LOOKUP_H

static __always_inline __u32 port_bit(__u8 proto)
{
	if (proto == IPPROTO_TCP)
		return PORT_TCP;
	if (proto == IPPROTO_UDP)
		return PORT_UDP;
	return proto == IPPROTO_SCTP ? PORT_SCTP : 0;
}

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
static __always_inline struct frontend *find_frontend(struct frontend_key *key, bool loopback)
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
	if (!loopback && !(address_flags(&key->addr) & ADDRESS_NODEPORT))
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

/* An endpoint of a range of ports is a member at port 0, whatever the port is. */
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
static __always_inline bool recall(const struct frontend *fe, __u8 route, const struct addr *client,
				   struct backend *be)
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

static __always_inline void remember(const struct frontend *fe, const struct addr *client,
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
 * A flow's hash, equal on every node (MurmurHash3, x86 32 bits). Who is given
 * affinity is a client with all of its ports.
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
	if (fe->flags & FRONTEND_AFFINITY && recall(fe, route, client, be))
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
		remember(fe, client, be);
	return true;
}

#endif
