/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where one packet's work is done. */
#ifndef NODEPROXY_SCRATCH_H
#define NODEPROXY_SCRATCH_H

#include "base.h"
#include "flow_types.h"
#include "packet.h"
#include "types.h"

/* Of conntrack's functions: what is asked, and what went wrong. Later kernels take
 * this form of 6.1 too. */
struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

/* What an error quotes. */
struct quote {
	struct tuple t;
	__u32 l3, l4; /* offsets */
	__u16 check;  /* of UDP */
};

/*
 * What one packet needs besides its bytes. Too large for the stack, so it is
 * one element per CPU: programs at tc run with bottom halves off, and never
 * inside each other.
 */
struct work {
	struct packet p;
	struct tuple to;   /* what the packet becomes */
	struct tuple peer; /* key of the other half */
	struct flow flow;  /* a half about to be inserted */
	struct frontend_key key;
	struct frontend fe;
	struct backend be;
	struct bpf_fib_lookup fib;
	struct bpf_sock_tuple sock;
	struct bpf_ct_opts ct;
	struct fragment_key fragment;
	struct addr source;  /* that a route gives */
	struct tuple victim; /* of make_room */
	__u32 room;          /* 1 + the slot where that was noted; 0 if nothing made room */
	__u32 ct_status;     /* of the entry that find_tracked found */
	__u8 ct_state;       /* of TCP */
	struct quote quote;  /* in the ICMP error at hand */
	struct tuple inner;  /* what it becomes */
	__u32 quoted[32];    /* by an ICMP error that is made here */
	__u32 dst_flags;     /* of p.t.dst, once read_frontend was asked */
	bool known;          /* the packet may have a flow */
	bool egress;         /* at egress, where only what this host sends is looked at */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, sizeof(struct work)); /* no type: Go has no use for it */
	__uint(max_entries, 1);
} scratch SEC(".maps");

static __always_inline struct work *get_work(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

/*
 * The same, for a global function that was given it and uses parts of it as keys of maps:
 * Linux 6.1 takes no argument of such a function for one.
 */
static __always_inline struct work *own_work(const struct work *given)
{
	return given ? get_work() : NULL;
}

#endif
