/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which source a socket will have that is not bound to one. No helper looks up a route
 * for a socket call, so the addresses of its network namespace are looked at: where
 * all are the Pods', or none is, any route gives a source of that class.
 */
#ifndef NODEPROXY_SOCK_SOURCE_H
#define NODEPROXY_SOCK_SOURCE_H

#include "base.h"
#include "addr.h"
#include "maps.h"
#include "source.h"
#include "types.h"

/* So many interfaces of a namespace and addresses, taken together, are looked at. */
#define NETNS_STEPS 96

/* Of the kernel's own types only what is read here; offsets are found at load. */
struct list_head {
	struct list_head *next;
} __attribute__((preserve_access_index));

struct net {
	__u64 net_cookie;
	struct list_head dev_base_head;
} __attribute__((preserve_access_index));

struct nsproxy {
	struct net *net_ns;
} __attribute__((preserve_access_index));

struct task_struct {
	struct nsproxy *nsproxy;
} __attribute__((preserve_access_index));

struct in_ifaddr {
	struct in_ifaddr *ifa_next;
	__u32 ifa_local;
} __attribute__((preserve_access_index));

struct in_device {
	struct in_ifaddr *ifa_list;
} __attribute__((preserve_access_index));

struct inet6_ifaddr {
	struct in6_addr addr;
	struct list_head if_list;
} __attribute__((preserve_access_index));

struct inet6_dev {
	struct list_head addr_list;
} __attribute__((preserve_access_index));

struct net_device {
	struct list_head dev_list;
	struct in_device *ip_ptr;
	struct inet6_dev *ip6_ptr;
} __attribute__((preserve_access_index));

/* What is read of memory that was freed meanwhile is wrong, and does no harm. */
#define READ(to, from) bpf_probe_read_kernel(&(to), sizeof(to), &(from))

#define ENTRY(node, type, member) ((type *)((char *)(node)-bpf_core_field_offset(type, member)))

/* Bits: both for a namespace with addresses of both kinds. */
enum sources {
	SOURCES_UNKNOWN = 0,
	SOURCES_PODS = 1,
	SOURCES_OTHERS = 2,
	SOURCES_MIXED = 3,
};

static __always_inline __u32 kind_of(const struct addr *a)
{
	struct node *n = node_facts();

	/* Nothing beyond this host, or the link, is reached from these. */
	if (!n || is_loopback(a) || (!is_v4(a) && is_link_local(a)))
		return SOURCES_UNKNOWN;
	return in_pod_network(n, a) ? SOURCES_PODS : SOURCES_OTHERS;
}

struct walk {
	struct list_head *interfaces; /* the list's head */
	struct list_head *interface;  /* the next one */
	void *addresses;              /* IPv6: the head of the list of an interface */
	void *address;                /* the next one, or NULL */
	__u32 seen;
	bool v4;
	bool whole; /* nothing is left */
};

static __always_inline void step_v4(struct walk *w)
{
	struct in_ifaddr *ifa = w->address;
	struct addr a;
	__u32 v4 = 0;

	READ(v4, ifa->ifa_local);
	map_v4(&a, v4);
	w->seen |= kind_of(&a);
	READ(w->address, ifa->ifa_next);
}

static __always_inline void step_v6(struct walk *w)
{
	struct list_head *at = w->address;
	struct addr a = {};

	READ(a, ENTRY(at, struct inet6_ifaddr, if_list)->addr);
	w->seen |= kind_of(&a);
	READ(w->address, at->next);
	if (w->address == w->addresses)
		w->address = NULL;
}

/* Goes on to the addresses of the next interface. */
static __always_inline void step_interface(struct walk *w)
{
	struct net_device *dev = ENTRY(w->interface, struct net_device, dev_list);
	struct in_device *in = NULL;
	struct inet6_dev *in6 = NULL;

	READ(w->interface, w->interface->next);
	if (w->v4) {
		READ(in, dev->ip_ptr);
		if (in)
			READ(w->address, in->ifa_list);
		return;
	}
	READ(in6, dev->ip6_ptr);
	if (!in6)
		return;
	w->addresses = &in6->addr_list;
	READ(w->address, in6->addr_list.next);
	if (w->address == w->addresses)
		w->address = NULL;
}

/* 1 ends the walk. */
static int walk_step(__u32 i __attribute__((unused)), struct walk *w)
{
	if (w->seen == SOURCES_MIXED)
		return 1;
	if (w->address) {
		if (w->v4)
			step_v4(w);
		else
			step_v6(w);
		return 0;
	}
	if (!w->interface || w->interface == w->interfaces) {
		w->whole = w->interface;
		return 1;
	}
	step_interface(w);
	return 0;
}

/*
 * Of the network namespace with this cookie, which is the calling thread's as a rule.
 * What could not be looked at to the end counts as mixed.
 */
__noinline int sources_of_netns(__u64 cookie, bool v4)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct nsproxy *proxy = task->nsproxy;
	struct net *net;
	struct walk w;

	if (!proxy) /* of a thread that ends */
		return SOURCES_UNKNOWN;
	net = proxy->net_ns;
	if (!net || net->net_cookie != cookie)
		return SOURCES_UNKNOWN;
	/* All zero, which the verifier must not know: Linux 6.1 takes what a callback finds
	 * at its first step for what it finds at each. */
	bpf_probe_read_kernel(&w, sizeof(w), NULL);
	w.v4 = v4;
	w.interfaces = &net->dev_base_head;
	w.interface = net->dev_base_head.next;
	bpf_loop(NETNS_STEPS, walk_step, &w, 0);
	return w.whole ? (int)w.seen : SOURCES_MIXED;
}

#undef READ
#undef ENTRY

#endif
