/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Sockets whose source port is fixed before they connect. */
#ifndef NODEPROXY_BOUND_H
#define NODEPROXY_BOUND_H

/* Whether the application chose the socket's source port. */
static __always_inline bool port_is_bound(struct bpf_sock_addr *ctx)
{
	return ctx->protocol == IPPROTO_TCP && ctx->sk && ctx->sk->src_port;
}

/* Whether a socket connects this port, of the node, with the backend already. */
static __always_inline bool is_taken(struct bpf_sock_addr *ctx, const struct addr *source,
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

#endif
