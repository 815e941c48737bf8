/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The event loop: file descriptors by epoll, timers, and hooks that run at the end of every turn. One thread runs it and
 * everything called from it; nothing here is thread-safe.
 */
#ifndef IO_LOOP_H
#define IO_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "io/list.h"

struct loop;

/* A file descriptor under watch. The caller owns the structure, and the descriptor; it fills in fd, ready, context. */
struct loop_source {
	int fd;
	void (*ready)(struct loop_source *source, uint32_t events); /* EPOLLIN, EPOLLOUT, EPOLLHUP, EPOLLERR, ... */
	void *context;
	bool added; /* private */
};

struct loop_timer {
	void (*expired)(struct loop_timer *timer);
	void *context;
	uint64_t due_ns;  /* private */
	struct list link; /* private */
};

/* Called once at the end of each turn, in the order they were added: where work of one turn is gathered and sent. */
struct loop_hook {
	void (*turn_end)(struct loop_hook *hook);
	void *context;
	struct list link; /* private */
};

/* Returns 0, -ENOMEM or epoll_create1's errors. */
__attribute__((warn_unused_result)) int loop_create(struct loop **loop);
void loop_destroy(struct loop *loop);

/* CLOCK_MONOTONIC, read once a turn: nanoseconds. */
uint64_t loop_now_ns(const struct loop *loop);
uint64_t loop_clock_ns(void); /* the same, read now: where a turn may have been long */

/* Watches source->fd for `events` (level-triggered). Returns 0 or epoll_ctl's errors. */
__attribute__((warn_unused_result)) int loop_add(struct loop *loop, struct loop_source *source, uint32_t events);
__attribute__((warn_unused_result)) int loop_modify(struct loop *loop, struct loop_source *source, uint32_t events);

/*
 * Stops watching. Call it before closing the descriptor. Safe from any callback, for any source: events already fetched
 * for it in this turn are not delivered, and the source's memory may be freed at once. Harmless when not added.
 */
void loop_remove(struct loop *loop, struct loop_source *source);

/* Initialise before first use; set again to move; a timer fires once. */
void loop_timer_init(struct loop_timer *timer, void (*expired)(struct loop_timer *timer), void *context);
void loop_timer_set(struct loop *loop, struct loop_timer *timer, uint64_t due_ns);
void loop_timer_cancel(struct loop_timer *timer);
/* Whether timers are kept to the microsecond or so; else to the millisecond, rounded up. Known after a first wait. */
bool loop_is_fine(const struct loop *loop);

void loop_hook_add(struct loop *loop, struct loop_hook *hook);
void loop_hook_remove(struct loop_hook *hook);

/* Runs turns until loop_stop(). Returns 0 or epoll_pwait2's errors (not EINTR). */
__attribute__((warn_unused_result)) int loop_run(struct loop *loop);

/* One turn: waits at most `timeout_ms` (-1: for ever; 0: not at all) for an event. Hooks run in any case. */
__attribute__((warn_unused_result)) int loop_turn(struct loop *loop, int timeout_ms);
void loop_stop(struct loop *loop);

#endif
