/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The simulator's command line. See sim.h.
 *
 *   sim --check                     a fixed set of seeds and the short schedules, as TAP
 *   sim --seeds=A-B [--jobs=N]      these seeds; --seeds=N: 1 to N
 *   sim --minutes=M [--jobs=N]      seeds from the first one named (else from 1) on, for so long
 *   sim --schedules[=A-B]           all short schedules, or those
 *   sim --seed=N | --schedule=N     one; with --trace told step by step
 *   sim --hunt [--seeds=A-B]        as --check, those seeds first, and tells how much it took until one failed: for
 *                                   mutations
 *
 * The runs are made in processes of their own, so that whatever ends one (a wrong answer, an assertion, a sanitizer's
 * report, a signal) is told with the command that shows it again, and the end of its trace.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/sim/sim.h"

#define JOBS_MAX 64u
#define TRACE_LINES 60u
#define LINE_BYTES 512u

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_SANITIZED true
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define IS_SANITIZED true
#endif
#endif
#ifndef IS_SANITIZED
#define IS_SANITIZED false
#endif

/* What make check runs; a sanitized build takes about ten times as long. */
#define CHECK_GROUPS 8u
#define CHECK_SEEDS (IS_SANITIZED ? 30u : 250u) /* in each group */
#define CHECK_MODES (IS_SANITIZED ? 1u : SCHEDULE_MODES)
#define HUNT_SEEDS 20u
#define HUNT_SCHEDULES 32u

enum kind { KIND_SEED, KIND_SCHEDULE };

struct task {
	enum kind kind;
	uint64_t first, last; /* last: UINT64_MAX until time is out */
	unsigned jobs;
	uint64_t end_s; /* when time is out; 0: never */
};

/* Shared with the workers. */
struct board {
	uint64_t now;
	struct sim_totals totals;
};

static const char *program;
static bool is_hunting; /* what fails is expected to, and not shown */

static uint64_t now_s(void)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec;
}

static void run_one(enum kind kind, uint64_t number, bool trace, struct sim_totals *totals)
{
	sim_begin(trace);
	if (kind == KIND_SEED)
		sim_run(number, totals);
	else
		sim_schedule(number, totals);
}

/* ---- totals ---- */

static void totals_add(struct sim_totals *to, const struct sim_totals *from)
{
	to->runs += from->runs;
	to->lives += from->lives;
	to->power_cuts += from->power_cuts;
	to->kills += from->kills;
	to->events += from->events;
	to->requests += from->requests;
	to->snapshots += from->snapshots;
	to->drops += from->drops;
	to->faults += from->faults;
	to->reads_checked += from->reads_checked;
	to->merges += from->merges;
	to->merges_resumed += from->merges_resumed;
	to->probes += from->probes;
	to->memory_failures += from->memory_failures;
	to->damages += from->damages;
	to->repairs += from->repairs;
	to->refusals += from->refusals;
	to->vanished += from->vanished;
	to->rooms += from->rooms;
}

static void totals_print(const struct sim_totals *totals)
{
	typedef unsigned long long number;

	printf("# %llu schedules with %llu crashes (%llu power cuts, %llu kills; %llu on the side), %llu lives, "
	       "%llu faults\n",
	       (number)totals->runs, (number)(totals->power_cuts + totals->kills), (number)totals->power_cuts,
	       (number)totals->kills, (number)totals->probes, (number)totals->lives, (number)totals->faults);
	printf("# %llu disk events, %llu requests, %llu reads checked, %llu snapshots, %llu drops, "
	       "%llu merges (%llu resumed)\n",
	       (number)totals->events, (number)totals->requests, (number)totals->reads_checked,
	       (number)totals->snapshots, (number)totals->drops, (number)totals->merges,
	       (number)totals->merges_resumed);
	printf("# %llu allocations failed, %llu disks gone, %llu times no room, %llu damages, %llu repairs, "
	       "%llu changed origins refused\n",
	       (number)totals->memory_failures, (number)totals->vanished, (number)totals->rooms,
	       (number)totals->damages, (number)totals->repairs, (number)totals->refusals);
}

/* ---- what failed ---- */

/* Runs it once more, told step by step, and shows the end of that. */
static void show_trace(enum kind kind, uint64_t number)
{
	static char lines[TRACE_LINES][LINE_BYTES];
	char command[LINE_BYTES];
	size_t count = 0;
	FILE *pipe;

	(void)snprintf(command, sizeof(command), "exec '%s' --%s=%llu --trace 2>&1", program,
		       kind == KIND_SEED ? "seed" : "schedule", (unsigned long long)number);
	pipe = popen(command, "r");
	if (pipe == NULL)
		return;
	while (fgets(lines[count % TRACE_LINES], LINE_BYTES, pipe) != NULL)
		count++;
	(void)pclose(pipe);
	printf("# the end of its trace:\n");
	for (size_t i = count > TRACE_LINES ? count - TRACE_LINES : 0; i < count; i++)
		printf("%s%s", lines[i % TRACE_LINES][0] == '#' ? "" : "# ", lines[i % TRACE_LINES]);
}

static void tell_failed(enum kind kind, uint64_t number, int status)
{
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGPROF)
		printf("# it goes on and on\n");
	else if (WIFSIGNALED(status))
		printf("# killed by signal %d\n", WTERMSIG(status));
	if (!is_hunting && WTERMSIG(status) != SIGPROF)
		show_trace(kind, number);
	printf("# to see it again: %s --%s=%llu --trace\n", program, kind == KIND_SEED ? "seed" : "schedule",
	       (unsigned long long)number);
	(void)fflush(stdout);
}

/* ---- workers ---- */

/* One that takes that much of the processor's time, where others take thousandths of it, goes round in circles. */
static void limit_time(void)
{
	const struct itimerval limit = { .it_value = { .tv_sec = is_hunting ? 10 : 100 } };

	(void)setitimer(ITIMER_PROF, &limit, NULL);
}

static void work(const struct task *task, unsigned worker, struct board *board)
{
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (uint64_t number = task->first + worker; number <= task->last; number += task->jobs) {
		if (task->end_s != 0 && now_s() >= task->end_s)
			break;
		board->now = number;
		limit_time();
		run_one(task->kind, number, false, &board->totals);
	}
	(void)fflush(stdout);
	exit(0);
}

/* Whether all went well; the totals are added up. */
static bool carry_out(const struct task *task, struct sim_totals *totals)
{
	size_t bytes = task->jobs * sizeof(struct board);
	struct board *boards = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t workers[JOBS_MAX];
	bool ok = true;

	if (boards == MAP_FAILED)
		sim_fail("out of memory");
	for (unsigned i = 0; i < task->jobs; i++) {
		(void)fflush(stdout);
		workers[i] = fork();
		if (workers[i] == 0)
			work(task, i, &boards[i]);
	}
	for (unsigned i = 0; i < task->jobs; i++) {
		int status = 0;

		while (waitpid(workers[i], &status, 0) < 0 && errno == EINTR)
			;
		if (status != 0)
			tell_failed(task->kind, boards[i].now, status);
		ok = ok && workers[i] > 0 && status == 0;
		totals_add(totals, &boards[i].totals);
	}
	(void)munmap(boards, bytes);
	return ok;
}

static struct task schedules(unsigned mode, uint64_t first, uint64_t count)
{
	first += sim_schedule_short(mode);
	return (struct task){ KIND_SCHEDULE, first, first + count - 1, 1, 0 };
}

static int check(void)
{
	struct sim_totals totals = { 0 };
	struct task task = { .kind = KIND_SEED, .jobs = 1 };
	bool ok, all_ok = true;

	for (unsigned group = 0; group < CHECK_GROUPS; group++) {
		task.first = group * CHECK_SEEDS + 1;
		task.last = (group + 1) * CHECK_SEEDS;
		ok = carry_out(&task, &totals);
		all_ok = all_ok && ok;
		printf("%s %u - seeds %llu to %llu\n", ok ? "ok" : "not ok", group + 1, (unsigned long long)task.first,
		       (unsigned long long)task.last);
	}
	for (unsigned mode = 0; mode < CHECK_MODES; mode++) {
		static const char *const modes[SCHEDULE_MODES] = { "in order", "at once", "at once, reversed" };

		task = schedules(mode, 0, SCHEDULES_SHORT);
		ok = carry_out(&task, &totals);
		all_ok = all_ok && ok;
		printf("%s %u - all schedules of up to two operations, %s\n", ok ? "ok" : "not ok",
		       CHECK_GROUPS + 1 + mode, modes[mode]);
	}
	totals_print(&totals);
	printf("1..%u\n", CHECK_GROUPS + CHECK_MODES);
	return all_ok ? 0 : 1;
}

/* `first`, if that is any; then seeds and schedules by turns: what finds one fault soon does not find another. */
static int hunt(const struct task *first)
{
	struct sim_totals totals = { 0 };
	bool ok = first->last == 0 || carry_out(first, &totals);

	for (uint64_t i = 0; ok && i < CHECK_GROUPS * CHECK_SEEDS / HUNT_SEEDS; i++) {
		struct task seeds = { KIND_SEED, i * HUNT_SEEDS + 1, (i + 1) * HUNT_SEEDS, 1, 0 };
		uint64_t at = i * HUNT_SCHEDULES;
		struct task some = schedules((unsigned)(at / SCHEDULES_SHORT), at % SCHEDULES_SHORT, HUNT_SCHEDULES);

		ok = carry_out(&seeds, &totals) &&
		     (at >= SCHEDULE_MODES * SCHEDULES_SHORT || carry_out(&some, &totals));
	}
	printf("%s: %llu schedules, %llu crashes\n", ok ? "nothing found" : "found",
	       (unsigned long long)totals.runs + !ok, (unsigned long long)(totals.power_cuts + totals.kills));
	return ok ? 0 : 1;
}

/* ---- arguments ---- */

/* "A-B", or "N": `first` to N. */
static bool parse_range(const char *text, struct task *task)
{
	char *end;

	task->last = strtoull(text, &end, 10);
	if (end == text)
		return false;
	if (*end == '-') {
		task->first = task->last;
		task->last = strtoull(end + 1, &end, 10);
	}
	return *end == '\0' && task->first <= task->last;
}

static bool parse_number(const char *text, uint64_t *number)
{
	char *end;

	*number = strtoull(text, &end, 10);
	return end != text && *end == '\0';
}

/* The argument's value when it is of this name, else NULL. */
static const char *value_of(const char *argument, const char *name)
{
	size_t length = strlen(name);

	return strncmp(argument, name, length) == 0 && argument[length] == '=' ? argument + length + 1 : NULL;
}

static bool parse(int argc, char **argv, struct task *task, bool *is_check, bool *is_one, bool *trace)
{
	bool is_set = false, ok = true;
	uint64_t number;

	for (int i = 1; i < argc && ok; i++) {
		const char *argument = argv[i], *value;

		if (strcmp(argument, "--trace") == 0) {
			*trace = true;
		} else if (strcmp(argument, "--check") == 0) {
			*is_check = is_set = true;
		} else if (strcmp(argument, "--hunt") == 0) {
			is_hunting = is_set = true;
		} else if (strcmp(argument, "--schedules") == 0) {
			*task = (struct task){ KIND_SCHEDULE, 0, sim_schedule_count() - 1, task->jobs, 0 };
			is_set = true;
		} else if ((value = value_of(argument, "--schedules")) != NULL) {
			task->kind = KIND_SCHEDULE;
			is_set = ok = parse_range(value, task);
		} else if ((value = value_of(argument, "--seeds")) != NULL) {
			is_set = ok = parse_range(value, task);
		} else if ((value = value_of(argument, "--seed")) != NULL ||
			   (value = value_of(argument, "--schedule")) != NULL) {
			task->kind = value_of(argument, "--seed") != NULL ? KIND_SEED : KIND_SCHEDULE;
			is_set = ok = parse_number(value, &task->first);
			*is_one = true;
		} else if ((value = value_of(argument, "--minutes")) != NULL) {
			is_set = ok = parse_number(value, &number);
			task->end_s = now_s() + number * 60;
			task->last = UINT64_MAX;
		} else if ((value = value_of(argument, "--jobs")) != NULL) {
			ok = parse_number(value, &number) && number >= 1 && number <= JOBS_MAX;
			task->jobs = (unsigned)number;
		} else {
			ok = false;
		}
	}
	return ok && is_set;
}

int main(int argc, char **argv)
{
	struct task task = { .kind = KIND_SEED, .first = 1, .jobs = 1 };
	bool trace = false, is_check = false, is_one = false, ok;
	struct sim_totals totals = { 0 };

	program = argv[0];
	(void)setvbuf(stdout, NULL, _IOLBF, 0);
	if (!parse(argc, argv, &task, &is_check, &is_one, &trace)) {
		(void)fprintf(stderr, "usage: sim --check | --seeds=A-B | --minutes=M | --schedules[=A-B] [--jobs=N]\n"
				      "       sim --seed=N | --schedule=N [--trace]\n");
		return 64;
	}
	sim_memory_start();
	if (is_check)
		return check();
	if (is_hunting)
		return hunt(&task);
	if (is_one) {
		run_one(task.kind, task.first, trace, &totals);
		totals_print(&totals);
		return 0;
	}
	ok = carry_out(&task, &totals);
	totals_print(&totals);
	return ok ? 0 : 1;
}
