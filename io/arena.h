/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Aligned buffers from a fixed piece of memory, taken at start: nothing on the data path allocates, and a full arena is
 * how backpressure begins. Buffers are page-aligned, contiguous, and a multiple of a page long; each has one owner.
 *
 * Who finds the arena full may wait in its queue: waiters are served first come, first served, and while anyone waits
 * nobody overtakes (arena_get() returns NULL), so a large request is not starved by small ones.
 */
#ifndef IO_ARENA_H
#define IO_ARENA_H

#include <stdbool.h>
#include <stddef.h>

#include "io/list.h"

#define ARENA_PAGE_BYTES ((size_t)4096)

struct arena;

struct arena_waiter {
	size_t bytes;
	/* Called from within arena_put() of somebody else; owns `buffer` (of at least `bytes`) from then on. */
	void (*granted)(struct arena_waiter *waiter, void *buffer);
	void *context;
	struct list link; /* private */
};

/* `bytes` is rounded up to pages. The memory is reserved now and touched when used. Returns 0 or -ENOMEM. */
__attribute__((warn_unused_result)) int arena_create(size_t bytes, struct arena **arena);
void arena_destroy(struct arena *arena); /* every buffer must be back */
void arena_touch(struct arena *arena);   /* all of it, now: no later use waits for memory. No buffer may be out */

size_t arena_bytes(const struct arena *arena);
size_t arena_bytes_used(const struct arena *arena);
bool arena_is_wanted(const struct arena *arena); /* somebody waits */

/* NULL when there is no room now, or somebody waits. `bytes` over the arena's size is the caller's mistake (assert). */
void *arena_get(struct arena *arena, size_t bytes);

/* `bytes` as it was asked for. Serves waiters as far as the room goes. */
void arena_put(struct arena *arena, void *buffer, size_t bytes);

/* Queues; granted() is called later, never from here. */
void arena_wait(struct arena *arena, struct arena_waiter *waiter);
void arena_cancel(struct arena *arena, struct arena_waiter *waiter); /* harmless when not waiting; may serve others */

#endif
