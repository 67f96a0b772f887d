/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every map. Sizes are Go's to set; those here are the smallest that load. */
#ifndef NODEPROXY_MAPS_H
#define NODEPROXY_MAPS_H

#include "base.h"
#include "flow_types.h"
#include "reason.h"
#include "stats.h"
#include "types.h"

#define MAP(kind, name, k, v, size, opts)                                                          \
	struct {                                                                                   \
		__uint(type, kind);                                                                \
		__type(key, k);                                                                    \
		__type(value, v);                                                                  \
		__uint(max_entries, size);                                                         \
		__uint(map_flags, opts);                                                           \
	} name SEC(".maps")

/* Written by Go, read by the programs. */
MAP(BPF_MAP_TYPE_HASH, frontends, struct frontend_key, struct frontend, 1024, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_HASH, backends, struct backend_key, struct backend, 1024, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_HASH, members, struct member_key, __u32, 1024, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_LPM_TRIE, source_ranges, struct range_key, __u32, 1024, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_HASH, addresses, struct addr, __u32, 1024, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_HASH, interfaces, __u32, struct interface, 1024, BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_ARRAY, services, __u32, struct service, 1024, 0);
MAP(BPF_MAP_TYPE_ARRAY, node, __u32, struct node, 1, 0);
/* Nothing here reads it: commands without an agent do. */
MAP(BPF_MAP_TYPE_HASH, names, __u32, struct service_name, 1024, BPF_F_NO_PREALLOC);
/* By port number, host order; asked once the address is known to be in use. */
MAP(BPF_MAP_TYPE_ARRAY, ports, __u32, __u32, 65536, 0);

/* Written by the programs. */
MAP(BPF_MAP_TYPE_HASH, flows, struct tuple, struct flow, 1024, 0);
/* A flow's key in one direction -> in the other; a hint for when a half is lost. */
MAP(BPF_MAP_TYPE_LRU_HASH, pairs, struct tuple, struct tuple, 1024, 0);
MAP(BPF_MAP_TYPE_LRU_HASH, affinities, struct affinity_key, struct affinity, 1024, 0);
MAP(BPF_MAP_TYPE_LRU_HASH, fragments, struct fragment_key, struct fragment, 1024, 0);
/* When the next answer to an address is due; key :: is all of them together. */
MAP(BPF_MAP_TYPE_LRU_HASH, answer_times, struct addr, __u64, 4096, 0);
/* Half-open flows that one source may have, written by the agent: 0 while conntrack has
 * room. And what each has meanwhile. */
MAP(BPF_MAP_TYPE_ARRAY, source_share, __u32, __u32, 1, 0);
MAP(BPF_MAP_TYPE_ARRAY, half_open, __u32, struct tuple, HALF_OPEN_SLOTS, 0);
MAP(BPF_MAP_TYPE_LRU_HASH, sources, struct addr, struct source_use, 16384, 0);
MAP(BPF_MAP_TYPE_ARRAY, service_counts, __u32, struct service_stats, 1024, 0);
MAP(BPF_MAP_TYPE_HASH, backend_counts, struct member_key, struct backend_stats, 1024,
    BPF_F_NO_PREALLOC);
MAP(BPF_MAP_TYPE_PERCPU_ARRAY, metrics, __u32, struct metric, REASONS, 0);

MAP(BPF_MAP_TYPE_ARRAY, flow_filters, __u32, struct flow_filter, 2, 0);
MAP(BPF_MAP_TYPE_ARRAY, flow_filter_state, __u32, __u32, 1, 0);

/* Filled only while watch says so. */
MAP(BPF_MAP_TYPE_ARRAY, watch, __u32, struct watch, 1, 0);
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

/* Flows that conntrack could let out of its sight; the agent reads it. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} promotions SEC(".maps");

/* Dies with the socket, so nothing needs to collect it. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket);
} sockets SEC(".maps");

#endif
