/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Why a packet or a socket call was dropped, refused or passed on: metrics' index. */
#ifndef NODEPROXY_REASON_H
#define NODEPROXY_REASON_H

#include "base.h"

enum reason {
	REASON_FORWARDED,         /* translated and sent on by the programs */
	REASON_STACK,             /* translated and left to the stack to deliver */
	REASON_FLOW_NEW,          /* a flow began */
	REASON_FLOW_REBUILT,      /* half of a flow was lost and made again */
	REASON_NO_ENDPOINTS,      /* rejected: the service has no endpoints */
	REASON_POLICY,            /* dropped: endpoints elsewhere, but the policy is Local */
	REASON_SOURCE_RANGE,      /* dropped: source outside loadBalancerSourceRanges */
	REASON_UNKNOWN_FLOW,      /* TCP to a frontend without a flow, not a SYN: reset */
	REASON_UNKNOWN_REPLY,     /* dropped: to a masquerade port that no flow holds */
	REASON_FLOWS_FULL,        /* dropped: no room for a new flow */
	REASON_PORTS_EXHAUSTED,   /* dropped: no masquerade port towards this backend */
	REASON_NO_BACKEND,        /* dropped: the chosen slot was empty, twice */
	REASON_NO_SOURCE,         /* dropped: no address to masquerade with */
	REASON_NO_ROUTE,          /* dropped: no route to where the packet shall go */
	REASON_TTL,               /* answered with time exceeded */
	REASON_TOO_BIG,           /* answered with fragmentation needed */
	REASON_UNSENDABLE,        /* dropped: masqueraded, and only the stack could send it */
	REASON_FRAGMENT_ORPHAN,   /* dropped: later fragment, the first was not seen */
	REASON_FRAGMENT_PASSED,   /* later fragment of an unknown datagram, left to the stack */
	REASON_SCTP_PORT,         /* dropped: SCTP whose port would change */
	REASON_REWRITE,           /* dropped: the kernel refused a change to the packet */
	REASON_ICMP_TRANSLATED,   /* an ICMP error was translated with its flow */
	REASON_SOCKET_TRANSLATED, /* a socket call was translated */
	REASON_SOCKET_REFUSED,    /* a socket call failed: no endpoints */
	REASON_SOCKET_ASIDE,      /* left to the packet path, which knows the source */
	REASON_UNKNOWN_PORT,      /* rejected: a service's address, but no port of it */
	REASON_ECHO,              /* answered: a ping of a service's address */
	REASON_FORWARDED_XDP,     /* translated and sent on, before the stack saw it */
	REASON_MARTIAN,           /* dropped: a source that nobody can have */
	REASON_UNKNOWN_PROTOCOL,  /* dropped: to a service's address, and nothing it could serve */
	REASON_ANSWER_LIMITED,    /* dropped without an answer, since there were many */
	REASON_DOUBTFUL,          /* dropped: would end a connection, and is not its next segment */
	REASON_SOURCE_SHARE,      /* dropped: its source has too many half-open flows */
	REASONS,
};

#endif
