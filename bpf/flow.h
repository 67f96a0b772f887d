/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The table of flows: two halves for each, made, kept and deleted as a pair. */
#ifndef NODEPROXY_FLOW_H
#define NODEPROXY_FLOW_H

#include "base.h"
#include "addr.h"
#include "flow_bloom.h"
#include "flow_close.h"
#include "flow_types.h"
#include "flow_valid.h"
#include "maps.h"
#include "metrics.h"
#include "packet.h"
#include "reason.h"
#include "scratch.h"
#include "types.h"

/* A half's last-seen is written, and its peer looked at, at most this often. */
#define SECOND 1000000000ULL
#define TOUCH_INTERVAL SECOND

/* Fills in w->peer and w->flow with the other half of f, whose key is key. */
static __always_inline void other_half(struct work *w, const struct tuple *key,
				       const struct flow *f)
{
	__builtin_memset(&w->flow, 0, sizeof(w->flow));
	reverse(&w->peer, &f->to);
	reverse(&w->flow.to, key);
	w->flow.service = f->service;
	w->flow.epoch = f->epoch;
	w->flow.flags = (f->flags ^ FLOW_REPLY) & ~FLOW_LASTING;
}

/* Whether peer is the other half of the flow that has a half at key, and not
 * one of a flow that has taken its place. */
static __always_inline bool leads_back(const struct flow *peer, const struct tuple *key)
{
	return same_addr(&peer->to.src, &key->dst) && same_addr(&peer->to.dst, &key->src) &&
	       peer->to.sport == key->dport && peer->to.dport == key->sport;
}

/*
 * Deletes both halves, the forward one first: while one half is left it is the
 * one that keeps replies from leaving untranslated. A masquerade port that is in
 * TIME_WAIT at the backend keeps its reply half, so that nobody gets it: the
 * collector takes that in its time.
 */
static __always_inline void forget(struct work *w, const struct tuple *key, struct flow *f)
{
	struct flow *peer;
	bool waits;

	flush_counters(key, f);
	reverse(&w->peer, &f->to);
	peer = bpf_map_lookup_elem(&flows, &w->peer);
	waits =
	    peer && (f->flags & (FLOW_SOURCE | FLOW_REPLY)) == FLOW_SOURCE && in_time_wait(f, peer);
	bpf_map_delete_elem(&flows, key);
	if (peer && leads_back(peer, key)) {
		flush_counters(&w->peer, peer);
		if (waits)
			peer->flags |= FLOW_TIME_WAIT;
		else
			bpf_map_delete_elem(&flows, &w->peer);
	}
}

/*
 * Makes the other half again if it is gone. False if its key is now another
 * flow's: this half is then dead.
 */
static __always_inline bool check_peer(struct work *w, const struct flow *f, __u64 now)
{
	struct flow *peer;

	other_half(w, &w->p.t, f);
	peer = bpf_map_lookup_elem(&flows, &w->peer);
	if (peer)
		return same_tuple(&peer->to, &w->flow.to);
	w->flow.seen = now;
	/* Of a flow that was closed, or left for TIME_WAIT, none that lives on. */
	w->flow.tcp = TCP_SEEN_ACK | (f->tcp & (TCP_SEEN_FIN | TCP_SEEN_RST));
	announce_flow(&w->peer);
	if (bpf_map_update_elem(&flows, &w->peer, &w->flow, BPF_NOEXIST) == 0)
		count(REASON_FLOW_REBUILT, 0);
	return true;
}

/* A SYN on a known flow: is it a retransmission, or a new connection that
 * reuses the port? */
static __always_inline bool syn_continues(struct work *w, struct flow *f, __u32 ifindex)
{
	struct flow *peer;
	__u8 both, either;

	reverse(&w->peer, &f->to);
	peer = bpf_map_lookup_elem(&flows, &w->peer);
	if (rst_by_client(f, peer)) {
		f->tcp = 0;
		peer->tcp = 0;
	}
	either = f->tcp | (peer ? peer->tcp : 0);
	both = f->tcp & (peer ? peer->tcp : 0);
	if (either & TCP_SEEN_RST || both & TCP_SEEN_FIN)
		return false;
	return flow_still_valid(w, f, ifindex);
}

/*
 * Notes the packet, which came in by ifindex or was sent here (0), on its flow. False: the flow is
 * over and was deleted, and the packet begins a new one.
 */
static __always_inline bool keep_flow(struct work *w, struct flow *f, __u32 ifindex)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct packet *p = &w->p;
	__u8 flags = p->tcp_flags;
	bool alive = true;

	if (!(f->flags & FLOW_REPLY)) {
		if (p->t.proto == IPPROTO_UDP)
			alive = flow_still_valid(w, f, ifindex);
		else if ((flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
			alive = syn_continues(w, f, ifindex);
	}
	if (flags & (TCP_FIN | TCP_RST)) {
		close_flow(w, f, flags);
		f->seen = now; /* exactly: flow_expired counts from it */
	} else if ((flags & (TCP_SYN | TCP_ACK)) == TCP_ACK && !(f->tcp & TCP_SEEN_ACK))
		f->tcp |= TCP_SEEN_ACK;
	if (alive && now - f->seen > TOUCH_INTERVAL) {
		alive = check_peer(w, f, now);
		if (f->seen)
			f->flags |= FLOW_LASTING;
		f->seen = now;
	}
	if (!alive)
		forget(w, &p->t, f);
	return alive;
}

/*
 * What updating a map says is kept in an int: before Linux 6.4 the functions of
 * maps return one, the verifier calls them directly, and the upper half of the
 * register is zero, so that -EEXIST as a long is no -EEXIST.
 */
enum insert { INSERTED, INSERT_TAKEN, INSERT_FULL };

/* The forward half, at *forward, of the flow whose reply half is at w->peer; NULL
 * if it may not be taken. */
static __always_inline struct flow *finished(struct work *w, struct flow *reply, enum reclaim which,
					     struct tuple *forward)
{
	struct flow *f;

	reverse(forward, &reply->to);
	f = bpf_map_lookup_elem(&flows, forward);
	return f && leads_back(f, &w->peer) && flow_expired(forward, f, reply, which) ? f : NULL;
}

/* Whether a flow p.t -> to could have its reply half inserted. While all are taken
 * this is asked often, and costs less than to try. */
static __always_inline bool is_vacant(struct work *w, enum reclaim which)
{
	struct tuple forward;
	struct flow *reply;

	reverse(&w->peer, &w->to);
	reply = bpf_map_lookup_elem(&flows, &w->peer);
	if (!reply)
		return true;
	reverse(&w->flow.to, &w->p.t);
	return same_tuple(&reply->to, &w->flow.to) || finished(w, reply, which, &forward);
}

/*
 * Deletes the flow whose reply half is at w->peer if it is over. Without this
 * no more flows could be begun to a backend than there are masquerade ports, in
 * the time that finished flows are kept.
 */
static __always_inline bool reclaim(struct work *w, struct flow *reply, enum reclaim which)
{
	struct tuple forward;
	struct flow *f = finished(w, reply, which, &forward);

	if (!f)
		return false;
	flush_counters(&forward, f);
	flush_counters(&w->peer, reply);
	bpf_map_delete_elem(&flows, &forward);
	bpf_map_delete_elem(&flows, &w->peer);
	return true;
}

/*
 * Inserts the reply half of the flow p.t -> to, so that a reply finds it from
 * the first packet on. INSERT_TAKEN: its key is another flow's.
 */
static __always_inline enum insert insert_reply(struct work *w, enum reclaim which)
{
	struct flow *there;
	int err; /* not long, see enum insert */

	reverse(&w->peer, &w->to);
	reverse(&w->flow.to, &w->p.t);
	w->flow.flags |= FLOW_REPLY;
	w->flow.seen = 0;
	announce_flow(&w->peer);
	err = bpf_map_update_elem(&flows, &w->peer, &w->flow, BPF_NOEXIST);
	if (err == 0)
		return INSERTED;
	if (err != -EEXIST)
		return INSERT_FULL;
	/* The same flow's, from another CPU or as an orphan: as good as ours. If it
	 * is one that was left for TIME_WAIT, the client's next connection is a later
	 * one to the backend too. */
	there = bpf_map_lookup_elem(&flows, &w->peer);
	if (there && same_tuple(&there->to, &w->flow.to)) {
		if (there->flags & FLOW_TIME_WAIT) {
			there->flags &= ~FLOW_TIME_WAIT;
			there->tcp = 0;
		}
		return INSERTED;
	}
	if (!there || !reclaim(w, there, which))
		return INSERT_TAKEN;
	err = bpf_map_update_elem(&flows, &w->peer, &w->flow, BPF_NOEXIST);
	return err == 0 ? INSERTED : err == -EEXIST ? INSERT_TAKEN : INSERT_FULL;
}

/* Inserts the forward half. The one that loses a race takes the winner's backend. */
static __always_inline enum insert insert_forward(struct work *w)
{
	struct flow *winner;
	int err; /* not long, see enum insert */

	w->flow.to = w->to;
	w->flow.flags &= ~FLOW_REPLY;
	w->flow.seen = bpf_ktime_get_coarse_ns();
	w->flow.packets = 1;
	w->flow.bytes = w->p.total;
	announce_flow(&w->p.t);
	err = bpf_map_update_elem(&flows, &w->p.t, &w->flow, BPF_NOEXIST);
	if (err == 0) {
		bpf_map_update_elem(&pairs, &w->p.t, &w->peer, BPF_ANY);
		bpf_map_update_elem(&pairs, &w->peer, &w->p.t, BPF_ANY);
		count(REASON_FLOW_NEW, w->p.total);
		return INSERTED;
	}
	winner = err == -EEXIST ? bpf_map_lookup_elem(&flows, &w->p.t) : NULL;
	if (winner && same_tuple(&winner->to, &w->to))
		return INSERTED;
	bpf_map_delete_elem(&flows, &w->peer);
	if (!winner)
		return INSERT_FULL;
	w->to = winner->to;
	return INSERTED;
}

#endif
