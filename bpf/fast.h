/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The fast way of flows that conntrack owns: plain packets pass the stack by, with
 * the translation that conntrack chose. Everything else goes up to conntrack, and
 * once a second one packet of each direction does, which keeps its entry alive and
 * shows whether it is still there. docs/design/flows.md has the states.
 */
#ifndef NODEPROXY_FAST_H
#define NODEPROXY_FAST_H

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
	}
	peer->ifindex = 0;
	f->ifindex = ifindex;
	/* The reply half's next packet goes up, asks, and says where it comes in. */
	open_way(peer, 0, f->id);
	open_way(f, this_second(), f->id);
}

/* Ends the fast way of both halves. */
static __always_inline void demote(struct flow *f, struct flow *peer)
{
	f->fast = 0;
	if (peer)
		peer->fast = 0;
}

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

/*
 * A segment that ends a connection of which conntrack does not see each segment, and so
 * would believe it. If it is exactly the next one it closes the fast way: a FIN goes up
 * to conntrack; of a RST conntrack, whose view is old, is told by the time that it has
 * left. Any other may be forged, and conntrack is not told. The receiver can tell, so it
 * gets it if other packets of the half pass the stack by.
 */
static __always_inline enum keep end_segment(struct __sk_buff *skb, struct work *w, struct flow *f)
{
	struct flow *peer = tracked_peer(w, f);
	bool passing = passes(w, f, skb->ifindex);
	struct packet *p = &w->p;

	if (p->tcp_flags & TCP_RST) {
		if (!peer || p->seq != peer->ack)
			return passing ? KEEP_FAST : KEEP_NOT;
		demote(f, peer);
		shorten_tracked(skb, w, CT_CLOSE_MS);
		return passing ? KEEP_FAST : KEEP_STACK;
	}
	if (p->seq != f->next && end_of_segment(p) != f->next)
		return passing ? KEEP_FAST : KEEP_NOT;
	demote(f, peer);
	return KEEP_STACK;
}

/* Whether conntrack still has the flow of a reply half as the half has it. */
static __always_inline bool still_tracked(struct __sk_buff *skb, struct work *w, struct flow *f)
{
	return find_tracked(skb, w, &w->p.t) == TRACKED_REPLY && same_tuple(&w->to, &f->to);
}

/* Counts a packet in its half. */
static __always_inline void note_packet(struct work *w, struct flow *f)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	__u8 flags = w->p.tcp_flags;

	if (flags & (TCP_FIN | TCP_RST))
		close_flow(w, f, flags);
	else if ((flags & (TCP_SYN | TCP_ACK)) == TCP_ACK && !(f->tcp & TCP_SEEN_ACK)) {
		f->tcp |= TCP_SEEN_ACK;
		if (!(f->flags & FLOW_REPLY))
			give_share_back(w, &w->p.t.src);
	} else if (w->p.t.proto == IPPROTO_UDP && f->flags & FLOW_REPLY && !f->packets) {
		give_share_back(w, &f->to.dst);
	}
	if (f->seen && now - f->seen > TOUCH_INTERVAL)
		f->flags |= FLOW_LASTING;
	f->seen = now;
	f->packets++;
	f->bytes += w->p.total;
}

/* Whether conntrack has to be asked about a packet of a forward half: about a SYN,
 * after a change of the service, and once a second. */
static __always_inline bool has_to_ask(const struct work *w, const struct flow *f)
{
	if ((w->p.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN || f->checked != this_second())
		return true;
	return w->p.t.proto == IPPROTO_UDP && f->epoch != service_epoch(f->service);
}

/* A packet of a half that was found: where it goes. It is counted, unless conntrack
 * has to be asked. */
static __always_inline enum keep keep_tracked(struct __sk_buff *skb, struct work *w, struct flow *f)
{
	bool tcp = w->p.t.proto == IPPROTO_TCP;

	if (tcp && w->p.tcp_flags & (TCP_FIN | TCP_RST) && is_open(f)) {
		note_packet(w, f);
		return end_segment(skb, w, f);
	}
	if (!(f->flags & FLOW_REPLY) && has_to_ask(w, f))
		return KEEP_ASK;
	note_packet(w, f);
	/* A backend that answers a SYN has a new connection: it may be another flow's. */
	if (w->p.tcp_flags & TCP_SYN)
		f->fast = 0;
	if (!is_open(f)) {
		if (tcp && !(f->flags & FLOW_REPLY))
			ask_promotion(w, f);
		return KEEP_STACK;
	}
	if (tcp)
		note_segment(&w->p, f);
	if (f->flags & FLOW_REPLY && f->checked != this_second()) {
		if (!still_tracked(skb, w, f)) {
			f->fast = 0;
			return KEEP_STACK;
		}
		if (!f->ifindex)
			f->ifindex = skb->ifindex;
		f->checked = this_second();
		return KEEP_STACK;
	}
	return passes(w, f, skb->ifindex) && is_usual(&w->p) ? KEEP_FAST : KEEP_STACK;
}

/* Sends a packet on past the stack. Where it may not go as it is, the stack says so. */
static __always_inline int forward_fast(struct __sk_buff *skb, struct work *w, struct flow *f)
{
	w->to = f->to;
	if (find_way(skb, w) != WAY_OUT)
		return NEXT;
	if (rewrite(skb, w, 1) < 0)
		return drop(REASON_REWRITE, &w->p);
	return send_out(skb, w);
}

#endif
