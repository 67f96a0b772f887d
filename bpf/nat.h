/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which source a flow gets, and the change of headers. */
#ifndef NODEPROXY_NAT_H
#define NODEPROXY_NAT_H

/* Whether a socket of this node would receive what is sent to w->to's source. */
static __always_inline bool socket_holds(struct __sk_buff *skb, struct work *w)
{
	struct bpf_sock *sk;
	__u32 size;

	if (w->p.v4) {
		w->sock.ipv4.saddr = w->to.dst.w[3];
		w->sock.ipv4.daddr = w->to.src.w[3];
		w->sock.ipv4.sport = w->to.dport;
		w->sock.ipv4.dport = w->to.sport;
		size = sizeof(w->sock.ipv4);
	} else {
		__builtin_memcpy(w->sock.ipv6.saddr, &w->to.dst, 16);
		__builtin_memcpy(w->sock.ipv6.daddr, &w->to.src, 16);
		w->sock.ipv6.sport = w->to.dport;
		w->sock.ipv6.dport = w->to.sport;
		size = sizeof(w->sock.ipv6);
	}
	if (w->to.proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(skb, &w->sock, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(skb, &w->sock, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

struct port_search {
	struct __sk_buff *skb;
	struct work *w;
	__u32 start;
	enum insert result;
};

/* So many tries want a port that nobody has in mind, in the range and then among
 * the spare ones, where no socket of this host may be; later ones take one of a
 * flow that is over, as many as RESTED_TRIES only if that is a while ago. */
#define FRESH_TRIES 8
#define SPARE_TRIES 16
#define RESTED_TRIES 64

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
			which = tcp && i - FRESH_TRIES < range && i - FRESH_TRIES < RESTED_TRIES
				    ? RECLAIM_RESTED
				    : RECLAIM_ANY;
		port = nat_port_min + (s->start + i * STRIDE) % range;
	}
	use = bpf_map_lookup_elem(&ports, &port);
	if (use && *use & (port_bit(w->to.proto) << PORT_NODEPORT_SHIFT))
		return 0;
	w->to.sport = bpf_htons(port);
	if (!is_vacant(w, which))
		return 0;
	if (address_flags(&w->to.src) & ADDRESS_LOCAL && socket_holds(s->skb, w))
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

/* Adds two unfolded checksums. */
static __always_inline __u32 csum_add(__u32 a, __u32 b)
{
	__u64 s = (__u64)a + b;

	return (__u32)s + (__u32)(s >> 32);
}

/* Adds the change of one 16-bit word to a checksum difference. */
static __always_inline __u32 csum_word(__u32 sum, __u16 from, __u16 to)
{
	return csum_add(sum, (__u32)(__u16)~from + to);
}

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline long rewrite_l3(struct __sk_buff *skb, struct work *w, __u32 diff, __u8 hops)
{
	struct packet *p = &w->p;
	__u8 ttl = p->ttl - hops;
	long err;

	if (p->v4) {
		__u32 pair[2] = {w->to.src.w[3], w->to.dst.w[3]};

		diff = csum_word(diff, bpf_htons(p->ttl << 8), bpf_htons(ttl << 8));
		err = bpf_l3_csum_replace(skb, p->l3 + IP4_CHECK, 0, diff, 0);
		err |= bpf_skb_store_bytes(skb, p->l3 + IP4_SRC, pair, sizeof(pair), 0);
		if (hops)
			err |= bpf_skb_store_bytes(skb, p->l3 + IP4_TTL, &ttl, 1, 0);
		return err;
	}
	err = bpf_skb_store_bytes(skb, p->l3 + IP6_SRC, &w->to, 32, 0);
	if (hops)
		err |= bpf_skb_store_bytes(skb, p->l3 + IP6_HOPS, &ttl, 1, 0);
	return err;
}

/*
 * Makes the packet's addresses and ports those of w->to, and its TTL smaller by
 * hops. Addresses go into transport checksums with the pseudo-header flag and
 * ports without: under CHECKSUM_PARTIAL the field holds the sum of the
 * pseudo-header alone. IPv6 has no header checksum to cancel the change of its
 * addresses in a complete sum (BPF_F_IPV6).
 */
__noinline long rewrite(struct __sk_buff *skb, struct work *w, __u8 hops)
{
	__u64 flags = BPF_F_PSEUDO_HDR;
	struct packet *p;
	__u32 diff, check, from, to;
	long err;

	if (!w)
		return -EINVAL;
	p = &w->p;
	diff = bpf_csum_diff((__be32 *)&p->t, 32, (__be32 *)&w->to, 32, 0);
	err = rewrite_l3(skb, w, diff, hops);
	if (p->saw == FRAGMENT_LATER || p->t.proto == IPPROTO_SCTP)
		return err;
	if (!p->v4)
		flags |= csum_ipv6;
	check = p->l4 + offsetof(struct tcphdr, check);
	if (p->t.proto == IPPROTO_UDP) {
		check = p->l4 + offsetof(struct udphdr, check);
		flags |= BPF_F_MARK_MANGLED_0;
	}
	err |= bpf_l4_csum_replace(skb, check, 0, diff, flags);
	from = *(__u32 *)&p->t.sport; /* both ports, as they stand in the packet */
	to = *(__u32 *)&w->to.sport;
	if (from == to)
		return err;
	err |= bpf_l4_csum_replace(skb, check, from, to, (flags & BPF_F_MARK_MANGLED_0) | 4);
	return err | bpf_skb_store_bytes(skb, p->l4, &to, 4, 0);
}

#endif
