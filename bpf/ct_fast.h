/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The fast way of flows that conntrack owns: plain packets pass the stack by, with
 * the translation that conntrack chose. Everything else goes up to conntrack, and
 * once a second one packet of each direction does, which keeps its entry alive and
 * shows whether it is still there. docs/design/flows.md has the states.
 */
#ifndef NODEPROXY_CT_FAST_H
#define NODEPROXY_CT_FAST_H

#include "base.h"
#include "ct.h"
#include "flow.h"
#include "flow_types.h"
#include "maps.h"
#include "packet.h"
#include "scratch.h"
#include "source.h"
#include "types.h"

/* Shorter flows are not worth a question to the agent. */
#define PROMOTE_PACKETS 16

/* From one segment to the next of a direction, numbers grow by so much at most: what
 * is further away is no segment of the connection, and changes nothing. */
#define MOST_AHEAD (1U << 22)

/* How long conntrack keeps a connection that was reset. */
#define CT_CLOSE_MS 10000

static __always_inline bool is_after(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}

/* Whether the fast way is open to a half. */
static __always_inline bool is_open(const struct flow *f)
{
	return f->fast && f->fast == f->id;
}

static __always_inline __u32 this_second(void)
{
	return bpf_ktime_get_coarse_ns() / SECOND;
}

/* The sequence number behind a segment. */
static __always_inline __u32 end_of_segment(const struct packet *p)
{
	__u32 headers = p->l4 - p->l3 + p->l4_len;
	__u32 data = p->total > headers ? p->total - headers : 0;

	return p->seq + data + !!(p->tcp_flags & TCP_SYN) + !!(p->tcp_flags & TCP_FIN);
}

/* Whether a packet's headers are those of most: what is unusual is the stack's. */
static __always_inline bool is_usual(const struct packet *p)
{
	__u32 ip = p->v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);

	return p->saw == FRAGMENT_NONE && p->l4 - p->l3 == ip && p->ttl > 1;
}

/* The other half of a flow that conntrack owns, or NULL.
 * writes w->peer */
static __always_inline struct flow *tracked_peer(struct work *w, const struct flow *f)
{
	struct flow *peer;

	reverse(&w->peer, &f->to);
	peer = bpf_map_lookup_elem(&flows, &w->peer);
	return peer && peer->flags & FLOW_STACK && leads_back(peer, &w->p.t) ? peer : NULL;
}

/* Asks the agent to have conntrack let the segments of a flow out of its sight: its
 * view of the windows would end a connection that it sees half of. */
static __always_inline void ask_promotion(struct work *w, struct flow *f)
{
	__u16 second = this_second();
	struct node *n = node_facts();
	struct promotion *p;

	if (!n || n->flags & NODE_STACK || f->ready || f->asked == second ||
	    f->packets < PROMOTE_PACKETS)
		return;
	f->asked = second;
	p = bpf_ringbuf_reserve(&promotions, sizeof(*p), 0);
	if (!p)
		return;
	p->t = w->p.t;
	p->id = f->id;
	p->pad = 0;
	bpf_ringbuf_submit(p, 0);
}

/* Writes checked and fast as one, so that no other CPU sees the one without the other. */
static __always_inline void open_way(struct flow *f, __u32 checked, __u32 id)
{
	*(volatile __u64 *)&f->checked = (__u64)id << 32 | checked;
}

/*
 * Opens the fast way to both halves, the packet's forward half being f: conntrack
 * has just said that the flow is established, and that f has its translation.
 */
static __always_inline void promote(struct work *w, struct flow *f, __u32 ifindex)
{
	bool tcp = w->p.t.proto == IPPROTO_TCP;
	struct flow *peer;

	if (is_open(f) || !(w->ct_status & IPS_ASSURED) ||
	    (tcp && (!f->ready || w->ct_state != CT_TCP_ESTABLISHED ||
		     w->p.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))))
		return;
	peer = tracked_peer(w, f);
	if (!peer || peer->id != f->id)
		return;
	if (tcp) {
		f->next = end_of_segment(&w->p);
		f->ack = w->p.ack;
		peer->next = w->p.ack;
		peer->ack = w->p.seq;
		f->ready = READY_COUNTED;
		peer->ready = READY_COUNTED;
	}
	peer->ifindex = 0;
	f->ifindex = ifindex;
	/* The reply half's next packet goes up, asks, and says where it comes in. */
	open_way(peer, 0, f->id);
	open_way(f, this_second(), f->id);
}

/* Whether the ends of a half's connection are known by its numbers. */
static __always_inline bool is_counted(const struct flow *f)
{
	return f->ready == READY_COUNTED;
}

/* Ends the fast way of both halves. */
static __always_inline void demote(struct flow *f, struct flow *peer)
{
	f->fast = 0;
	if (peer)
		peer->fast = 0;
}

#endif
