/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is counted for each service and backend, and told to who watches. */
#ifndef NODEPROXY_COUNT_H
#define NODEPROXY_COUNT_H

static __always_inline void count_service(__u32 id, bool translated)
{
	struct service_stats *s = bpf_map_lookup_elem(&service_counts, &id);

	if (!s)
		return;
	if (translated)
		__sync_fetch_and_add(&s->translated, 1);
	else
		__sync_fetch_and_add(&s->refused, 1);
}

/* The counters of a backend, made if they are not there; NULL if there is no
 * room. Who was counted there and is no member any more is removed by Go. */
static __always_inline struct backend_stats *backend_stats(struct member_key *key)
{
	struct backend_stats *s = bpf_map_lookup_elem(&backend_counts, key);
	struct backend_stats none = {};

	if (s)
		return s;
	bpf_map_update_elem(&backend_counts, key, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&backend_counts, key);
}

/* One flow that a backend of a service was chosen for. */
__noinline int count_backend(__u32 service, const struct addr *a, __u16 port, bool translated)
{
	struct member_key key = {};
	struct backend_stats *s;

	if (!a)
		return 0;
	key.addr = *a;
	key.service = service;
	key.port = port;
	s = backend_stats(&key);
	if (!s)
		return 0;
	if (translated)
		__sync_fetch_and_add(&s->translated, 1);
	else
		__sync_fetch_and_add(&s->refused, 1);
	return 0;
}

static __always_inline void add_traffic(struct traffic *t, bool reply, __u32 packets, __u64 bytes)
{
	__sync_fetch_and_add(&t->packets[reply ? 1 : 0], packets);
	__sync_fetch_and_add(&t->bytes[reply ? 1 : 0], bytes);
}

/*
 * Adds what a half of a flow carried since the last time to its service and its
 * backend. Packets themselves only count in the entry of their flow, which they
 * have read anyway: so the cost of a packet is two additions.
 */
static __noinline int settle(const struct tuple *key, struct flow *f)
{
	struct member_key backend = {};
	struct service_stats *s;
	struct backend_stats *b;
	__u32 packets, id;
	__u64 bytes;
	bool reply;

	if (!key || !f)
		return 0;
	packets = f->packets - f->counted_packets;
	bytes = f->bytes - f->counted_bytes;
	if (!packets)
		return 0;
	f->counted_packets += packets;
	f->counted_bytes += bytes;
	reply = f->flags & FLOW_REPLY;
	id = f->service;
	s = bpf_map_lookup_elem(&service_counts, &id);
	if (s)
		add_traffic(&s->traffic, reply, packets, bytes);
	backend.addr = reply ? key->src : f->to.dst;
	backend.port = reply ? key->sport : f->to.dport;
	backend.service = id;
	b = backend_stats(&backend);
	if (b)
		add_traffic(&b->traffic, reply, packets, bytes);
	return 0;
}

/* Whether somebody watches, and has not been told enough this second. */
static __always_inline bool watched(void)
{
	__u32 zero = 0;
	struct watch *w = bpf_map_lookup_elem(&watch, &zero);
	__u64 now;

	if (!w || !w->on)
		return false;
	now = bpf_ktime_get_coarse_ns();
	if (now - w->second > 1000000000ULL) {
		w->second = now;
		w->sent = 0;
	}
	if (w->sent >= w->rate) {
		__sync_fetch_and_add(&w->lost, 1);
		return false;
	}
	__sync_fetch_and_add(&w->sent, 1);
	return true;
}

/* An event to be submitted; NULL if nobody watches. to may be NULL. */
static __always_inline struct event *begin_event(const struct tuple *t, const struct tuple *to,
						 __u32 service, enum reason reason)
{
	__u32 zero = 0;
	struct watch *w;
	struct event *e;

	if (!watched())
		return NULL;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		w = bpf_map_lookup_elem(&watch, &zero);
		if (w)
			__sync_fetch_and_add(&w->lost, 1);
		return NULL;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_ns();
	e->t = *t;
	if (to)
		e->to = *to;
	e->service = service;
	e->reason = reason;
	return e;
}

/* Tells who watches. to may be NULL. */
__noinline int tell(const struct tuple *t, const struct tuple *to, __u32 service,
		    enum reason reason)
{
	struct event *e = t ? begin_event(t, to, service, reason) : NULL;

	if (e)
		bpf_ringbuf_submit(e, 0);
	return 0;
}

#endif
