/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Latency percentiles in fixed memory: 8 buckets for each power of two of nanoseconds, so within 12.5 %. */
#ifndef CORE_HISTOGRAM_H
#define CORE_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_BUCKETS (64u * 8u)

struct histogram {
	uint64_t total;
	uint64_t buckets[HISTOGRAM_BUCKETS];
};

static inline void histogram_add(struct histogram *histogram, uint64_t nanoseconds)
{
	unsigned power, at;

	if (nanoseconds < 8) {
		at = (unsigned)nanoseconds;
	} else {
		power = 63u - (unsigned)__builtin_clzll(nanoseconds);
		at = power * 8 + (unsigned)(nanoseconds >> (power - 3) & 7);
	}
	histogram->buckets[at]++;
	histogram->total++;
}

/* The upper end of the bucket that the given share (per thousand) of samples does not exceed; 0 without samples. */
static inline uint64_t histogram_percentile(const struct histogram *histogram, unsigned per_thousand)
{
	uint64_t wanted = (histogram->total * per_thousand + 999) / 1000, seen = 0;

	for (unsigned at = 0; at < HISTOGRAM_BUCKETS && histogram->total > 0; at++) {
		seen += histogram->buckets[at];
		if (seen >= wanted && seen > 0)
			return at < 8 ? at : ((uint64_t)(8 + at % 8 + 1) << (at / 8 - 3)) - 1;
	}
	return 0;
}

#endif
