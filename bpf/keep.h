/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whether what was led to a backend once may go on, after a change. */
#ifndef NODEPROXY_KEEP_H
#define NODEPROXY_KEEP_H

/*
 * Rereads the frontend that the packet asked for. The address is asked first:
 * few are in use, so they are in a cache, where the table of ports never is as
 * a whole, and replies go to ports of all kinds.
 */
static __always_inline bool read_frontend(struct work *w)
{
	struct frontend *fe;

	w->dst_flags = address_flags(&w->p.t.dst);
	if (!(w->dst_flags & (ADDRESS_VIP | ADDRESS_NODEPORT)))
		return false;
	w->key.addr = w->p.t.dst;
	w->key.port = w->p.t.dport;
	w->key.proto = w->p.t.proto;
	w->key.pad = 0;
	fe = find_frontend(&w->key, w->dst_flags & ADDRESS_NODEPORT);
	if (!fe)
		return false;
	w->fe = *fe;
	return true;
}

/* Whether a route leads to a member, as NodeFacts.Keeps of service/ has it. */
static __always_inline bool route_keeps(__u8 route, __u32 member)
{
	if (!(member & MEMBER_SERVING) || (route & ROUTE_ACTION) != ROUTE_TRANSLATE)
		return false;
	return !(route & ROUTE_LOCAL) || member & MEMBER_HERE;
}

/* Whether the packet's flow still leads where it may; asked after a change only.
 * ifindex is where the packet came in, 0 if it was sent here. */
static __always_inline bool still_leads(struct work *w, struct flow *f, __u32 ifindex)
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
	if (!route_keeps(route_of(&w->fe, source),
			 member_flags(f->service, &f->to.dst, f->to.dport)))
		return false;
	f->epoch = epoch;
	return true;
}

#endif
