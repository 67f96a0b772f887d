/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Settings: constants to the verifier, set by Go before loading. */
#ifndef NODEPROXY_CONFIG_H
#define NODEPROXY_CONFIG_H

#include "base.h"
#include "flow_types.h"
#include "reason.h"
#include "stats.h"
#include "types.h"

/* Masquerade source ports, host order, both ends included. */
volatile const __u16 nat_port_min = 61000;
volatile const __u16 nat_port_max = 65535;
/* How many of them are tried for one flow before it is refused. */
volatile const __u32 nat_port_tries = 256;
/* Used when those are taken, both ends included; 0: none. */
volatile const __u16 nat_spare_min = 0;
volatile const __u16 nat_spare_max = 0;

/* Cookie of the node's network namespace: sockets elsewhere are Pods' or strangers'. */
volatile const __u64 host_netns = 0;

/* BPF_FIB_LOOKUP_SKIP_NEIGH where the kernel has it (6.3): one lookup less. */
volatile const __u32 fib_flags = 0;

/* BPF_FIB_LOOKUP_SRC where the kernel has it (6.7): the source that a route gives. */
volatile const __u32 fib_source = 0;

/* The kernel has conntrack's functions for programs (6.1), and they are in use. */
volatile const bool has_conntrack = false;

/* BPF_F_IPV6 where the kernel has it (6.16): see rewrite() in rewrite.h. */
volatile const __u64 csum_ipv6 = 0;

/* Go straight into a Pod's namespace. It passes by whatever is attached to
 * egress of the Pod's interface on the node, so it is a setting. */
volatile const bool redirect_peer = false;

/* Sockets are translated only where this is set: "packets only" clears it. */
volatile const bool translate_sockets = true;

/* The program at XDP runs at the stack's imitation of that hook. */
volatile const bool xdp_generic = false;

/* Pings of addresses that only services have are answered, not refused. */
volatile const bool ping_services = false;

/* Only types that a variable has are in the object's type information. This one
 * is there to give Go these. */
volatile const union {
	enum source source;
	enum route route;
	enum frontend_flag frontend;
	enum backend_flag backend;
	enum member member;
	enum flow_flag flow;
	enum flow_tcp tcp;
	enum address_flag address;
	enum port_flag port;
	enum interface_flag interface;
	enum node_flag node;
	enum filter_state filter;
	enum reason reason;
	enum packet_priority priority;
	struct gone gone;
	struct event event;
} types = {0};

#endif
