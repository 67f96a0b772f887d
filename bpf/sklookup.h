/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Sockets of this host that a packet may be for. */
#ifndef NODEPROXY_SKLOOKUP_H
#define NODEPROXY_SKLOOKUP_H

/* The packet that a socket would wait for, as lookups of sockets take it. */
static __always_inline __u32 ask_socket(struct work *w, const struct addr *src, __u16 sport,
					const struct addr *dst, __u16 dport)
{
	if (w->p.v4) {
		w->sock.ipv4.saddr = src->w[3];
		w->sock.ipv4.daddr = dst->w[3];
		w->sock.ipv4.sport = sport;
		w->sock.ipv4.dport = dport;
		return sizeof(w->sock.ipv4);
	}
	__builtin_memcpy(w->sock.ipv6.saddr, src, 16);
	__builtin_memcpy(w->sock.ipv6.daddr, dst, 16);
	w->sock.ipv6.sport = sport;
	w->sock.ipv6.dport = dport;
	return sizeof(w->sock.ipv6);
}

/* Whether a connected socket of this host waits for what w->sock says. The two
 * kinds of sockets are kept apart: the verifier wants one kind at one place. */
__noinline bool has_tcp_socket(struct __sk_buff *skb, struct work *w, __u32 size)
{
	struct bpf_sock *sk;
	bool connected;

	if (!w)
		return false;
	if (size == sizeof(w->sock.ipv4))
		sk =
		    bpf_skc_lookup_tcp(skb, &w->sock, sizeof(w->sock.ipv4), BPF_F_CURRENT_NETNS, 0);
	else
		sk =
		    bpf_skc_lookup_tcp(skb, &w->sock, sizeof(w->sock.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	connected = sk->dst_port != 0;
	bpf_sk_release(sk);
	return connected;
}

static __always_inline bool has_udp_socket(struct __sk_buff *skb, struct work *w, __u32 size)
{
	struct bpf_sock *sk;
	bool connected;

	if (size == sizeof(w->sock.ipv4))
		sk = bpf_sk_lookup_udp(skb, &w->sock, sizeof(w->sock.ipv4), BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(skb, &w->sock, sizeof(w->sock.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	connected = sk->dst_port != 0;
	bpf_sk_release(sk);
	return connected;
}

#endif
