/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One anonymous mapping, cut into pages; a bit for each page says whether it is taken.
 *
 * A buffer is taken from the lowest run of free pages that is long enough. So small buffers crowd at the bottom, where
 * the same few pages are used over and over and stay in the processor's caches, memory above the high-water mark is
 * never touched, and long runs stay free above. The search begins at the lowest word of the map that may have a free
 * page, and goes word by word.
 *
 * The waiters' queue: whoever is first in it is served as soon as there is a run for it, and nobody passes it, so it is
 * served at the latest when all buffers have come back. A waiter that is granted memory may get, put, wait and cancel
 * from within granted(): while the queue is being served, another arena_put() only marks its pages free, and the loop
 * that is under way goes on.
 */
#include "io/arena.h"

#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define WORD_BITS ((size_t)64)

struct arena {
	uint8_t *memory;
	size_t page_count, pages_used;
	size_t word_hint; /* every word below is full */
	bool serving;
	struct list waiters; /* struct arena_waiter.link */
	uint64_t taken[];    /* a bit for each page */
};

static size_t bytes_to_pages(size_t bytes)
{
	return bytes / ARENA_PAGE_BYTES + (bytes % ARENA_PAGE_BYTES != 0);
}

/* Bits [first, first + count) of a word; count is 1 to 64. */
static uint64_t word_mask(size_t first, size_t count)
{
	uint64_t below = count < WORD_BITS ? (UINT64_C(1) << count) - 1 : UINT64_MAX;

	return below << first;
}

static void pages_mark(struct arena *arena, size_t first, size_t count, bool taken)
{
	while (count > 0) {
		size_t bit = first % WORD_BITS;
		size_t here = WORD_BITS - bit < count ? WORD_BITS - bit : count;
		uint64_t mask = word_mask(bit, here);
		uint64_t *word = &arena->taken[first / WORD_BITS];

		assert((*word & mask) == (taken ? 0 : mask));
		*word ^= mask;
		first += here;
		count -= here;
	}
}

/* The first page from `page` on whose bit is `taken`; `end` when there is none before it. */
static size_t page_next(const struct arena *arena, size_t page, size_t end, bool taken)
{
	uint64_t flip = taken ? 0 : UINT64_MAX;
	uint64_t from = UINT64_MAX << (page % WORD_BITS);

	for (size_t index = page / WORD_BITS; index * WORD_BITS < end; index++) {
		uint64_t word = (arena->taken[index] ^ flip) & from;

		if (word != 0) {
			page = index * WORD_BITS + (size_t)__builtin_ctzll(word);
			return page < end ? page : end;
		}
		from = UINT64_MAX;
	}
	return end;
}

/* Takes the lowest run of `count` free pages; NULL when there is none. */
static void *pages_take(struct arena *arena, size_t count)
{
	size_t first = page_next(arena, arena->word_hint * WORD_BITS, arena->page_count, false);

	arena->word_hint = first / WORD_BITS;
	while (count <= arena->page_count - first) {
		size_t end = page_next(arena, first, first + count, true);

		if (end == first + count) {
			pages_mark(arena, first, count, true);
			arena->pages_used += count;
			return arena->memory + first * ARENA_PAGE_BYTES;
		}
		first = page_next(arena, end, arena->page_count, false);
	}
	return NULL;
}

int arena_create(size_t bytes, struct arena **arena)
{
	size_t pages = bytes_to_pages(bytes);
	size_t words = pages / WORD_BITS + (pages % WORD_BITS != 0);
	struct arena *made;

	assert(pages > 0);
	made = calloc(1, sizeof(*made) + words * sizeof(made->taken[0]));
	if (!made)
		return -ENOMEM;
	made->memory = mmap(NULL, pages * ARENA_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (made->memory == MAP_FAILED) {
		free(made);
		return -ENOMEM;
	}
	made->page_count = pages;
	list_init(&made->waiters);
	*arena = made;
	return 0;
}

void arena_destroy(struct arena *arena)
{
	if (!arena)
		return;
	assert(arena->pages_used == 0 && list_is_empty(&arena->waiters));
	(void)munmap(arena->memory, arena->page_count * ARENA_PAGE_BYTES);
	free(arena);
}

void arena_touch(struct arena *arena)
{
	assert(arena->pages_used == 0);
	memset(arena->memory, 0, arena->page_count * ARENA_PAGE_BYTES);
}

size_t arena_bytes(const struct arena *arena)
{
	return arena->page_count * ARENA_PAGE_BYTES;
}

size_t arena_bytes_used(const struct arena *arena)
{
	return arena->pages_used * ARENA_PAGE_BYTES;
}

bool arena_is_wanted(const struct arena *arena)
{
	return !list_is_empty(&arena->waiters);
}

void *arena_get(struct arena *arena, size_t bytes)
{
	size_t pages = bytes_to_pages(bytes);

	assert(pages > 0 && pages <= arena->page_count);
	if (!list_is_empty(&arena->waiters))
		return NULL;
	return pages_take(arena, pages);
}

static void serve_waiters(struct arena *arena)
{
	if (arena->serving)
		return;
	arena->serving = true;
	while (!list_is_empty(&arena->waiters)) {
		struct arena_waiter *waiter = container_of(arena->waiters.next, struct arena_waiter, link);
		void *buffer = pages_take(arena, bytes_to_pages(waiter->bytes));

		if (!buffer)
			break;
		list_remove(&waiter->link);
		waiter->granted(waiter, buffer);
	}
	arena->serving = false;
}

void arena_put(struct arena *arena, void *buffer, size_t bytes)
{
	size_t offset = (size_t)((uint8_t *)buffer - arena->memory);
	size_t first = offset / ARENA_PAGE_BYTES;
	size_t pages = bytes_to_pages(bytes);

	assert((uint8_t *)buffer >= arena->memory && offset % ARENA_PAGE_BYTES == 0);
	assert(pages > 0 && first < arena->page_count && pages <= arena->page_count - first);
	pages_mark(arena, first, pages, false);
	arena->pages_used -= pages;
	if (first / WORD_BITS < arena->word_hint)
		arena->word_hint = first / WORD_BITS;
	serve_waiters(arena);
}

void arena_wait(struct arena *arena, struct arena_waiter *waiter)
{
	assert(waiter->bytes > 0 && bytes_to_pages(waiter->bytes) <= arena->page_count);
	list_append(&arena->waiters, &waiter->link);
}

void arena_cancel(struct arena *arena, struct arena_waiter *waiter)
{
	if (!waiter->link.next || list_is_empty(&waiter->link))
		return;
	list_remove(&waiter->link);
	serve_waiters(arena);
}
