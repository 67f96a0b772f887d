/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a socket was told: kept in its storage, asked again by its next calls. */
#ifndef NODEPROXY_SOCK_TOLD_H
#define NODEPROXY_SOCK_TOLD_H

#include "base.h"
#include "addr.h"
#include "backend.h"
#include "flow_valid.h"
#include "maps.h"
#include "sock_call.h"
#include "types.h"

/* What the socket was last told about this destination, if it still holds. */
static __always_inline struct translation *find_translation(struct socket *s, const struct call *c,
							    const struct frontend *fe, __u8 route)
{
	for (int i = 0; i < SOCKET_TRANSLATIONS; i++) {
		struct translation *t = &s->last[i];
		__u32 epoch;

		if (t->asked_port != c->port || !t->asked_port || !same_addr(&t->asked, &c->addr))
			continue;
		epoch = service_epoch(t->service);
		if (t->epoch != epoch &&
		    (t->service != fe->service ||
		     !route_allows_member(route,
					  member_flags(t->service, &t->backend, t->backend_port))))
			return NULL;
		t->epoch = epoch;
		return t;
	}
	return NULL;
}

/* What the socket was last told about this destination, if nothing has changed since
 * that has a say. Most datagrams need no more. */
static __always_inline struct translation *unchanged(struct bpf_sock *sk, const struct call *c,
						     const struct frontend *fe)
{
	struct socket *s = bpf_sk_storage_get(&sockets, sk, 0, 0);

	if (!s)
		return NULL;
	for (int i = 0; i < SOCKET_TRANSLATIONS; i++) {
		struct translation *t = &s->last[i];

		if (t->asked_port == c->port && t->asked_port && same_addr(&t->asked, &c->addr))
			return t->service == fe->service && t->epoch == service_epoch(t->service)
				   ? t
				   : NULL;
	}
	return NULL;
}

/* Notes in the socket's storage what was chosen for it. */
static __always_inline bool remember_translation(struct socket *s, const struct call *c,
						 const struct frontend *fe,
						 const struct backend *be, bool connect)
{
	struct translation *t;
	__u32 i = s->next;

	/* The same destination, or one that answers from the same address, does
	 * not take a second place. */
	for (int j = 0; j < SOCKET_TRANSLATIONS; j++) {
		t = &s->last[j];
		if (t->asked_port == c->port && same_addr(&t->asked, &c->addr))
			i = j;
	}
	if (i >= SOCKET_TRANSLATIONS)
		i = 0;
	t = &s->last[i];
	t->asked = c->addr;
	t->asked_port = c->port;
	t->backend = be->addr;
	t->backend_port = be->port;
	t->service = fe->service;
	t->epoch = service_epoch(fe->service);
	if (i == s->next)
		s->next = (i + 1) % SOCKET_TRANSLATIONS;
	if (connect)
		s->peer = i + 1;
	return true;
}

/* Forgets what a socket was connected to: it is about to be connected anew. */
static __always_inline void disconnect(struct bpf_sock_addr *ctx)
{
	struct socket *s = bpf_sk_storage_get(&sockets, ctx->sk, 0, 0);

	if (s)
		s->peer = 0;
}

/* Replaces a backend's address by the one that the application named. */
static __always_inline bool untranslate(struct bpf_sock_addr *ctx, struct call *c, bool peer)
{
	struct socket *s = bpf_sk_storage_get(&sockets, ctx->sk, 0, 0);
	__u32 i;

	if (!s)
		return false;
	if (peer) {
		i = s->peer - 1;
		if (i >= SOCKET_TRANSLATIONS)
			return false;
		c->addr = s->last[i].asked;
		c->port = s->last[i].asked_port;
		return true;
	}
	for (i = 0; i < SOCKET_TRANSLATIONS; i++) {
		struct translation *t = &s->last[i];

		if (t->backend_port == c->port && same_addr(&t->backend, &c->addr)) {
			c->addr = t->asked;
			c->port = t->asked_port;
			return true;
		}
	}
	return false;
}

#endif
