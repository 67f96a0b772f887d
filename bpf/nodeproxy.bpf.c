// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The programs: entry points only. doc.go in dataplane/ebpf says how they share the work. */
#include "base.h"
#include "addr.h"
#include "config.h"
#include "flow_gc.h"
#include "flow_types.h"
#include "maps.h"
#include "packet.h"
#include "send.h"
#include "sock.h"
#include "sock_bound.h"
#include "sock_call.h"
#include "sock_stale.h"
#include "sock_told.h"
#include "tc.h"
#include "types.h"
#include "xdp.h"

/* Ingress of interfaces with Ethernet headers. */
SEC("tc")
int ingress(struct __sk_buff *skb)
{
	/* Where the generic XDP hook had to copy the packet, Linux (6.18) forgets how
	 * long the link-layer header is: the packet begins behind it. */
	return handle(skb, xdp_generic && !has_ethernet(skb) ? 0 : ETH_HLEN, false);
}

/* Ingress of interfaces without link-layer headers: tun, ipip. */
SEC("tc")
int ingress_l3(struct __sk_buff *skb)
{
	return handle(skb, 0, false);
}

/*
 * Egress sees the one kind of packet that enters by no interface: what this
 * host sends. Replies of backends in its own network get their source here, and
 * sockets that no socket program saw are translated. What is only forwarded has
 * an ingress interface and passes after one comparison.
 */
SEC("tc")
int egress(struct __sk_buff *skb)
{
	return skb->ingress_ifindex ? NEXT : handle(skb, ETH_HLEN, true);
}

SEC("tc")
int egress_l3(struct __sk_buff *skb)
{
	return skb->ingress_ifindex ? NEXT : handle(skb, 0, true);
}

/* Uplinks, before the stack has a packet in its hands; see xdp.h. */
SEC("xdp.frags")
int uplink(struct xdp_md *xdp)
{
	return forward_known(xdp);
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct call c = {};
	struct backend be = {};
	int verdict;

	if (!translate_sockets || !ctx->sk)
		return 1;
	disconnect(ctx);
	read_call4(ctx, &c);
	c.netns = bpf_get_netns_cookie(ctx);
	c.host = c.netns == host_netns;
	if (ctx->sk->src_ip4)
		map_v4(&c.source, ctx->sk->src_ip4);
	if (port_is_bound(ctx) && !c.host)
		return 1;
	verdict = decide(ctx, &c, &be, true);
	if (verdict == VERDICT_TRANSLATE)
		write_call4(ctx, &be.addr, be.port);
	return hook_verdict(verdict);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct call c = {};
	struct backend be = {};
	int verdict;

	if (!translate_sockets || !ctx->sk)
		return 1;
	disconnect(ctx);
	read_call6(ctx, &c);
	c.netns = bpf_get_netns_cookie(ctx);
	c.host = c.netns == host_netns;
	c.source.w[0] = ctx->sk->src_ip6[0];
	c.source.w[1] = ctx->sk->src_ip6[1];
	c.source.w[2] = ctx->sk->src_ip6[2];
	c.source.w[3] = ctx->sk->src_ip6[3];
	if (port_is_bound(ctx) && !c.host)
		return 1;
	verdict = decide(ctx, &c, &be, true);
	if (verdict == VERDICT_TRANSLATE)
		write_call6(ctx, &be.addr, be.port);
	return hook_verdict(verdict);
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct call c = {};
	struct backend be = {};
	int verdict;

	if (!translate_sockets || !ctx->sk)
		return 1;
	read_call4(ctx, &c);
	c.netns = bpf_get_netns_cookie(ctx);
	c.host = c.netns == host_netns;
	if (ctx->msg_src_ip4)
		map_v4(&c.source, ctx->msg_src_ip4);
	verdict = decide(ctx, &c, &be, false);
	if (verdict == VERDICT_TRANSLATE)
		write_call4(ctx, &be.addr, be.port);
	return hook_verdict(verdict);
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct call c = {};
	struct backend be = {};
	int verdict;

	if (!translate_sockets || !ctx->sk)
		return 1;
	read_call6(ctx, &c);
	c.netns = bpf_get_netns_cookie(ctx);
	c.host = c.netns == host_netns;
	c.source.w[0] = ctx->msg_src_ip6[0];
	c.source.w[1] = ctx->msg_src_ip6[1];
	c.source.w[2] = ctx->msg_src_ip6[2];
	c.source.w[3] = ctx->msg_src_ip6[3];
	verdict = decide(ctx, &c, &be, false);
	if (verdict == VERDICT_TRANSLATE)
		write_call6(ctx, &be.addr, be.port);
	return hook_verdict(verdict);
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	struct call c = {};

	read_call4(ctx, &c);
	if (ctx->sk && untranslate(ctx, &c, false))
		write_call4(ctx, &c.addr, c.port);
	return 1;
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	struct call c = {};

	read_call6(ctx, &c);
	if (ctx->sk && untranslate(ctx, &c, false))
		write_call6(ctx, &c.addr, c.port);
	return 1;
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	struct call c = {};

	if (ctx->sk && untranslate(ctx, &c, true))
		write_call4(ctx, &c.addr, c.port);
	return 1;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	struct call c = {};

	if (ctx->sk && untranslate(ctx, &c, true))
		write_call6(ctx, &c.addr, c.port);
	return 1;
}

/* Deletes flows whose time is over. Run from Go: deciding and deleting in the
 * kernel leaves no time in which a flow could come back to life between. */
SEC("syscall")
int collect(struct collection *c)
{
	struct collection pass = *c; /* a callback's argument has to be on the stack */

	if (!pass.now)
		pass.now = bpf_ktime_get_ns();
	bpf_for_each_map_elem(&flows, collect_one, &pass, 0);
	c->flows = pass.flows;
	c->deleted = pass.deleted;
	return 0;
}

/* The agent has seen to it that conntrack can do without each segment of a flow: the
 * next packet may open the fast way. */
SEC("syscall")
int accelerate(struct promotion *in)
{
	struct promotion p = *in; /* a map's key has to be on the stack */
	struct flow *f = bpf_map_lookup_elem(&flows, &p.t);

	if (!f || !(f->flags & FLOW_STACK) || f->id != p.id)
		return 0;
	f->ready = READY_LIBERAL;
	f->checked = 0;
	return 1;
}

/* Reading these iterators lists the sockets of the reader's network namespace
 * that are to be ended. One over the socket storage would see all namespaces at
 * once, but kernels that are locked down do not have it. */
SEC("iter/tcp")
int list_gone_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct tcp_sock *sk = skc ? bpf_skc_to_tcp_sock(skc) : NULL;

	if (sk)
		write_if_gone(ctx->meta->seq, (struct sock *)sk);
	return 0;
}

SEC("iter/udp")
int list_gone_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *sk = ctx->udp_sk;

	if (sk)
		write_if_gone(ctx->meta->seq, (struct sock *)sk);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
