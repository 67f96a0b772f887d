/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Checksums of the Internet (RFC 1071), and what a change makes of one (RFC 1624). */
#ifndef NODEPROXY_CSUM_H
#define NODEPROXY_CSUM_H

#include "base.h"

/* Adds two unfolded checksums. */
static __always_inline __u32 csum_add(__u32 a, __u32 b)
{
	__u64 s = (__u64)a + b;

	return (__u32)s + (__u32)(s >> 32);
}

/* Adds the change of one 16-bit word to a checksum difference. */
static __always_inline __u32 csum_word(__u32 sum, __u16 from, __u16 to)
{
	return csum_add(sum, (__u32)(__u16)~from + to);
}

static __always_inline __u16 csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

#endif
