/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A limit on the half-open flows of one source, while conntrack is more than half full: flows
 * without an answer, and TCP flows whose client has not acknowledged it. The kernel itself forgets
 * such flows first once conntrack is full (early_drop of net/netfilter/nf_conntrack_core.c).
 */
#ifndef NODEPROXY_CT_ROOM_H
#define NODEPROXY_CT_ROOM_H

#include "base.h"
#include "addr.h"
#include "ct.h"
#include "flow.h"
#include "maps.h"
#include "scratch.h"
#include "send.h"
#include "types.h"

/* Half-open flows are counted for so many seconds; conntrack has them for 120. */
#define SHARE_SECONDS 32

/* A source: an IPv4 address, or 64 bits of an IPv6 one.
 * writes w->source */
static __always_inline void fill_source(struct work *w, const struct addr *a)
{
	w->source = *a;
	if (!is_v4(a)) {
		w->source.w[2] = 0;
		w->source.w[3] = 0;
	}
}

/* The flows that a source may have half-open; 0 while conntrack has room. */
static __always_inline __u32 share_of_source(void)
{
	__u32 zero = 0, *share = bpf_map_lookup_elem(&source_share, &zero);

	return share ? *share : 0;
}

/*
 * Takes one of the share of the packet's source. False if there is none left.
 * reads w->p; writes w->source
 */
static __noinline bool take_share(struct work *w)
{
	__u32 share = share_of_source(), window;
	struct source_use fresh = {}, *use;

	if (!share || !w)
		return true;
	fill_source(w, &w->p.t.src);
	window = bpf_ktime_get_coarse_ns() / SECOND / SHARE_SECONDS;
	use = bpf_map_lookup_elem(&sources, &w->source);
	if (!use) {
		fresh.window = window;
		fresh.half_open = 1;
		bpf_map_update_elem(&sources, &w->source, &fresh, BPF_ANY);
		return true;
	}
	if (use->window != window) {
		use->window = window;
		use->half_open = 0;
	}
	if (use->half_open >= (__s32)share)
		return false;
	__sync_fetch_and_add(&use->half_open, 1);
	return true;
}

/* A flow of the client is no longer half-open. writes w->source */
static __always_inline void give_share_back(struct work *w, const struct addr *client)
{
	struct source_use *use;

	if (!share_of_source())
		return;
	fill_source(w, client);
	use = bpf_map_lookup_elem(&sources, &w->source);
	if (use && use->half_open > 0)
		__sync_fetch_and_add(&use->half_open, -1);
}

/* Notes a new flow among those that may make room for others: in the place of the one that
 * has made room for it, so that there are no fewer, and in one by chance.
 * reads w->p, w->room */
static __always_inline void note_half_open(const struct work *w)
{
	__u32 slot = bpf_get_prandom_u32() % HALF_OPEN_SLOTS, left = w->room - 1;

	if (!share_of_source())
		return;
	bpf_map_update_elem(&half_open, &slot, &w->p.t, BPF_ANY);
	if (w->room)
		bpf_map_update_elem(&half_open, &left, &w->p.t, BPF_ANY);
}

/* Ends the entry at a tuple if nobody has answered and gone on with it.
 * writes w->sock, w->ct */
__noinline bool expire_half_open(struct __sk_buff *skb, struct work *w, const struct tuple *t)
{
	bool half_open;
	struct nf_conn *c;

	if (!w || !t)
		return false;
	fill_ct_question(w, t);
	c = ct_lookup(skb, w);
	if (!c)
		return false;
	half_open = !(c->status & IPS_ASSURED);
	bpf_ct_release(c);
	if (half_open)
		expire_tracked(skb, w, t);
	return half_open;
}

/*
 * Conntrack is full. Where packets make entries it then forgets a half-open one, but for
 * programs it looks in one place only (nf_conntrack_alloc has no hash), which is soon
 * empty. So one of those that were noted goes. False if none is half-open still.
 * reads and leaves w->p, w->to; writes w->sock, w->ct, w->room
 */
__noinline bool make_room(struct __sk_buff *skb, struct work *w)
{
	bool v4, freed = false;

	w = own_work(w);
	if (!w)
		return false;
	v4 = w->p.v4;
	for (int i = 0; i < 8 && !freed; i++) {
		__u32 slot = bpf_get_prandom_u32() % HALF_OPEN_SLOTS;
		struct tuple *t = bpf_map_lookup_elem(&half_open, &slot);

		if (!t || !t->proto)
			continue;
		w->victim = *t;
		t->proto = 0;
		w->p.v4 = is_v4(&w->victim.src); /* lookups ask by it */
		freed = expire_half_open(skb, w, &w->victim);
		w->room = slot + 1; /* empty now, also if the flow was not half-open */
	}
	w->p.v4 = v4;
	return freed;
}

/*
 * A packet for which conntrack had no room, nor make_room any. Netfilter finds room where
 * it looks for it: it forgets a half-open entry near the packet's own. Then a rule of ours
 * drops the packet, and that room is for the next, or when the client sends again.
 */
static __always_inline int ask_for_room(struct __sk_buff *skb, const struct work *w)
{
	if (w->egress || skb->priority)
		return TC_ACT_SHOT;
	skb->priority = PRIORITY_NO_ROOM;
	return NEXT;
}

/* Makes the entry p.t -> w->to, or finds that another CPU has; w->to is then
 * what conntrack will translate to. reads w->p, w->to; writes w->to, w->sock, w->ct */
static __always_inline enum make track(struct __sk_buff *skb, struct work *w)
{
	enum make made = MAKE_TAKEN;

	w->room = 0;
	for (int i = 0; i < CT_TRIES; i++) {
		made = try_track(skb, w, 0);
		if (made != MAKE_TAKEN && !(made == MAKE_FULL && make_room(skb, w)))
			break;
	}
	return made;
}

#endif
