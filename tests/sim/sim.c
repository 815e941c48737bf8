/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The simulator's command line. See sim.h.
 *
 *   sim --check              a fixed set of seeds, as TAP
 *   sim --seed=N [--trace]   one run, told step by step with --trace
 *   sim --seeds=A-B          many
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/sim/sim.h"

#define CHECK_GROUPS 8u
#define CHECK_SEEDS 250u /* in each group */

static volatile uint64_t seed_now;

void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

/* An assertion of the engine, or a sanitizer's finding: which seed it was. */
static void tell_seed(void)
{
	char text[96];
	int length;

	(void)fflush(stdout);
	length = snprintf(text, sizeof(text), "# to see it again: sim --seed=%llu --trace\n",
			  (unsigned long long)seed_now);
	if (write(STDOUT_FILENO, text, (size_t)length) < 0)
		return;
}

static void on_signal(int number)
{
	tell_seed();
	(void)signal(number, SIG_DFL);
	(void)raise(number);
}

static void run_seed(uint64_t seed, bool trace, struct sim_totals *totals)
{
	seed_now = seed;
	sim_seed_begin(seed, trace);
	sim_run(seed, totals);
}

static void print_totals(const struct sim_totals *totals)
{
	printf("# %llu runs, %llu lives, %llu power cuts, %llu kills, %llu faults, %llu disk events, %llu requests, %llu snapshots, %llu drops, %llu merges (%llu resumed)\n",
	       (unsigned long long)totals->runs, (unsigned long long)totals->lives,
	       (unsigned long long)totals->power_cuts, (unsigned long long)totals->kills,
	       (unsigned long long)totals->faults, (unsigned long long)totals->events,
	       (unsigned long long)totals->requests, (unsigned long long)totals->snapshots,
	       (unsigned long long)totals->drops, (unsigned long long)totals->merges,
	       (unsigned long long)totals->merges_resumed);
}

static int check(void)
{
	struct sim_totals totals = { 0 };

	for (unsigned group = 0; group < CHECK_GROUPS; group++) {
		for (unsigned i = 1; i <= CHECK_SEEDS; i++)
			run_seed(group * CHECK_SEEDS + i, false, &totals);
		printf("ok %u - seeds %u to %u\n", group + 1, group * CHECK_SEEDS + 1, (group + 1) * CHECK_SEEDS);
	}
	print_totals(&totals);
	printf("1..%u\n", CHECK_GROUPS);
	return 0;
}

int main(int argc, char **argv)
{
	struct sim_totals totals = { 0 };
	unsigned long long first = 0, last = 0;
	bool trace = false, is_check = false, is_set = false;

	(void)setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 1; i < argc; i++) {
		char *end = NULL;

		if (strcmp(argv[i], "--trace") == 0) {
			trace = true;
		} else if (strcmp(argv[i], "--check") == 0) {
			is_check = true;
		} else if (strncmp(argv[i], "--seed=", 7) == 0) {
			first = last = strtoull(argv[i] + 7, &end, 10);
			is_set = *end == '\0';
		} else if (strncmp(argv[i], "--seeds=", 8) == 0) {
			first = strtoull(argv[i] + 8, &end, 10);
			last = *end == '-' ? strtoull(end + 1, &end, 10) : 0;
			is_set = *end == '\0';
		}
	}
	if (is_check == is_set) {
		(void)fprintf(stderr, "usage: sim --check | --seed=N [--trace] | --seeds=A-B\n");
		return 64;
	}
	(void)signal(SIGABRT, on_signal);
	if (__sanitizer_set_death_callback != NULL)
		__sanitizer_set_death_callback(tell_seed);
	else
		(void)signal(SIGSEGV, on_signal);
	if (is_check)
		return check();
	for (unsigned long long seed = first; seed <= last; seed++)
		run_seed(seed, trace, &totals);
	print_totals(&totals);
	return 0;
}
