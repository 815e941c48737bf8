/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The event loop. A turn:
 *
 *	wait ──> read the clock ──> timers that are due ──> sources that are ready ──> hooks
 *	  ^                                                                              │
 *	  └──────────────────────────────────────────────────────────────────────────────┘
 *
 * Callbacks may add, remove and free anything, themselves included. What makes that safe:
 * - Sources: the events of one wait lie in the loop; loop_remove() strikes out those of its source that are still to be
 *   delivered. So no serial numbers and no look-up are needed, and memory that is used again at once does no harm.
 * - Timers: those that are due are first moved to a list of their own, so a timer that sets itself again waits for the
 *   next turn. They are taken off that list one at a time, and cancelling takes a timer off whatever list it is on.
 * - Hooks: a marker travels through the list, so the hook that runs, its neighbours and all others may go.
 *
 * Timers are kept in the order they are due. There are few of them, and most are set for later than all others, so the
 * place is looked for from the end.
 */
#include "io/loop.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_PER_TURN_MAX 64

struct loop {
	int epoll_fd;
	bool stopping;
	bool in_turn;
	bool coarse; /* the kernel's waits are in milliseconds */
	uint64_t now_ns;
	struct list timers; /* struct loop_timer.link, by due_ns */
	struct list hooks;  /* struct loop_hook.link, and the marker during a turn */
	struct list hook_marker;
	struct epoll_event events[EVENTS_PER_TURN_MAX]; /* of this turn; data.ptr is NULL for what was struck out */
	int event_next, event_count;
};

uint64_t loop_clock_ns(void)
{
	struct timespec now;
	int result = clock_gettime(CLOCK_MONOTONIC, &now);

	assert(result == 0);
	(void)result;
	return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

int loop_create(struct loop **loop)
{
	struct loop *made = calloc(1, sizeof(*made));

	if (!made)
		return -ENOMEM;
	made->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (made->epoll_fd < 0) {
		int error = -errno;

		free(made);
		return error;
	}
	list_init(&made->timers);
	list_init(&made->hooks);
	list_init(&made->hook_marker);
	made->now_ns = loop_clock_ns();
	*loop = made;
	return 0;
}

void loop_destroy(struct loop *loop)
{
	if (!loop)
		return;
	assert(!loop->in_turn);
	while (list_pop(&loop->timers))
		;
	while (list_pop(&loop->hooks))
		;
	(void)close(loop->epoll_fd);
	free(loop);
}

uint64_t loop_now_ns(const struct loop *loop)
{
	return loop->now_ns;
}

static int source_control(struct loop *loop, struct loop_source *source, int operation, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = source };

	return epoll_ctl(loop->epoll_fd, operation, source->fd, &event) == 0 ? 0 : -errno;
}

int loop_add(struct loop *loop, struct loop_source *source, uint32_t events)
{
	int error = source_control(loop, source, EPOLL_CTL_ADD, events);

	if (error == 0)
		source->added = true;
	return error;
}

int loop_modify(struct loop *loop, struct loop_source *source, uint32_t events)
{
	assert(source->added);
	return source_control(loop, source, EPOLL_CTL_MOD, events);
}

void loop_remove(struct loop *loop, struct loop_source *source)
{
	if (!source->added)
		return;
	source->added = false;
	(void)source_control(loop, source, EPOLL_CTL_DEL, 0);
	for (int i = loop->event_next; i < loop->event_count; i++)
		if (loop->events[i].data.ptr == source)
			loop->events[i].data.ptr = NULL;
}

void loop_timer_init(struct loop_timer *timer, void (*expired)(struct loop_timer *timer), void *context)
{
	timer->expired = expired;
	timer->context = context;
	timer->due_ns = 0;
	list_init(&timer->link);
}

void loop_timer_set(struct loop *loop, struct loop_timer *timer, uint64_t due_ns)
{
	struct list *before;

	list_remove(&timer->link);
	before = loop->timers.previous;
	while (before != &loop->timers && container_of(before, struct loop_timer, link)->due_ns > due_ns)
		before = before->previous;
	timer->due_ns = due_ns;
	list_append(before->next, &timer->link);
}

void loop_timer_cancel(struct loop_timer *timer)
{
	list_remove(&timer->link);
}

void loop_hook_add(struct loop *loop, struct loop_hook *hook)
{
	list_append(&loop->hooks, &hook->link);
}

void loop_hook_remove(struct loop_hook *hook)
{
	list_remove(&hook->link);
}

/* The wait until the first timer, or `timeout_ms` where that is shorter: nanoseconds; UINT64_MAX: for ever. */
static uint64_t wait_ns(const struct loop *loop, int timeout_ms)
{
	uint64_t limit_ns = timeout_ms < 0 ? UINT64_MAX : (uint64_t)timeout_ms * 1000000, due_ns, now_ns;

	if (limit_ns == 0 || list_is_empty(&loop->timers))
		return limit_ns;
	due_ns = container_of(loop->timers.next, struct loop_timer, link)->due_ns;
	if (due_ns <= loop->now_ns)
		return 0;
	now_ns = loop_clock_ns();
	if (due_ns <= now_ns)
		return 0;
	return due_ns - now_ns < limit_ns ? due_ns - now_ns : limit_ns;
}

/* epoll_wait() knows milliseconds only. Kernels before 5.11 know nothing else; sandboxes of their time say EPERM. */
static int wait_for_events(struct loop *loop, uint64_t limit_ns)
{
	struct timespec limit = { (time_t)(limit_ns / 1000000000), (long)(limit_ns % 1000000000) };
	uint64_t limit_ms = limit_ns / 1000000 + (limit_ns % 1000000 > 0);
	int count;

	if (!loop->coarse) {
		count = epoll_pwait2(loop->epoll_fd, loop->events, EVENTS_PER_TURN_MAX,
				     limit_ns == UINT64_MAX ? NULL : &limit, NULL);
		if (count >= 0 || (errno != ENOSYS && errno != EPERM))
			return count;
		loop->coarse = true;
	}
	return epoll_wait(loop->epoll_fd, loop->events, EVENTS_PER_TURN_MAX,
			  limit_ns == UINT64_MAX ? -1 : limit_ms > INT_MAX ? INT_MAX : (int)limit_ms);
}

bool loop_is_fine(const struct loop *loop)
{
	return !loop->coarse;
}

static void run_timers(struct loop *loop)
{
	struct list due;
	struct list *link;

	list_init(&due);
	while (!list_is_empty(&loop->timers)) {
		link = loop->timers.next;
		if (container_of(link, struct loop_timer, link)->due_ns > loop->now_ns)
			break;
		list_remove(link);
		list_append(&due, link);
	}
	while ((link = list_pop(&due)) != NULL) {
		struct loop_timer *timer = container_of(link, struct loop_timer, link);

		timer->expired(timer);
	}
}

static void run_sources(struct loop *loop)
{
	while (loop->event_next < loop->event_count) {
		const struct epoll_event *event = &loop->events[loop->event_next++];
		struct loop_source *source = event->data.ptr;

		if (source)
			source->ready(source, event->events);
	}
	loop->event_count = 0;
	loop->event_next = 0;
}

static void run_hooks(struct loop *loop)
{
	struct list *marker = &loop->hook_marker;

	list_append(loop->hooks.next, marker);
	while (marker->next != &loop->hooks) {
		struct loop_hook *hook = container_of(marker->next, struct loop_hook, link);

		list_remove(marker);
		list_append(hook->link.next, marker);
		hook->turn_end(hook);
	}
	list_remove(marker);
}

int loop_turn(struct loop *loop, int timeout_ms)
{
	int error = 0;
	int count;

	assert(!loop->in_turn);
	count = wait_for_events(loop, wait_ns(loop, timeout_ms));
	if (count < 0 && errno != EINTR)
		error = -errno;
	loop->event_next = 0;
	loop->event_count = count < 0 ? 0 : count;
	loop->now_ns = loop_clock_ns();

	loop->in_turn = true;
	run_timers(loop);
	run_sources(loop);
	run_hooks(loop);
	loop->in_turn = false;
	return error;
}

int loop_run(struct loop *loop)
{
	int error = 0;

	while (!loop->stopping && error == 0)
		error = loop_turn(loop, -1);
	loop->stopping = false;
	return error;
}

void loop_stop(struct loop *loop)
{
	loop->stopping = true;
}
