/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unit tests speak TAP: check("what holds", condition) prints a line; end with `return unit_done();`.
 * A test of many cases in a loop counts its misses and checks once that there were none.
 */
#ifndef TESTS_UNIT_H
#define TESTS_UNIT_H

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static unsigned unit_count, unit_failed;

static inline void unit_check(bool ok, const char *text, const char *file, int line)
{
	unit_count++;
	printf("%sok %u - %s\n", ok ? "" : "not ", unit_count, text);
	if (!ok) {
		unit_failed++;
		printf("# %s:%d\n", file, line);
	}
	(void)fflush(stdout);
}

#define check(text, condition) unit_check((condition), (text), __FILE__, __LINE__)

static inline int unit_done(void)
{
	printf("1..%u\n", unit_count);
	return unit_failed == 0 ? 0 : 1;
}

#endif
