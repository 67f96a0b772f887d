/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connected sockets whose translation leads to a backend that does not serve. */
#ifndef NODEPROXY_GONE_H
#define NODEPROXY_GONE_H

/* Of the kernel's own types only what is read here; offsets are found at load. */
struct sock_common {
	__u32 skc_daddr;
	__u32 skc_rcv_saddr;
	__u16 skc_dport;
	__u16 skc_num;
	struct in6_addr skc_v6_rcv_saddr;
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

/* Writes a struct gone if the socket's own backend is gone. A socket that is
 * not connected needs nothing: its next message finds another backend. */
static __always_inline void write_if_gone(struct seq_file *seq, struct sock *sk)
{
	struct socket *s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	struct translation *t;
	struct gone out = {};
	__u32 i;

	if (!s)
		return;
	i = s->peer - 1;
	if (i >= SOCKET_TRANSLATIONS)
		return;
	t = &s->last[i];
	/* It may have been connected elsewhere since, without being translated. */
	if (sk->__sk_common.skc_dport != t->backend_port)
		return;
	if (t->epoch == service_epoch(t->service) ||
	    member_flags(t->service, &t->backend, t->backend_port) & MEMBER_SERVING)
		return;
	out.dst = t->backend;
	out.dport = t->backend_port;
	out.sport = bpf_htons(sk->__sk_common.skc_num);
	out.proto = sk->sk_protocol;
	out.cookie = bpf_get_socket_cookie(sk);
	if (is_v4(&out.dst))
		map_v4(&out.src, sk->__sk_common.skc_rcv_saddr);
	else
		bpf_probe_read_kernel(&out.src, sizeof(out.src), &sk->__sk_common.skc_v6_rcv_saddr);
	bpf_seq_write(seq, &out, sizeof(out));
}

#endif
