/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What watch is told, while somebody watches. */
#ifndef NODEPROXY_EVENTS_H
#define NODEPROXY_EVENTS_H

#include "base.h"
#include "maps.h"
#include "reason.h"
#include "stats.h"
#include "types.h"

/* Whether somebody watches, and has not been told enough this second. */
static __always_inline bool events_on(void)
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

	if (!events_on())
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

/* Reports an event to watch. to may be NULL. */
__noinline int emit_event(const struct tuple *t, const struct tuple *to, __u32 service,
			  enum reason reason)
{
	struct event *e = t ? begin_event(t, to, service, reason) : NULL;

	if (e)
		bpf_ringbuf_submit(e, 0);
	return 0;
}

#endif
