/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The part of types.h about flows, and the Bloom filter before them. What that says of layouts
 * and byte order holds here too. */
#ifndef NODEPROXY_FLOW_TYPES_H
#define NODEPROXY_FLOW_TYPES_H

#include "base.h"
#include "types.h"

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

enum flow_flag {
	FLOW_REPLY = 1,      /* from backend to client */
	FLOW_SOURCE = 2,     /* the forward half rewrites the source too */
	FLOW_LASTING = 4,    /* the client sent again after more than a second */
	FLOW_ORPHAN = 8,     /* the collector saw this half alone, before it had a packet */
	FLOW_TIME_WAIT = 32, /* a reply half that only keeps its port from others */
	FLOW_FOREIGN = 16,   /* holds the key for a connection that netfilter translates */
	FLOW_STACK = 64,     /* conntrack owns the flow; this counts its packets */
};

enum flow_tcp {
	TCP_SEEN_FIN = 1,
	TCP_SEEN_RST = 2,
	TCP_SEEN_ACK = 4,  /* an ACK without SYN went by */
	TCP_FIRST_FIN = 8, /* the other direction had not sent its FIN by then */
};

/* Whether conntrack needs to see each segment of a TCP flow. */
enum flow_ready {
	READY_NOT,     /* it judges windows */
	READY_LIBERAL, /* it does not: the agent saw to it. Of the forward half only */
	READY_COUNTED, /* so next and ack are kept, in both halves, to know the end by */
};

/*
 * One half of a flow. What the packet becomes, read backwards, is the key of
 * the other half: so either half can rebuild the other.
 */
struct flow {
	struct tuple to;
	__u32 service; /* host */
	__u32 epoch;   /* host; of the service when the backend was last checked */
	__u64 seen;    /* host; ns of CLOCK_MONOTONIC, 0 before the first packet */
	__u8 flags;    /* enum flow_flag */
	__u8 tcp;      /* enum flow_tcp, of this direction */
	__u8 pad[6];
	/* Added to without a lock: two CPUs with packets of one direction at the same
	 * moment may count one of them. */
	__u64 bytes;
	__u64 counted_bytes; /* of these, what service_stats and backend_stats have */
	__u32 packets;
	__u32 counted_packets;
	/* Of FLOW_STACK only; docs/design/flows.md says who writes what. */
	__u32 id;      /* host; tells apart flows that follow each other at one key; not 0 */
	__u32 next;    /* host; TCP: the sequence number behind what was sent */
	__u32 ack;     /* host; TCP: the highest acknowledgement that was sent */
	__u32 ifindex; /* host; where packets of a fast half come in; of others, the stack judges */
	__u16 asked;   /* host; low bits of the second in which the agent was asked */
	__u8 ready;    /* enum flow_ready */
	__u8 pad2[5];
	/* Written as one where both change. */
	__u32 checked; /* host; second of CLOCK_MONOTONIC in which conntrack was asked */
	__u32 fast;    /* the half's id: plain packets may pass the stack by; else they may not */
};

/* What the agent is asked for, and gives back: see ready. */
struct promotion {
	struct tuple t; /* of the forward half */
	__u32 id;       /* host */
	__u32 pad;
};

/* In and out of the collect program. */
struct collection {
	__u64 now;         /* in; ns; 0 means the present */
	__u64 established; /* in; timeouts in ns */
	__u64 closing;
	__u64 time_wait;
	__u64 opening;
	__u64 udp; /* answered, and lasting */
	__u64 udp_opening;
	__u64 flows;   /* out; halves left */
	__u64 deleted; /* out; halves deleted */
	__u32 filter;  /* in; 1 + which filter gets the bits of all halves, or 0 */
	__u32 keep;    /* in; 1: nothing is deleted, nor counted in flows */
};

_Static_assert(sizeof(struct flow) == 120, "flow");
_Static_assert(sizeof(struct promotion) == 48, "promotion");
_Static_assert(sizeof(struct collection) == 80, "collect");

#endif
