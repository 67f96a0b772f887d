/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What Go and the programs share. bpf2go turns these into Go types, so this is
 * the only place where a layout is written down. A change here is a new layout
 * version (layoutVersion in dataplane/ebpf/pin.go): pinned maps of the old one
 * cannot be opened.
 *
 * Byte order: "network" means as in the packet, "host" means a plain number.
 * No field is left to implicit padding, since padding would be part of keys.
 */
#ifndef NODEPROXY_TYPES_H
#define NODEPROXY_TYPES_H

#include "base.h"

/* An address of either family; IPv4 is mapped into ::ffff:0:0/96. */
struct addr {
	__u32 w[4]; /* network */
};

/* The five things that name a flow in one direction: the key of flows. */
struct tuple {
	struct addr src;
	struct addr dst;
	__u16 sport; /* network */
	__u16 dport; /* network */
	__u8 proto;  /* IPPROTO_* */
	__u8 pad[3];
};

/* A NodePort has the address ::ffff:0.0.0.0 or ::, and a range of ports the port 0. */
struct frontend_key {
	struct addr addr;
	__u16 port; /* network */
	__u8 proto;
	__u8 pad;
};

/* Sources are told apart in this order; it is that of service.Source. */
enum source { FROM_POD, FROM_NODE, FROM_OUTSIDE, SOURCES };

/* A route is a byte: an action, and two flags for ROUTE_TRANSLATE. */
enum route {
	ROUTE_TRANSLATE = 0,
	ROUTE_REJECT = 1,
	ROUTE_DROP = 2,
	ROUTE_ACTION = 3, /* mask */
	ROUTE_LOCAL = 4,  /* choose from the local list, not from the cluster's */
	ROUTE_MASQUERADE = 8,
};

enum frontend_flag {
	FRONTEND_FILTERED = 1, /* only sources in source_ranges may enter */
	FRONTEND_NODEPORT = 2,
	FRONTEND_AFFINITY = 4,
	FRONTEND_MAGLEV = 8, /* the flow's hash chooses the slot */
	/* For who reads the map: neither is a ClusterIP. */
	FRONTEND_EXTERNAL = 16,
	FRONTEND_BALANCER = 32,
	/* Of a test that Go runs: dropped, and neither counted nor told. */
	FRONTEND_PROBE = 64,
};

struct frontend {
	__u32 service;    /* host; index of services */
	__u32 generation; /* host; names the set of slots in backends */
	__u32 count[2];   /* host; slots of the cluster's list, then of the local one */
	__u32 affinity;   /* host; seconds */
	__u8 route[3];    /* enum route, by enum source */
	__u8 flags;       /* enum frontend_flag */
	__u16 first;      /* host; of a range of ports, else 0 */
	__u16 last;       /* host */
};

/*
 * The local list follows the cluster's: its first slot is count[0]. A backend
 * has as many slots as its weight. Those of FRONTEND_MAGLEV are of generation 0,
 * the one that is changed in place: a slot always has some backend.
 */
struct backend_key {
	__u32 service;    /* host */
	__u32 generation; /* host */
	__u32 slot;       /* host */
};

struct backend {
	struct addr addr;
	__u16 port; /* network; 0: the port that was dialled */
	__u8 flags; /* enum backend_flag */
	__u8 pad;
};

enum backend_flag {
	BACKEND_LOCAL = 1, /* runs on this node */
};

/* What an endpoint is to a service, whatever its slot is at the moment. */
struct member_key {
	struct addr addr;
	__u32 service; /* host */
	__u16 port;    /* network */
	__u16 pad;
};

enum member {
	MEMBER_CLUSTER = 1, /* in the cluster's list */
	MEMBER_LOCAL = 2,   /* in the local list */
	MEMBER_SERVING = 4, /* its established flows are left alone */
	MEMBER_HERE = 8,    /* it serves, and runs on this node */
};

/* The epoch changes with the members of a service, and with the routes to them. */
struct service {
	__u32 epoch; /* host */
};

struct affinity_key {
	struct addr client;
	__u32 service; /* host */
};

struct affinity {
	struct addr addr;
	__u16 port; /* network */
	__u16 pad[3];
	__u64 seen; /* host; ns of CLOCK_MONOTONIC */
};

/* Key of source_ranges: the first 32 bits are always compared. */
struct range_key {
	__u32 prefixlen; /* host; 32 + 96 + bits, or 32 + bits for IPv6 */
	__u32 service;   /* host */
	struct addr addr;
};

/* What an address is to this node. */
enum address_flag {
	ADDRESS_LOCAL = 1,      /* an address of this node */
	ADDRESS_NODEPORT = 2,   /* carries node ports */
	ADDRESS_VIP = 4,        /* some frontend's address */
	ADDRESS_CLUSTER_IP = 8, /* some service's ClusterIP: no machine has it */
};

/* Who has a port number: bit by protocol for service addresses, then the same for
 * node ports, and for backends. Port 0 stands for all that are in some range. */
enum port_flag {
	PORT_TCP = 1,
	PORT_UDP = 2,
	PORT_SCTP = 4,
	PORT_NODEPORT_SHIFT = 3,
	PORT_BACKEND_SHIFT = 6,
};

struct interface {
	struct addr masquerade[2]; /* by family: source towards this interface; zero if none */
	__u32 flags;               /* enum interface_flag */
	__u8 mac[6];               /* of this host here: at a bridge's port, the bridge's */
	__u8 pad[2];
};

enum interface_flag {
	INTERFACE_POD4 = 1, /* IPv4 packets that arrive here come from a Pod */
	INTERFACE_POD6 = 2,
	INTERFACE_PEER = 4,  /* a veth whose other end is in another namespace */
	INTERFACE_PORT = 16, /* of a bridge */
	INTERFACE_XDP = 8,   /* an uplink with a program at XDP: sends frames of others too */
};

enum node_flag {
	NODE_DETECTS4 = 1, /* IPv4 packets of Pods can be told from others */
	NODE_DETECTS6 = 2,
	NODE_CIDR4 = 4, /* ... by their source address */
	NODE_CIDR6 = 8,
	NODE_LOOPBACK4 = 16, /* node ports answer on 127.0.0.0/8 */
	NODE_LOOPBACK6 = 32,
	NODE_PASS_UNKNOWN = 64, /* TCP without a flow is left to the stack, not reset */
	NODE_STACK = 128,       /* no packet passes the stack by */
	NODE_OTHERS_NAT = 256,  /* other programs have rules of NAT for what leaves the node */
};

/* The facts of this node; one element. */
struct node {
	struct addr pods[2]; /* by family: the Pods' network */
	struct addr pods_mask[2];
	struct addr address[2]; /* by family: this node's first address, zero if none */
	__u32 flags;            /* enum node_flag */
};

/* So many half-open flows are known that can make room for others. */
#define HALF_OPEN_SLOTS 16384

/* What a source has half-open. */
struct source_use {
	__u32 window;    /* of SHARE_SECONDS */
	__s32 half_open; /* less than 0 where two CPUs gave one back at once */
};

struct fragment_key {
	struct addr src;
	struct addr dst;
	__u32 id; /* network */
	__u8 proto;
	__u8 pad[3];
};

struct fragment {
	__u16 sport; /* network */
	__u16 dport; /* network */
};

/* One destination that a socket was translated for. */
struct translation {
	struct addr asked; /* what the application named */
	struct addr backend;
	__u16 asked_port;   /* network */
	__u16 backend_port; /* network */
	__u32 service;      /* host */
	__u32 epoch;        /* host */
};

/* An unconnected UDP socket may talk to this many destinations at a time. */
#define SOCKET_TRANSLATIONS 8

struct socket {
	struct translation last[SOCKET_TRANSLATIONS];
	__u32 next; /* host; which one is overwritten next */
	__u32 peer; /* host; 1 + the one that connect chose, 0 without */
};

/* A connected socket whose backend is gone: what the list_gone programs write. */
struct gone {
	struct addr src;
	struct addr dst;
	__u16 sport;  /* network */
	__u16 dport;  /* network */
	__u32 proto;  /* host */
	__u64 cookie; /* of the socket */
};

_Static_assert(sizeof(struct addr) == 16, "addr");
_Static_assert(sizeof(struct tuple) == 40, "tuple");
_Static_assert(sizeof(struct frontend_key) == 20, "frontend_key");
_Static_assert(sizeof(struct frontend) == 28, "frontend");
_Static_assert(sizeof(struct backend_key) == 12, "backend_key");
_Static_assert(sizeof(struct backend) == 20, "backend");
_Static_assert(sizeof(struct member_key) == 24, "member_key");
_Static_assert(sizeof(struct affinity_key) == 20, "affinity_key");
_Static_assert(sizeof(struct affinity) == 32, "affinity");
_Static_assert(sizeof(struct range_key) == 24, "range_key");
_Static_assert(sizeof(struct interface) == 44, "interface");
_Static_assert(sizeof(struct node) == 100, "node");
_Static_assert(sizeof(struct fragment_key) == 40, "fragment_key");
_Static_assert(sizeof(struct translation) == 44, "translation");
_Static_assert(sizeof(struct socket) == 360, "socket");
_Static_assert(sizeof(struct gone) == 48, "gone");

/* What skb->priority is between the programs and netfilter's hook PREROUTING. */
enum packet_priority {
	PRIORITY_SERVICE = 0x6e706b74, /* of a Service's flow: dropped if it is invalid */
	PRIORITY_NO_ROOM,              /* conntrack was full: dropped */
};

#endif
