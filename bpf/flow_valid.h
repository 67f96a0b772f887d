/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whether a flow may still go to its backend, after a change. */
#ifndef NODEPROXY_FLOW_VALID_H
#define NODEPROXY_FLOW_VALID_H

#include "base.h"
#include "backend.h"
#include "flow_types.h"
#include "frontend.h"
#include "scratch.h"
#include "source.h"
#include "types.h"

/* Whether a route allows a member, as NodeFacts.Keeps of service/ has it. */
static __always_inline bool route_allows_member(__u8 route, __u32 member)
{
	if (!(member & MEMBER_SERVING) || (route & ROUTE_ACTION) != ROUTE_TRANSLATE)
		return false;
	return !(route & ROUTE_LOCAL) || member & MEMBER_HERE;
}

/* Whether the packet's flow still leads where it may; asked after a change only.
 * ifindex is where the packet came in, 0 if it was sent here. */
static __always_inline bool flow_still_valid(struct work *w, struct flow *f, __u32 ifindex)
{
	__u32 epoch = service_epoch(f->service);
	enum source source;

	if (f->epoch == epoch)
		return true;
	if (!read_frontend(w) || w->fe.service != f->service)
		return false;
	if (w->fe.flags & FRONTEND_FILTERED && !in_ranges(&w->fe, &w->p.t.src))
		return false;
	source = source_of(&w->p.t.src, ifindex);
	if (!route_allows_member(route_of(&w->fe, source),
				 member_flags(f->service, &f->to.dst, f->to.dport)))
		return false;
	f->epoch = epoch;
	return true;
}

#endif
