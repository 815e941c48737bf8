/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The arena: buffers do not overlap, a full one makes wait, and the queue is served in its order. */
#include "io/arena.h"

#include <stdint.h>
#include <stdlib.h>

#include "tests/unit/unit.h"

#define PAGE ARENA_PAGE_BYTES
#define PAGES ((size_t)200)

static void test_get_and_put(struct arena *arena)
{
	uint8_t *one = arena_get(arena, 1), *two = arena_get(arena, PAGE + 1), *rest;

	check("buffers are page-aligned", one && two && (uintptr_t)one % PAGE == 0 && (uintptr_t)two % PAGE == 0);
	check("sizes are rounded up to pages",
	      arena_bytes(arena) == PAGES * PAGE && arena_bytes_used(arena) == 3 * PAGE);
	check("what is more than is left is not given", !arena_get(arena, (PAGES - 2) * PAGE));
	rest = arena_get(arena, (PAGES - 3) * PAGE);
	check("what is left is given", rest && arena_bytes_used(arena) == arena_bytes(arena));
	check("a full arena gives nothing", !arena_get(arena, 1));
	arena_put(arena, one, 1);
	check("what came back is given again", arena_get(arena, PAGE) == one);
	arena_put(arena, one, PAGE);
	arena_put(arena, rest, (PAGES - 3) * PAGE);
	arena_put(arena, two, PAGE + 1);
	check("all is back", arena_bytes_used(arena) == 0);
	one = arena_get(arena, PAGES * PAGE);
	check("and is one piece again", one != NULL);
	arena_put(arena, one, PAGES * PAGE);
}

static void test_fragments(struct arena *arena)
{
	void *pages[PAGES];
	void *three;
	bool all = true;

	for (size_t i = 0; i < PAGES; i++) {
		pages[i] = arena_get(arena, PAGE);
		all = all && pages[i];
	}
	for (size_t i = 0; i < PAGES; i += 2)
		arena_put(arena, pages[i], PAGE);
	check("single free pages are no room for two", all && !arena_get(arena, 2 * PAGE));
	arena_put(arena, pages[63], PAGE);
	three = arena_get(arena, 3 * PAGE);
	check("three neighbours across words of the map are room for three", three == pages[62]);
	arena_put(arena, three, 3 * PAGE);
	for (size_t i = 1; i < PAGES; i += 2)
		if (i != 63)
			arena_put(arena, pages[i], PAGE);
	check("all is back", arena_bytes_used(arena) == 0);
}

struct held {
	uint8_t *at;
	size_t bytes;
	uint8_t fill;
};

static bool held_is_intact(const struct held *held)
{
	for (size_t i = 0; i < held->bytes; i++)
		if (held->at[i] != held->fill)
			return false;
	return true;
}

/* Random gets and puts: every buffer keeps what was written into it. */
static void test_no_overlap(struct arena *arena)
{
	struct held held[64] = { { 0 } };
	uint32_t random = 12345;
	unsigned misses = 0, given = 0;

	for (unsigned round = 0; round < 20000; round++) {
		struct held *one;

		random = random * 1664525 + 1013904223;
		one = &held[(random >> 8) % 64];
		if (one->at) {
			misses += !held_is_intact(one);
			arena_put(arena, one->at, one->bytes);
			one->at = NULL;
			continue;
		}
		one->bytes = (random >> 16) % (12 * PAGE) + 1;
		one->fill = (uint8_t)round;
		one->at = arena_get(arena, one->bytes);
		if (!one->at)
			continue;
		given++;
		memset(one->at, one->fill, one->bytes);
	}
	for (unsigned i = 0; i < 64; i++)
		if (held[i].at)
			arena_put(arena, held[i].at, held[i].bytes);
	check("buffers never overlap", misses == 0 && given > 5000 && arena_bytes_used(arena) == 0);
}

struct waiting {
	struct arena_waiter waiter;
	struct arena *arena;
	void *buffer;
	unsigned order;
	unsigned *clock;
	bool puts_at_once;
	struct waiting *cancels;
};

static void granted(struct arena_waiter *waiter, void *buffer)
{
	struct waiting *mine = waiter->context;

	mine->buffer = buffer;
	mine->order = ++*mine->clock;
	if (mine->puts_at_once) {
		mine->buffer = NULL;
		arena_put(mine->arena, buffer, waiter->bytes);
	}
	if (mine->cancels)
		arena_cancel(mine->arena, &mine->cancels->waiter);
}

static void waiting_start(struct waiting *mine, struct arena *arena, size_t bytes, unsigned *clock)
{
	*mine = (struct waiting){ .arena = arena, .clock = clock };
	mine->waiter = (struct arena_waiter){ .bytes = bytes, .granted = granted, .context = mine };
	arena_wait(arena, &mine->waiter);
}

static void test_queue_order(struct arena *arena)
{
	uint8_t *low = arena_get(arena, 100 * PAGE), *high = arena_get(arena, 100 * PAGE);
	struct waiting large, small, last;
	unsigned clock = 0;

	waiting_start(&large, arena, 150 * PAGE, &clock);
	waiting_start(&small, arena, PAGE, &clock);
	waiting_start(&last, arena, 60 * PAGE, &clock);
	check("nobody is served without room", clock == 0 && arena_is_wanted(arena));
	arena_put(arena, low, 100 * PAGE);
	check("the small one does not overtake the large one", clock == 0 && !small.buffer);
	check("nor does one who doesn't wait", !arena_get(arena, PAGE));
	arena_put(arena, high, 100 * PAGE);
	check("with room for it the large one is served, then the small one", large.order == 1 && small.order == 2);
	check("the last one waits on", !last.buffer && arena_is_wanted(arena));
	arena_put(arena, large.buffer, 150 * PAGE);
	check("until its turn comes", last.order == 3 && last.buffer && !arena_is_wanted(arena));
	arena_put(arena, small.buffer, PAGE);
	arena_put(arena, last.buffer, 60 * PAGE);
	check("all is back", arena_bytes_used(arena) == 0);
}

static void test_cancel(struct arena *arena)
{
	uint8_t *low = arena_get(arena, 100 * PAGE), *high = arena_get(arena, 100 * PAGE);
	struct waiting large, small;
	struct arena_waiter never = { .bytes = 1 };
	unsigned clock = 0;

	waiting_start(&large, arena, 150 * PAGE, &clock);
	waiting_start(&small, arena, PAGE, &clock);
	arena_put(arena, low, 100 * PAGE);
	arena_cancel(arena, &large.waiter);
	check("whoever stood behind one that gives up is served", small.buffer && !large.buffer);
	arena_cancel(arena, &large.waiter);
	arena_cancel(arena, &never);
	check("cancelling twice, or one that never waited, is harmless", clock == 1);
	arena_put(arena, small.buffer, PAGE);
	arena_put(arena, high, 100 * PAGE);
	check("the one that gave up gets nothing", !large.buffer && arena_bytes_used(arena) == 0);
}

static void test_reentrancy(struct arena *arena)
{
	uint8_t *all = arena_get(arena, PAGES * PAGE);
	struct waiting waiting[4];
	unsigned clock = 0;

	for (unsigned i = 0; i < 4; i++)
		waiting_start(&waiting[i], arena, (PAGES - i) * PAGE, &clock);
	waiting[0].puts_at_once = true;
	waiting[1].puts_at_once = true;
	waiting[1].cancels = &waiting[2];
	arena_put(arena, all, PAGES * PAGE);
	check("granted() may put and cancel: the queue goes on behind it",
	      waiting[0].order == 1 && waiting[1].order == 2 && waiting[2].order == 0 && waiting[3].order == 3);
	arena_put(arena, waiting[3].buffer, (PAGES - 3) * PAGE);
	check("all is back", arena_bytes_used(arena) == 0);
}

static void test_sizes(void)
{
	static const size_t page_counts[] = { 1, 63, 64, 65, 128 };
	unsigned misses = 0;

	for (unsigned i = 0; i < sizeof(page_counts) / sizeof(page_counts[0]); i++) {
		size_t bytes = page_counts[i] * PAGE;
		struct arena *arena;
		void *buffer;

		if (arena_create(bytes, &arena) != 0) {
			misses++;
			continue;
		}
		buffer = arena_get(arena, bytes);
		misses += !buffer || arena_get(arena, 1);
		if (buffer) {
			memset(buffer, 1, bytes);
			arena_put(arena, buffer, bytes);
		}
		arena_destroy(arena);
	}
	check("an arena of any size gives all it has, and no more", misses == 0);
}

int main(void)
{
	struct arena *arena = NULL;

	check("an arena is made", arena_create(PAGES * PAGE - 5, &arena) == 0);
	if (!arena)
		return unit_done();
	test_get_and_put(arena);
	test_fragments(arena);
	test_no_overlap(arena);
	test_queue_order(arena);
	test_cancel(arena);
	test_reentrancy(arena);
	test_sizes();
	arena_destroy(arena);
	arena_destroy(NULL);
	return unit_done();
}
