/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Connections that the kernel's conntrack owns: the programs make the entry with
 * its translation, netfilter translates every packet of it. docs/design/flows.md
 * has the states and the steps. The functions are those of net/netfilter/
 * nf_conntrack_bpf.c and nf_nat_bpf.c (Linux 6.1).
 */
#ifndef NODEPROXY_CT_H
#define NODEPROXY_CT_H

#include "base.h"
#include "addr.h"
#include "config.h"
#include "scratch.h"
#include "sklookup.h"
#include "types.h"

/* Of the kernel's own types only what is read here; offsets are found at load. */
union nf_inet_addr {
	__u32 all[4]; /* network; IPv4 in the first */
};

union nf_conntrack_man_proto {
	__be16 all;
};

struct nf_conntrack_man {
	union nf_inet_addr u3;
	union nf_conntrack_man_proto u;
} __attribute__((preserve_access_index));

struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
	struct {
		union nf_inet_addr u3;
		union {
			__be16 all;
		} u;
	} dst;
} __attribute__((preserve_access_index));

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
} __attribute__((preserve_access_index));

struct ip_ct_tcp {
	__u8 state;
} __attribute__((preserve_access_index));

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
} __attribute__((preserve_access_index));

struct nf_conn {
	struct nf_conntrack_tuple_hash tuplehash[2];
	unsigned long status;
	union nf_conntrack_proto proto;
} __attribute__((preserve_access_index));

struct nf_conn___init {
	struct nf_conn ct;
} __attribute__((preserve_access_index));

enum nf_nat_manip_type { NF_NAT_MANIP_SRC, NF_NAT_MANIP_DST };

#define CT_NETNS_OF_DEVICE (-1) /* BPF_F_CURRENT_NETNS */

/* Bits of nf_conn.status (linux/netfilter/nf_conntrack_common.h). */
#define IPS_SEEN_REPLY 2
#define IPS_ASSURED 4
#define IPS_DST_NAT 32
#define IPS_DYING 512

/* States of ip_ct_tcp (linux/netfilter/nf_conntrack_tcp.h). */
#define CT_TCP_ESTABLISHED 3
#define CT_TCP_TIME_WAIT 7
#define CT_TCP_CLOSE 8

struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *, struct bpf_sock_tuple *, __u32,
				  struct bpf_ct_opts *, __u32)
__weak __ksym;
struct nf_conn___init *bpf_skb_ct_alloc(struct __sk_buff *, struct bpf_sock_tuple *, __u32,
					struct bpf_ct_opts *, __u32)
__weak __ksym;
struct nf_conn *bpf_ct_insert_entry(struct nf_conn___init *) __weak __ksym;
void bpf_ct_release(struct nf_conn *) __weak __ksym;
void bpf_ct_set_timeout(struct nf_conn___init *, __u32) __weak __ksym;
int bpf_ct_change_timeout(struct nf_conn *, __u32)
__weak __ksym;
int bpf_ct_set_nat_info(struct nf_conn___init *, union nf_inet_addr *, int,
			enum nf_nat_manip_type) __weak __ksym;

/* What conntrack has at a packet's tuple. */
enum tracked {
	TRACKED_NONE,   /* nothing */
	TRACKED_OPEN,   /* translated, from client to backend; w->to has the translation */
	TRACKED_CLOSED, /* the same, but a SYN may begin a new connection */
	TRACKED_HALF,   /* not translated, and not answered, or closed */
	TRACKED_REPLY,  /* translated, from backend to client; w->to has the translation */
	TRACKED_OTHERS, /* not translated and answered, or an answer itself */
};

/* How often an entry is tried to be made: two CPUs can choose one source port. */
#define CT_TRIES 4

/* Until netfilter sees the packet and sets its own. */
#define CT_TIMEOUT_MS 30000

/* writes w->sock, w->ct */
static __always_inline void fill_ct_question(struct work *w, const struct tuple *t)
{
	ask_socket(w, &t->src, t->sport, &t->dst, t->dport);
	w->ct.netns_id = CT_NETNS_OF_DEVICE;
	w->ct.error = 0;
	w->ct.l4proto = t->proto;
	w->ct.dir = 0;
	w->ct.reserved[0] = 0;
	w->ct.reserved[1] = 0;
}

/* The sizes are constants, as the verifier wants them to be.
 * reads w->p.v4, w->sock; writes w->ct */
static __always_inline struct nf_conn *ct_lookup(struct __sk_buff *skb, struct work *w)
{
	if (w->p.v4)
		return bpf_skb_ct_lookup(skb, &w->sock, sizeof(w->sock.ipv4), &w->ct,
					 sizeof(w->ct));
	return bpf_skb_ct_lookup(skb, &w->sock, sizeof(w->sock.ipv6), &w->ct, sizeof(w->ct));
}

static __always_inline struct nf_conn___init *ct_alloc(struct __sk_buff *skb, struct work *w)
{
	if (w->p.v4)
		return bpf_skb_ct_alloc(skb, &w->sock, sizeof(w->sock.ipv4), &w->ct, sizeof(w->ct));
	return bpf_skb_ct_alloc(skb, &w->sock, sizeof(w->sock.ipv6), &w->ct, sizeof(w->ct));
}

static __always_inline void read_ct_addr(struct addr *a, const union nf_inet_addr *from, bool v4)
{
	if (v4) {
		map_v4(a, from->all[0]);
		return;
	}
	a->w[0] = from->all[0];
	a->w[1] = from->all[1];
	a->w[2] = from->all[2];
	a->w[3] = from->all[3];
}

/* What packets of a direction become: the other direction's tuple, read backwards.
 * writes w->to */
static __always_inline void read_ct_translation(struct work *w, const struct nf_conn *c, __u8 dir)
{
	const struct nf_conntrack_tuple *other =
	    dir ? &c->tuplehash[0].tuple : &c->tuplehash[1].tuple;

	read_ct_addr(&w->to.src, &other->dst.u3, w->p.v4);
	read_ct_addr(&w->to.dst, &other->src.u3, w->p.v4);
	w->to.sport = other->dst.u.all;
	w->to.dport = other->src.u.all;
	w->to.proto = w->ct.l4proto;
	w->to.pad[0] = 0;
	w->to.pad[1] = 0;
	w->to.pad[2] = 0;
}

/* Whether new flows like t are conntrack's: its functions for programs know TCP
 * and UDP. */
static __always_inline bool is_tracked(const struct tuple *t)
{
	return has_conntrack && (t->proto == IPPROTO_TCP || t->proto == IPPROTO_UDP);
}

/*
 * Asks conntrack for a tuple of the packet's family.
 * writes w->sock, w->ct, w->to
 */
__noinline int find_tracked(struct __sk_buff *skb, struct work *w, const struct tuple *t)
{
	enum tracked found = TRACKED_OTHERS;
	bool closed = false;
	struct nf_conn *c;

	if (!w || !t)
		return TRACKED_NONE;
	fill_ct_question(w, t);
	c = ct_lookup(skb, w);
	if (!c)
		return TRACKED_NONE;
	w->ct_status = c->status;
	w->ct_state = c->proto.tcp.state;
	if (t->proto == IPPROTO_TCP)
		closed = w->ct_state == CT_TCP_TIME_WAIT || w->ct_state == CT_TCP_CLOSE;
	if (w->ct_status & IPS_DST_NAT) {
		read_ct_translation(w, c, w->ct.dir);
		found = w->ct.dir ? TRACKED_REPLY : closed ? TRACKED_CLOSED : TRACKED_OPEN;
	} else if (w->ct.dir == 0 && (closed || !(w->ct_status & IPS_SEEN_REPLY))) {
		found = TRACKED_HALF;
	}
	bpf_ct_release(c);
	return found;
}

/*
 * Ends the entry at a tuple of the packet's family: it has no time left, and the second
 * lookup takes it out of the table.
 * writes w->sock, w->ct
 */
__noinline int expire_tracked(struct __sk_buff *skb, struct work *w, const struct tuple *t)
{
	struct nf_conn *c;

	if (!w || !t)
		return 0;
	fill_ct_question(w, t);
	c = ct_lookup(skb, w);
	if (!c)
		return 0;
	bpf_ct_change_timeout(c, 0);
	bpf_ct_release(c);
	c = ct_lookup(skb, w);
	if (c)
		bpf_ct_release(c);
	return 0;
}

/* Gives the entry at the packet's tuple, of either direction, so many milliseconds
 * from now. reads w->p; writes w->sock, w->ct */
__noinline int shorten_tracked(struct __sk_buff *skb, struct work *w, __u32 ms)
{
	struct nf_conn *c;

	if (!w)
		return 0;
	fill_ct_question(w, &w->p.t);
	c = ct_lookup(skb, w);
	if (!c)
		return 0;
	bpf_ct_change_timeout(c, ms);
	bpf_ct_release(c);
	return 0;
}

static __always_inline void write_ct_addr(union nf_inet_addr *to, const struct addr *a, bool v4)
{
	to->all[0] = v4 ? a->w[3] : a->w[0];
	to->all[1] = v4 ? 0 : a->w[1];
	to->all[2] = v4 ? 0 : a->w[2];
	to->all[3] = v4 ? 0 : a->w[3];
}

enum make { MAKE_DONE, MAKE_LOST, MAKE_FULL, MAKE_TAKEN };

/*
 * One try to make the entry p.t -> w->to. The source is always mapped, if only to
 * itself: without that a clash of the reply's tuple is not resolved. Port 0 leaves
 * the choice to the kernel, which keeps the client's where it is free.
 * MAKE_LOST: another CPU has made it; w->to is then the winner's.
 */
__noinline int try_track(struct __sk_buff *skb, struct work *w, __u32 sport)
{
	union nf_inet_addr a;
	struct nf_conn___init *fresh;
	struct nf_conn *c;

	if (!w)
		return MAKE_FULL;
	fill_ct_question(w, &w->p.t);
	fresh = ct_alloc(skb, w);
	if (!fresh)
		return MAKE_FULL;
	write_ct_addr(&a, &w->to.dst, w->p.v4);
	bpf_ct_set_nat_info(fresh, &a, bpf_ntohs(w->to.dport), NF_NAT_MANIP_DST);
	write_ct_addr(&a, &w->to.src, w->p.v4);
	bpf_ct_set_nat_info(fresh, &a, sport, NF_NAT_MANIP_SRC);
	bpf_ct_set_timeout(fresh, CT_TIMEOUT_MS);
	c = bpf_ct_insert_entry(fresh);
	if (c) {
		read_ct_translation(w, c, 0);
		bpf_ct_release(c);
		return MAKE_DONE;
	}
	c = ct_lookup(skb, w);
	if (!c)
		return MAKE_TAKEN;
	read_ct_translation(w, c, w->ct.dir);
	bpf_ct_release(c);
	return MAKE_LOST;
}

#endif
