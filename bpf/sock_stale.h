/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connected sockets whose translation leads where it may not lead any more. */
#ifndef NODEPROXY_SOCK_STALE_H
#define NODEPROXY_SOCK_STALE_H

#include "base.h"
#include "addr.h"
#include "backend.h"
#include "config.h"
#include "flow_valid.h"
#include "frontend.h"
#include "maps.h"
#include "sock.h"
#include "sock_bound.h"
#include "sock_call.h"
#include "sock_source.h"
#include "source.h"
#include "types.h"

/* Of the kernel's own types only what is read here; offsets are found at load. */
typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__u32 skc_daddr;
	__u32 skc_rcv_saddr;
	__u16 skc_dport;
	__u16 skc_num;
	struct in6_addr skc_v6_rcv_saddr;
	possible_net_t skc_net;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
} __attribute__((preserve_access_index));

struct tcp_sock;
struct udp_sock;

struct bpf_iter_meta {
	struct seq_file *seq;
} __attribute__((preserve_access_index));

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
} __attribute__((preserve_access_index));

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
} __attribute__((preserve_access_index));

/* Whether a socket that is connected with a serving member would be led elsewhere
 * if it connected now. */
static __always_inline bool is_rerouted(const struct call *c, const struct translation *t,
					__u32 member)
{
	struct frontend_key key = {.addr = c->addr, .port = c->port, .proto = c->proto};
	bool loopback = c->host && (is_loopback(&c->addr) || is_any(&c->addr));
	struct frontend *fe = find_frontend(&key, loopback);
	struct addr client;
	__u8 route;

	return !fe || fe->service != t->service ||
	       !socket_route(c, fe, loopback, &client, &route) ||
	       !route_allows_member(route, member);
}

/* Writes a struct gone if the socket's own backend is gone, or, for UDP, if a
 * policy does not lead there any more. A socket that is not connected needs
 * nothing: its next message finds another backend. */
static __always_inline void write_if_gone(struct seq_file *seq, struct sock *sk)
{
	struct socket *s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	struct translation *t;
	struct gone out = {};
	struct call c = {};
	__u32 i, member;

	if (!s)
		return;
	i = s->peer - 1;
	if (i >= SOCKET_TRANSLATIONS)
		return;
	t = &s->last[i];
	/* It may have been connected elsewhere since, without being translated. */
	if (sk->__sk_common.skc_dport != t->backend_port)
		return;
	if (t->epoch == service_epoch(t->service))
		return;
	if (is_v4(&t->backend))
		map_v4(&out.src, sk->__sk_common.skc_rcv_saddr);
	else
		bpf_probe_read_kernel(&out.src, sizeof(out.src), &sk->__sk_common.skc_v6_rcv_saddr);
	c.addr = t->asked;
	c.port = t->asked_port;
	c.source = out.src;
	c.proto = sk->sk_protocol;
	c.netns = sk->__sk_common.skc_net.net->net_cookie;
	c.host = c.netns == host_netns;
	member = member_flags(t->service, &t->backend, t->backend_port);
	if (member & MEMBER_SERVING && (c.proto != IPPROTO_UDP || !is_rerouted(&c, t, member)))
		return;
	out.dst = t->backend;
	out.dport = t->backend_port;
	out.sport = bpf_htons(sk->__sk_common.skc_num);
	out.proto = c.proto;
	out.cookie = bpf_get_socket_cookie(sk);
	bpf_seq_write(seq, &out, sizeof(out));
}

#endif
