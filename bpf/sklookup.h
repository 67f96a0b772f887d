/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Sockets of this host that a packet may be for. */
#ifndef NODEPROXY_SKLOOKUP_H
#define NODEPROXY_SKLOOKUP_H

#include "base.h"
#include "config.h"
#include "scratch.h"
#include "types.h"

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

/* Whether a socket of this node would receive what is sent to w->to's source. */
static __always_inline bool reply_has_socket(struct __sk_buff *skb, struct work *w)
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

/* Whether a connected socket of this host waits for the packet: one may have a
 * node port's number as its own, or the address of a balancer. */
static __always_inline bool has_connection(struct __sk_buff *skb, struct work *w)
{
	const struct tuple *t = &w->p.t;
	__u32 size;

	if (!(w->dst_flags & ADDRESS_LOCAL) || t->proto == IPPROTO_SCTP)
		return false;
	size = ask_socket(w, &t->src, t->sport, &t->dst, t->dport);
	return t->proto == IPPROTO_TCP ? has_tcp_socket(skb, w, size)
				       : has_udp_socket(skb, w, size);
}

/* Whether a socket of this host that was translated when it connected has the
 * port that another one sends from, and the same backend: its answers would be
 * taken for the other's. */
static __always_inline bool src_port_in_use(struct __sk_buff *skb, struct work *w)
{
	const struct tuple *t = &w->to;

	return translate_sockets && w->egress && t->proto == IPPROTO_TCP &&
	       has_tcp_socket(skb, w, ask_socket(w, &t->dst, t->dport, &t->src, t->sport));
}

#endif
