/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Sockets whose source port is fixed before they connect. */
#ifndef NODEPROXY_SOCK_BOUND_H
#define NODEPROXY_SOCK_BOUND_H

#include "base.h"
#include "addr.h"
#include "sock_call.h"
#include "source.h"
#include "types.h"

/* Whether the application chose the socket's source port. */
static __always_inline bool port_is_bound(struct bpf_sock_addr *ctx)
{
	return ctx->protocol == IPPROTO_TCP && ctx->sk && ctx->sk->src_port;
}

/* Whether a socket connects this port, of the node, with the backend already. */
static __always_inline bool tuple_in_use(struct bpf_sock_addr *ctx, const struct addr *source,
					 const struct backend *be)
{
	struct bpf_sock_tuple t = {};
	bool v4 = is_v4(source), taken;
	struct bpf_sock *sk;

	if (v4) {
		t.ipv4.saddr = be->addr.w[3];
		t.ipv4.daddr = source->w[3];
		t.ipv4.sport = be->port;
		t.ipv4.dport = bpf_htons(ctx->sk->src_port);
	} else {
		__builtin_memcpy(t.ipv6.saddr, be->addr.w, sizeof(t.ipv6.saddr));
		__builtin_memcpy(t.ipv6.daddr, source->w, sizeof(t.ipv6.daddr));
		t.ipv6.sport = be->port;
		t.ipv6.dport = bpf_htons(ctx->sk->src_port);
	}
	sk = bpf_skc_lookup_tcp(ctx, &t, v4 ? sizeof(t.ipv4) : sizeof(t.ipv6), BPF_F_CURRENT_NETNS,
				0);
	if (!sk)
		return false;
	taken = sk->state != BPF_TCP_LISTEN;
	bpf_sk_release(sk);
	return taken;
}

/* Whether some socket of the caller's namespace is at the address that is called. */
__noinline bool is_served_here(struct bpf_sock_addr *ctx, const struct call *c)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	bool tcp;

	if (!c)
		return false;
	tcp = c->proto == IPPROTO_TCP;
	if (is_v4(&c->addr)) {
		t.ipv4.daddr = c->addr.w[3];
		t.ipv4.saddr = c->addr.w[3];
		t.ipv4.dport = c->port;
		sk = tcp ? bpf_sk_lookup_tcp(ctx, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0)
			 : bpf_sk_lookup_udp(ctx, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0);
	} else {
		__builtin_memcpy(t.ipv6.daddr, c->addr.w, sizeof(t.ipv6.daddr));
		__builtin_memcpy(t.ipv6.saddr, c->addr.w, sizeof(t.ipv6.saddr));
		t.ipv6.dport = c->port;
		sk = tcp ? bpf_sk_lookup_tcp(ctx, &t, sizeof(t.ipv6), BPF_F_CURRENT_NETNS, 0)
			 : bpf_sk_lookup_udp(ctx, &t, sizeof(t.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/*
 * Whether the call is left to who has a ClusterIP as a local address of this node: a
 * cache of names (NodeLocal DNSCache). Of sockets elsewhere the packet path sees to it.
 */
static __always_inline bool is_caches(struct bpf_sock_addr *ctx, const struct call *c)
{
	const __u32 both = ADDRESS_LOCAL | ADDRESS_CLUSTER_IP;

	if ((address_flags(&c->addr) & both) != both)
		return false;
	return !c->host || is_served_here(ctx, c);
}

#endif
