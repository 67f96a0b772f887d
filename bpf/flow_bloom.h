/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Whether a tuple may have a half in flows. Most packets have none, and to find
 * that out in the table costs a line of memory that no cache has. So there is a
 * Bloom filter with one hash before it, small enough for a cache: a bit is set
 * before a half is inserted. No bit can be cleared alone, so that Go has two
 * filters filled in turns (filter.go in dataplane/ebpf).
 */
#ifndef NODEPROXY_FLOW_BLOOM_H
#define NODEPROXY_FLOW_BLOOM_H

#include "base.h"
#include "flow_types.h"
#include "maps.h"
#include "types.h"

static __always_inline __u32 filter_bit(const struct tuple *t)
{
	const __u64 *a = (const __u64 *)t; /* two words for each address */
	__u64 h = ((__u64)t->sport << 16 | t->dport) * 0x9e3779b97f4a7c15ULL;

	h += (a[0] ^ 0x243f6a8885a308d3ULL) * 0xff51afd7ed558ccdULL;
	h += a[1] * 0xc4ceb9fe1a85ec53ULL;
	h += (a[2] ^ 0x13198a2e03707344ULL) * 0xd6e8feb86659fd93ULL;
	h += a[3] * 0xa0761d6478bd642fULL;
	h ^= h >> 32;
	h *= 0xe7037ed1a0b428dbULL;
	return h >> (64 - FILTER_BITS);
}

static __always_inline __u32 filter_state(void)
{
	__u32 zero = 0, *state = bpf_map_lookup_elem(&flow_filter_state, &zero);

	return state ? *state : 0;
}

static __always_inline bool may_have_flow(const struct tuple *t)
{
	__u32 state = filter_state(), current = state & FILTER_SECOND;
	struct flow_filter *filter;
	__u32 bit;

	if (!(state & FILTER_VALID))
		return true;
	filter = bpf_map_lookup_elem(&flow_filters, &current);
	if (!filter)
		return true;
	bit = filter_bit(t);
	return filter->bits[bit / 64] & 1ULL << bit % 64;
}

static __always_inline void set_bit(__u32 which, __u32 bit)
{
	struct flow_filter *filter = bpf_map_lookup_elem(&flow_filters, &which);

	if (filter)
		__sync_fetch_and_or(&filter->bits[bit / 64], 1ULL << bit % 64);
}

/* Called before a half is inserted at t. */
static __always_inline void announce_flow(const struct tuple *t)
{
	__u32 state = filter_state(), bit = filter_bit(t);

	set_bit(state & FILTER_SECOND, bit);
	if (state & FILTER_BUILDING)
		set_bit(!(state & FILTER_SECOND), bit);
}

#endif
