/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * TCP segments of flows whose windows conntrack does not judge, since it does not see each
 * of them: how far a direction has come, and which FIN, RST and SYN count.
 */
#ifndef NODEPROXY_CT_SEGMENT_H
#define NODEPROXY_CT_SEGMENT_H

#include "base.h"
#include "ct.h"
#include "ct_fast.h"
#include "flow_types.h"
#include "packet.h"
#include "scratch.h"
#include "source.h"
#include "types.h"

/* What becomes of a packet whose half was found. */
enum keep {
	KEEP_ASK,   /* conntrack has to be asked before it goes on */
	KEEP_STACK, /* the stack translates it */
	KEEP_FAST,  /* w->to says what it becomes */
	KEEP_NOT,   /* it is dropped */
};

static __always_inline bool is_ahead(__u32 a, __u32 b)
{
	return a - b - 1 < MOST_AHEAD;
}

/* Notes how far a direction has come. */
static __always_inline void note_segment(const struct packet *p, struct flow *f)
{
	__u32 end = end_of_segment(p);

	if (is_ahead(end, f->next))
		f->next = end;
	if (p->tcp_flags & TCP_ACK && is_ahead(p->ack, f->ack))
		f->ack = p->ack;
}

/* Whether a half's packets may pass the stack by at present. */
static __always_inline bool is_fast(const struct flow *f)
{
	struct node *n = node_facts();

	return is_open(f) && n && !(n->flags & NODE_STACK);
}

/* ... those that come in by an interface: whether a source fits an other one, the stack
 * judges (rp_filter). */
static __always_inline bool passes(const struct work *w, const struct flow *f, __u32 ifindex)
{
	return is_fast(f) && !w->egress && f->ifindex == ifindex;
}

/* What becomes of a segment that conntrack must not see. The receiver can judge it: it is
 * forwarded past the stack, or dropped where packets have to take the stack way. What this
 * host itself sends goes on. */
static __always_inline enum keep doubt(const struct work *w, const struct flow *f, __u32 ifindex)
{
	struct node *n = node_facts();

	if (w->egress)
		return KEEP_STACK;
	if (!n || n->flags & NODE_STACK || f->ifindex != ifindex)
		return KEEP_NOT;
	return KEEP_FAST;
}

/*
 * A segment that ends a connection of which conntrack does not see each segment, and so
 * would believe it. If it is exactly the next one it closes the fast way: a FIN goes up
 * to conntrack; of a RST conntrack, whose view is old, is told by the time that it has
 * left. Any other may be forged, and conntrack is not told.
 */
static __always_inline enum keep end_segment(struct __sk_buff *skb, struct work *w, struct flow *f)
{
	struct flow *peer = tracked_peer(w, f);
	bool passing = passes(w, f, skb->ifindex);
	struct packet *p = &w->p;

	if (p->tcp_flags & TCP_RST) {
		/* Behind what the other side has acknowledged, or behind what was sent. */
		if (!peer || (p->seq != peer->ack && p->seq != f->next))
			return doubt(w, f, skb->ifindex);
		demote(f, peer);
		shorten_tracked(skb, w, CT_CLOSE_MS);
		return passing ? KEEP_FAST : KEEP_STACK;
	}
	if (p->seq != f->next && end_of_segment(p) != f->next)
		return doubt(w, f, skb->ifindex);
	note_segment(p, f);
	demote(f, peer);
	return KEEP_STACK;
}

/*
 * A SYN in a reply half: the backend answers a SYN. Conntrack takes the two for a new
 * connection in the entry that it has, and judges its windows (nf_conntrack_tcp_packet). The
 * answer may also be that of a connection to the backend itself, without the Service.
 */
static __always_inline void reopen(struct work *w, struct flow *f)
{
	struct flow *peer = tracked_peer(w, f);
	__u32 id = bpf_get_prandom_u32() | 1; /* what the agent was asked before is void */

	demote(f, peer);
	f->ready = READY_NOT;
	f->next = end_of_segment(&w->p); /* what the client's first ACK has */
	f->id = id;
	if (!peer)
		return;
	peer->ready = READY_NOT;
	peer->asked = 0;
	peer->id = id;
}

#endif
