/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Sockets are translated when they connect or send, so that no packet of theirs
 * needs it. A socket's source is not known yet then. So whatever depends on it
 * is left to the packet path unless the source is known: session affinity,
 * source ranges, masquerading, whether it is a Pod's (sock_source.h), and a source port
 * that was chosen by the application (two destinations may share a backend). A socket of the node
 * with such a port is translated unless that happens: packets that stay on the node come by no
 * program of the packet path.
 */
#ifndef NODEPROXY_SOCK_H
#define NODEPROXY_SOCK_H

#include "base.h"
#include "addr.h"
#include "backend.h"
#include "events.h"
#include "flow_valid.h"
#include "frontend.h"
#include "maps.h"
#include "metrics.h"
#include "reason.h"
#include "sock_bound.h"
#include "sock_call.h"
#include "sock_source.h"
#include "sock_told.h"
#include "source.h"
#include "types.h"

/* Picks the route for a call from outside of the node's namespace as source_of does for
 * its packets. False: they may be of either class, and it makes a difference. */
static __always_inline bool strange_route(const struct call *c, const struct frontend *fe,
					  const struct node *n, __u8 *route)
{
	bool v4 = is_v4(&c->addr);
	__u32 sources = SOURCES_UNKNOWN;

	*route = fe->route[FROM_OUTSIDE];
	if (!(n->flags & (v4 ? NODE_DETECTS4 : NODE_DETECTS6)) || *route == fe->route[FROM_POD])
		return true;
	/* By which interface of the node packets will come is not known here. */
	if (n->flags & (v4 ? NODE_CIDR4 : NODE_CIDR6))
		sources =
		    is_zero(&c->source) ? sources_of_netns(c->netns, v4) : kind_of(&c->source);
	if (sources == SOURCES_PODS)
		*route = fe->route[FROM_POD];
	return sources == SOURCES_PODS || sources == SOURCES_OTHERS;
}

/* The route for a socket call, and *client with the address that counts as its
 * client's. False: the packet path has to decide. */
static __always_inline bool socket_route(const struct call *c, const struct frontend *fe,
					 bool loopback, struct addr *client, __u8 *route)
{
	struct node *n = node_facts();
	bool v4 = is_v4(&c->addr);

	if (!n)
		return false;
	*client = c->source;
	if (c->host) {
		*route = fe->route[FROM_NODE];
		if (is_zero(client))
			*client = loopback ? c->addr : v4 ? n->address[0] : n->address[1];
	} else if (!strange_route(c, fe, n, route) || *route & ROUTE_MASQUERADE) {
		return false;
	}
	if (fe->flags & (FRONTEND_FILTERED | FRONTEND_AFFINITY) && is_zero(client))
		return false;
	if (fe->flags & FRONTEND_FILTERED && !in_ranges(fe, client))
		return false;
	return (*route & ROUTE_ACTION) != ROUTE_DROP;
}

enum verdict { VERDICT_ASIDE, VERDICT_TRANSLATE, VERDICT_REFUSE, VERDICT_NONE };

/* Decides a connect or send; for VERDICT_TRANSLATE *be is where it goes. */
static __noinline int decide(struct bpf_sock_addr *ctx, struct call *c, struct backend *be,
			     bool connect)
{
	struct frontend_key key = {};
	struct frontend fe, *found;
	struct addr client;
	struct translation *t;
	struct socket *s;
	bool loopback;
	__u32 hash;
	__u8 route;

	if (!c || !be)
		return VERDICT_NONE;
	key.addr = c->addr;
	key.port = c->port;
	key.proto = c->proto;
	/* 0.0.0.0 and :: are the caller's own loopback addresses. */
	loopback = is_loopback(&c->addr) || is_any(&c->addr);
	if (loopback && !c->host)
		return VERDICT_NONE;
	if (loopback) {
		struct node *n = node_facts();

		if (!n || !(n->flags & (is_v4(&c->addr) ? NODE_LOOPBACK4 : NODE_LOOPBACK6)))
			return VERDICT_NONE;
	}
	found = find_frontend(&key, loopback);
	if (!found)
		return VERDICT_NONE;
	/* Bound to a loopback address it would reach no backend: the relay takes it. */
	if (loopback && is_loopback(&c->source))
		return VERDICT_ASIDE;
	fe = *found;
	if (is_caches(ctx, c))
		return VERDICT_ASIDE;
	t = connect ? NULL : unchanged(ctx->sk, c, &fe);
	if (t) {
		be->addr = t->backend;
		be->port = t->backend_port;
		return VERDICT_TRANSLATE;
	}
	if (!socket_route(c, &fe, loopback, &client, &route))
		return VERDICT_ASIDE;
	if ((route & ROUTE_ACTION) == ROUTE_REJECT) {
		count_service(fe.service, false);
		emit_call_event(c, NULL, fe.service, REASON_SOCKET_REFUSED);
		return VERDICT_REFUSE;
	}
	s = bpf_sk_storage_get(&sockets, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s)
		return VERDICT_ASIDE; /* without it the reply could not be told apart */
	t = connect ? NULL : find_translation(s, c, &fe, route);
	if (t) {
		be->addr = t->backend;
		be->port = t->backend_port;
		return VERDICT_TRANSLATE;
	}
	/* Nobody else sees the flow: any slot will do, unless affinity counts. */
	hash = bpf_get_prandom_u32();
	if (fe.flags & FRONTEND_MAGLEV && fe.flags & FRONTEND_AFFINITY)
		hash = hash_flow(&client, &c->addr, 0, c->port, c->proto);
	if (!pick(&fe, route, &client, be, hash)) {
		found = find_frontend(&key, true);
		if (!found)
			return VERDICT_ASIDE;
		fe = *found;
		if (!pick(&fe, route, &client, be, hash))
			return VERDICT_ASIDE;
	}
	if (!be->port)
		be->port = c->port;
	if (connect && port_is_bound(ctx) && tuple_in_use(ctx, &client, be))
		return VERDICT_ASIDE;
	remember_translation(s, c, &fe, be, connect);
	count_service(fe.service, true);
	count_backend(fe.service, &be->addr, be->port, true);
	emit_call_event(c, be, fe.service, REASON_SOCKET_TRANSLATED);
	return VERDICT_TRANSLATE;
}

/* The result of a hook: 1 lets the call go on. */
static __always_inline int hook_verdict(int verdict)
{
	switch (verdict) {
	case VERDICT_TRANSLATE:
		count(REASON_SOCKET_TRANSLATED, 0);
		break;
	case VERDICT_ASIDE:
		count(REASON_SOCKET_ASIDE, 0);
		break;
	case VERDICT_REFUSE:
		count(REASON_SOCKET_REFUSED, 0);
		bpf_set_retval(-ECONNREFUSED);
		return 0;
	}
	return 1;
}

#endif
