/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A call to connect or send: its destination, and what is known of its caller. */
#ifndef NODEPROXY_SOCK_CALL_H
#define NODEPROXY_SOCK_CALL_H

#include "base.h"
#include "addr.h"
#include "events.h"
#include "reason.h"
#include "stats.h"
#include "types.h"

/* A socket call's address argument, of either family. */
struct call {
	struct addr addr;
	struct addr source; /* zero: not known */
	__u64 netns;        /* the cookie of the socket's network namespace */
	__u16 port;         /* network */
	__u8 proto;
	bool host; /* the namespace is the node's */
	__u32 pad;
};

static __always_inline void read_call4(struct bpf_sock_addr *ctx, struct call *c)
{
	map_v4(&c->addr, ctx->user_ip4);
	c->port = ctx->user_port;
	c->proto = ctx->protocol;
}

static __always_inline void read_call6(struct bpf_sock_addr *ctx, struct call *c)
{
	c->addr.w[0] = ctx->user_ip6[0];
	c->addr.w[1] = ctx->user_ip6[1];
	c->addr.w[2] = ctx->user_ip6[2];
	c->addr.w[3] = ctx->user_ip6[3];
	c->port = ctx->user_port;
	c->proto = ctx->protocol;
}

static __always_inline void write_call4(struct bpf_sock_addr *ctx, const struct addr *a, __u16 port)
{
	ctx->user_ip4 = a->w[3];
	ctx->user_port = port;
}

static __always_inline void write_call6(struct bpf_sock_addr *ctx, const struct addr *a, __u16 port)
{
	ctx->user_ip6[0] = a->w[0];
	ctx->user_ip6[1] = a->w[1];
	ctx->user_ip6[2] = a->w[2];
	ctx->user_ip6[3] = a->w[3];
	ctx->user_port = port;
}

/* Reports a call to watch, with the process that makes it. be may be NULL. */
__noinline int emit_call_event(const struct call *c, const struct backend *be, __u32 service,
			       enum reason reason)
{
	struct tuple t = {}, to = {};
	struct event *e;

	if (!c)
		return 0;
	t.src = c->source;
	t.dst = c->addr;
	t.dport = c->port;
	t.proto = c->proto;
	if (be) {
		to.src = c->source;
		to.dst = be->addr;
		to.dport = be->port;
		to.proto = c->proto;
	}
	e = begin_event(&t, &to, service, reason);
	if (!e)
		return 0;
	e->process = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(e->program, sizeof(e->program));
	bpf_ringbuf_submit(e, 0);
	return 0;
}

#endif
