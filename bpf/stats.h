/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The part of types.h that only Go reads: counters, and the events of watch. What types.h says of
 * layouts and byte order holds here too. */
#ifndef NODEPROXY_STATS_H
#define NODEPROXY_STATS_H

#include "base.h"
#include "types.h"

/* Whose id it is, for who reads the maps: "namespace/name:port", then zeros. */
struct service_name {
	__u8 text[192];
};

/*
 * What a service's flows carried: towards backends, then towards clients. Both
 * are taken from flows when these are collected or end; flows that are
 * translated at the socket are counted when they begin, and no more.
 */
struct traffic {
	__u64 packets[2];
	__u64 bytes[2]; /* from the IP header on */
};

struct service_stats {
	__u64 translated; /* flows begun */
	__u64 refused;    /* flows rejected or dropped, for whatever reason */
	struct traffic traffic;
};

/* The same of one backend of a service; the key is a member_key. */
struct backend_stats {
	__u64 translated;
	__u64 refused; /* flows that were to go here, and could not */
	struct traffic traffic;
};

struct metric {
	__u64 packets;
	__u64 bytes;
};

/* Whether somebody wants to see events, and how many there may be. */
struct watch {
	__u32 on;     /* host; events are written for as long as it is not 0 */
	__u32 rate;   /* host; events a second */
	__u64 second; /* host; ns of CLOCK_MONOTONIC when the present one began */
	__u64 sent;   /* host; in it */
	__u64 lost;   /* host; beyond the rate, or because the ring was full */
};

/* What became of a first packet or a socket call, or why a packet was dropped. */
struct event {
	__u64 time;      /* host; ns of CLOCK_MONOTONIC */
	struct tuple t;  /* as it came; src is zero where a socket's is not known */
	struct tuple to; /* for REASON_FLOW_NEW, REASON_SOCKET_TRANSLATED: as it went on */
	__u32 service;   /* host; EVENT_NO_SERVICE if none is known */
	__u32 reason;    /* host; enum reason */
	/* Of a socket call: the id and the name of its process. The process chooses the
	 * name, which need not be text. Id 0: not known, as for every packet. */
	__u32 process; /* host; in the PID namespace of the machine */
	__u8 program[16];
	__u32 pad;
};

#define EVENT_NO_SERVICE 0xffffffff

_Static_assert(sizeof(struct event) == 120, "event");
_Static_assert(sizeof(struct watch) == 32, "watch");
_Static_assert(sizeof(struct backend_stats) == sizeof(struct service_stats), "stats");

#endif
