/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What Go and the programs share of the filter before flows; filter.h uses it. */
#ifndef NODEPROXY_FILTERTYPES_H
#define NODEPROXY_FILTERTYPES_H

/* As many as fit into a cache together with what else a packet needs. */
#define FILTER_BITS 16

/* What is in flows has its bit set, and so may other tuples. */
struct flow_filter {
	__u64 bits[(1 << FILTER_BITS) / 64];
};

/* The value of flow_filter_state. */
enum filter_state {
	FILTER_SECOND = 1,   /* which of the two is in use */
	FILTER_BUILDING = 2, /* the other one is being filled: new halves go into both */
	FILTER_VALID = 4,    /* else all tuples are looked up */
};

#endif
