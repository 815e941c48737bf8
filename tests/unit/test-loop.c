/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The event loop: sources, timers and hooks, and what happens when callbacks remove, free and add while a turn runs. */
#include "io/loop.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/unit.h"

#define MS UINT64_C(1000000)
#define PAIRS 3

struct pipe_source {
	struct loop_source source;
	struct loop *loop;
	int write_fd;
	unsigned calls;
	uint32_t events;
	struct pipe_source **victims; /* to be removed and freed by the first that is called; NULL-terminated */
};

static void pipe_ready(struct loop_source *source, uint32_t events)
{
	struct pipe_source *mine = source->context;

	mine->calls++;
	mine->events = events;
	for (unsigned i = 0; mine->victims && i < PAIRS; i++) {
		struct pipe_source *victim = mine->victims[i];

		if (!victim || victim == mine)
			continue;
		loop_remove(mine->loop, &victim->source);
		(void)close(victim->source.fd);
		(void)close(victim->write_fd);
		memset(victim, 0xff, sizeof(*victim));
		free(victim);
		mine->victims[i] = NULL;
	}
}

static struct pipe_source *pipe_make(struct loop *loop)
{
	struct pipe_source *made = calloc(1, sizeof(*made));
	int fds[2];

	if (!made || pipe(fds) != 0)
		abort();
	made->loop = loop;
	made->write_fd = fds[1];
	made->source = (struct loop_source){ .fd = fds[0], .ready = pipe_ready, .context = made };
	return made;
}

static void pipe_free(struct pipe_source *mine)
{
	loop_remove(mine->loop, &mine->source);
	(void)close(mine->source.fd);
	(void)close(mine->write_fd);
	free(mine);
}

static bool turn(struct loop *loop, int timeout_ms)
{
	return loop_turn(loop, timeout_ms) == 0;
}

static void test_sources(struct loop *loop)
{
	struct pipe_source *mine = pipe_make(loop);

	check("a source is added", loop_add(loop, &mine->source, EPOLLIN) == 0);
	check("a source that is not ready is not called", turn(loop, 0) && mine->calls == 0);
	check("one that is ready is called", write(mine->write_fd, "x", 1) == 1 && turn(loop, -1) && mine->calls == 1 &&
						     mine->events == EPOLLIN);
	check("and again, as long as it is ready", turn(loop, -1) && mine->calls == 2);
	check("not when nothing is watched for",
	      loop_modify(loop, &mine->source, 0) == 0 && turn(loop, 0) && mine->calls == 2);
	loop_remove(loop, &mine->source);
	check("not when it was removed", turn(loop, 0) && mine->calls == 2);
	loop_remove(loop, &mine->source);
	check("removing twice is harmless, and it can be added again",
	      loop_add(loop, &mine->source, EPOLLIN) == 0 && turn(loop, -1) && mine->calls == 3);
	pipe_free(mine);
}

static void test_source_errors(struct loop *loop)
{
	struct loop_source bad = { .fd = -1, .ready = pipe_ready };

	check("a bad descriptor is refused", loop_add(loop, &bad, EPOLLIN) < 0);
	loop_remove(loop, &bad);
	check("and then need not be removed", turn(loop, 0));
}

/* All are ready in one turn; whichever is called first frees the others. */
static void test_remove_others(struct loop *loop)
{
	struct pipe_source *pipes[PAIRS];
	unsigned left = 0, calls = 0;
	bool ok = true;

	for (unsigned i = 0; i < PAIRS; i++) {
		pipes[i] = pipe_make(loop);
		pipes[i]->victims = pipes;
		ok = ok && write(pipes[i]->write_fd, "x", 1) == 1;
		ok = ok && loop_add(loop, &pipes[i]->source, EPOLLIN) == 0;
	}
	ok = ok && turn(loop, -1);
	for (unsigned i = 0; i < PAIRS; i++) {
		if (!pipes[i])
			continue;
		left++;
		calls += pipes[i]->calls;
		pipe_free(pipes[i]);
	}
	check("events of sources that were removed and freed in the turn are not delivered",
	      ok && left == 1 && calls == 1);
}

struct timed {
	struct loop_timer timer;
	struct loop *loop;
	unsigned calls;
	unsigned order;
	unsigned *clock;
	uint64_t again_ns; /* set again, so much later */
	bool again;
	struct loop_timer *cancels;
};

static void timed_expired(struct loop_timer *timer)
{
	struct timed *mine = timer->context;

	mine->calls++;
	mine->order = ++*mine->clock;
	if (mine->again)
		loop_timer_set(mine->loop, timer, loop_now_ns(mine->loop) + mine->again_ns);
	if (mine->cancels)
		loop_timer_cancel(mine->cancels);
}

static void test_timer_order(struct loop *loop)
{
	unsigned clock = 0;
	uint64_t now_ns = loop_now_ns(loop);
	struct timed timers[3] = { { .loop = loop, .clock = &clock }, { .loop = loop, .clock = &clock },
				   { .loop = loop, .clock = &clock } };

	for (unsigned i = 0; i < 3; i++)
		loop_timer_init(&timers[i].timer, timed_expired, &timers[i]);
	loop_timer_set(loop, &timers[0].timer, now_ns + 30 * MS);
	loop_timer_set(loop, &timers[1].timer, now_ns + 10 * MS);
	loop_timer_set(loop, &timers[2].timer, now_ns + 5000 * MS);
	loop_timer_set(loop, &timers[2].timer, now_ns + 20 * MS);
	for (unsigned i = 0; i < 10 && timers[0].calls == 0; i++)
		(void)turn(loop, 1000);
	check("timers fire once, in the order they are due, and one that was moved at its new time",
	      timers[1].order == 1 && timers[2].order == 2 && timers[0].order == 3 && clock == 3);
	check("not before their time", loop_now_ns(loop) >= now_ns + 30 * MS);
	check("and nobody slept much longer", loop_now_ns(loop) < now_ns + 1000 * MS);
	check("afterwards they do not fire again", turn(loop, 0) && clock == 3);
}

static void test_timer_changes(struct loop *loop)
{
	unsigned clock = 0;
	struct timed again = { .loop = loop, .clock = &clock, .again = true };
	struct timed first = { .loop = loop, .clock = &clock }, second = { .loop = loop, .clock = &clock };

	loop_timer_init(&again.timer, timed_expired, &again);
	loop_timer_init(&first.timer, timed_expired, &first);
	loop_timer_init(&second.timer, timed_expired, &second);
	loop_timer_set(loop, &again.timer, 0);
	check("a timer that sets itself for now fires once a turn, and makes the next turn come at once",
	      turn(loop, -1) && again.calls == 1 && turn(loop, -1) && again.calls == 2);
	loop_timer_cancel(&again.timer);
	loop_timer_cancel(&again.timer);
	check("a cancelled timer does not fire; cancelling twice is harmless", turn(loop, 0) && again.calls == 2);

	first.cancels = &second.timer;
	loop_timer_set(loop, &first.timer, 0);
	loop_timer_set(loop, &second.timer, 1);
	check("a timer can cancel one that is due in the same turn",
	      turn(loop, 0) && first.calls == 1 && second.calls == 0);
}

struct hooked {
	struct loop_hook hook;
	struct loop *loop;
	unsigned calls, order;
	unsigned *clock;
	struct hooked *removes;
	struct hooked *adds;
};

static void hooked_turn_end(struct loop_hook *hook)
{
	struct hooked *mine = hook->context;

	mine->calls++;
	mine->order = ++*mine->clock;
	if (mine->removes)
		loop_hook_remove(&mine->removes->hook);
	if (mine->adds)
		loop_hook_add(mine->loop, &mine->adds->hook);
	mine->adds = NULL;
}

static void hooked_init(struct hooked *mine, struct loop *loop, unsigned *clock)
{
	*mine = (struct hooked){ .loop = loop, .clock = clock };
	mine->hook = (struct loop_hook){ .turn_end = hooked_turn_end, .context = mine };
	list_init(&mine->hook.link);
}

static void test_hooks(struct loop *loop)
{
	struct hooked hooks[4];
	unsigned clock = 0;

	for (unsigned i = 0; i < 4; i++)
		hooked_init(&hooks[i], loop, &clock);
	for (unsigned i = 0; i < 3; i++)
		loop_hook_add(loop, &hooks[i].hook);
	check("hooks run once a turn, in the order they were added",
	      turn(loop, 0) && hooks[0].order == 1 && hooks[1].order == 2 && hooks[2].order == 3 && clock == 3);

	hooks[0].removes = &hooks[0];
	check("a hook can remove itself; the others still run",
	      turn(loop, 0) && hooks[0].calls == 2 && hooks[1].calls == 2 && hooks[2].calls == 2);
	hooks[1].removes = &hooks[2];
	check("a hook can remove the one after it, which then does not run",
	      turn(loop, 0) && hooks[1].calls == 3 && hooks[2].calls == 2);
	hooks[1].removes = NULL;
	hooks[1].adds = &hooks[3];
	check("a hook can add one", turn(loop, 0) && turn(loop, 0) && hooks[3].calls >= 1 && hooks[1].calls == 5);
	hooks[3].removes = &hooks[1];
	check("a hook can remove the one before it",
	      turn(loop, 0) && hooks[1].calls == 6 && turn(loop, 0) && hooks[1].calls == 6);
	loop_hook_remove(&hooks[3].hook);
	clock = 0;
	check("without hooks a turn is a turn", turn(loop, 0) && clock == 0);
}

static void stop_expired(struct loop_timer *timer)
{
	loop_stop(timer->context);
}

static void test_run(struct loop *loop)
{
	struct loop_timer timer;
	uint64_t before_ns = loop_now_ns(loop);

	loop_timer_init(&timer, stop_expired, loop);
	loop_timer_set(loop, &timer, before_ns + 20 * MS);
	check("the loop runs until it is stopped", loop_run(loop) == 0 && loop_now_ns(loop) >= before_ns + 20 * MS);
	loop_stop(loop);
	check("stopped before it was run, it returns at once", loop_run(loop) == 0);
	loop_timer_set(loop, &timer, loop_now_ns(loop) + 20 * MS);
	check("and can be run again", loop_run(loop) == 0);
	before_ns = loop_now_ns(loop);
	check("a turn waits no longer than it was told to",
	      turn(loop, 5) && loop_now_ns(loop) >= before_ns + 4 * MS && loop_now_ns(loop) < before_ns + 1000 * MS);
}

/* From now on epoll_pwait2 answers `error`, as a kernel without it does, or a sandbox that does not know it. */
static bool refuse_fine_waits(unsigned error)
{
	struct sock_filter steps[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_epoll_pwait2, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof(steps) / sizeof(steps[0]), .filter = steps };

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

enum { COARSE_RIGHT, COARSE_WRONG, COARSE_NO_FILTER };

static int run_coarse(unsigned error)
{
	struct loop *loop;
	struct loop_timer timer;
	struct pipe_source *source;
	bool right = loop_create(&loop) == 0;

	if (!right)
		return COARSE_WRONG;
	if (!refuse_fine_waits(error))
		return COARSE_NO_FILTER;
	loop_timer_init(&timer, stop_expired, loop);
	for (unsigned i = 1; i <= 3 && right; i++) {
		uint64_t due_ns = loop_now_ns(loop) + i * MS / 4;

		loop_timer_set(loop, &timer, due_ns);
		right = loop_run(loop) == 0 && loop_now_ns(loop) >= due_ns && !loop_is_fine(loop);
	}
	source = pipe_make(loop);
	right = right && loop_add(loop, &source->source, EPOLLIN) == 0 && write(source->write_fd, "x", 1) == 1 &&
		loop_turn(loop, -1) == 0 && source->calls == 1;
	pipe_free(source);
	loop_destroy(loop);
	return right ? COARSE_RIGHT : COARSE_WRONG;
}

static void test_without_fine_waits(unsigned error, const char *what)
{
	pid_t child;
	int status = 0;

	(void)fflush(stdout);
	child = fork();
	if (child == 0)
		_exit(run_coarse(error));
	if (child < 0 || waitpid(child, &status, 0) != child)
		abort();
	if (WIFEXITED(status) && WEXITSTATUS(status) == COARSE_NO_FILTER)
		printf("ok %u - %s # SKIP no system call can be refused here\n", ++unit_count, what);
	else
		check(what, WIFEXITED(status) && WEXITSTATUS(status) == COARSE_RIGHT);
}

int main(void)
{
	struct loop *loop = NULL;

	check("a loop is made", loop_create(&loop) == 0);
	if (!loop)
		return unit_done();
	test_sources(loop);
	test_source_errors(loop);
	test_remove_others(loop);
	test_timer_order(loop);
	test_timer_changes(loop);
	test_hooks(loop);
	test_run(loop);
	test_without_fine_waits(ENOSYS, "where the kernel has no epoll_pwait2, timers are kept to the millisecond");
	test_without_fine_waits(EPERM, "and where a sandbox forbids it");
	loop_destroy(loop);
	loop_destroy(NULL);
	return unit_done();
}
