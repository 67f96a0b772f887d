/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Later fragments, which have no ports, find their flow by the first one. */
#ifndef NODEPROXY_FRAGMENT_H
#define NODEPROXY_FRAGMENT_H

#include "base.h"
#include "maps.h"
#include "scratch.h"
#include "types.h"

/* Ports of a later fragment, from the first one. */
static __always_inline bool recall_fragment(struct work *w)
{
	struct fragment *f;

	w->fragment.src = w->p.t.src;
	w->fragment.dst = w->p.t.dst;
	w->fragment.id = w->p.fragment_id;
	w->fragment.proto = w->p.t.proto;
	f = bpf_map_lookup_elem(&fragments, &w->fragment);
	if (!f)
		return false;
	w->p.t.sport = f->sport;
	w->p.t.dport = f->dport;
	return true;
}

static __always_inline void remember_fragment(struct work *w)
{
	struct fragment f = {.sport = w->p.t.sport, .dport = w->p.t.dport};

	w->fragment.src = w->p.t.src;
	w->fragment.dst = w->p.t.dst;
	w->fragment.id = w->p.fragment_id;
	w->fragment.proto = w->p.t.proto;
	bpf_map_update_elem(&fragments, &w->fragment, &f, BPF_ANY);
}

#endif
