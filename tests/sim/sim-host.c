/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the engine wants of the world besides disks: the volume's record, here in memory and as durable as a rename
 * makes it; messages, shown with --trace; and the pseudo-random numbers that everything follows from.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "io/log.h"
#include "io/probe.h"
#include "tests/sim/sim.h"

/* The engine's record and messages carry no context, so these few are the program's. */
static struct {
	bool trace;
	struct disk_host *host;
	struct record *saved;
} world;

/* ---- random numbers ---- */

static uint64_t mix(uint64_t x)
{
	x ^= x >> 32;
	x *= UINT64_C(0xd6e8feb86659fd93);
	x ^= x >> 32;
	x *= UINT64_C(0xd6e8feb86659fd93);
	return x ^ x >> 32;
}

uint64_t random_next(struct sim_random *random)
{
	random->state += UINT64_C(0x9e3779b97f4a7c15);
	return mix(random->state);
}

uint64_t random_below(struct sim_random *random, uint64_t limit)
{
	return random_next(random) % limit;
}

uint64_t random_range(struct sim_random *random, uint64_t low, uint64_t high)
{
	return low + random_below(random, high - low + 1);
}

bool random_chance(struct sim_random *random, unsigned per_thousand)
{
	return per_thousand > 0 && random_below(random, 1000) < per_thousand;
}

void random_fill(uint64_t seed, uint8_t *out, size_t bytes)
{
	struct sim_random random = { mix(seed + 1) };

	while (bytes > 0) {
		uint64_t value = random_next(&random);
		size_t here = bytes < sizeof(value) ? bytes : sizeof(value);

		memcpy(out, &value, here);
		out += here;
		bytes -= here;
	}
}

/* ---- messages ---- */

void sim_begin(bool trace)
{
	world.trace = trace;
}

bool sim_is_tracing(void)
{
	return world.trace;
}

__attribute__((format(printf, 2, 0))) static void print_line(const char *who, const char *format, va_list arguments)
{
	if (world.host != NULL)
		printf("# %8llu %s: ", (unsigned long long)sim_host_counters(world.host)->events, who);
	else
		printf("# %s: ", who);
	(void)vprintf(format, arguments);
	printf("\n");
}

void sim_trace(const char *format, ...)
{
	va_list arguments;

	if (!world.trace)
		return;
	va_start(arguments, format);
	print_line("sim", format, arguments);
	va_end(arguments);
}

void log_notice(const char *format, ...)
{
	va_list arguments;

	if (!world.trace)
		return;
	va_start(arguments, format);
	print_line("notice", format, arguments);
	va_end(arguments);
}

void log_warning(const char *format, ...)
{
	va_list arguments;

	if (!world.trace)
		return;
	va_start(arguments, format);
	print_line("warning", format, arguments);
	va_end(arguments);
}

void sim_fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	print_line("FAILED", format, arguments);
	va_end(arguments);
	(void)fflush(stdout);
	exit(1);
}

/* ---- who uses a path: nobody but ourselves ---- */

int probe_busy(const char *path, char text[static PROBE_TEXT_BYTES])
{
	(void)path;
	text[0] = '\0';
	return 0;
}

int probe_written(const char *path, char text[static PROBE_TEXT_BYTES])
{
	return probe_busy(path, text);
}

/* ---- the record ---- */

static struct record *record_copy(const struct record *record)
{
	bool paused = sim_memory_pause(true);
	struct record *copy;

	if (record_create(record->directory, record->origin_path, &record->volume_uuid, &copy) != 0)
		sim_fail("out of memory");
	copy->merging_uuid = record->merging_uuid;
	for (size_t i = 0; i < record->store_count; i++) {
		const struct record_store *store = &record->stores[i];

		if (record_add(copy, &store->uuid, store->name, store->path, store->created_ns) != 0)
			sim_fail("out of memory");
		copy->stores[i].broken = store->broken;
	}
	for (size_t i = 0; i < record->part_count; i++)
		if (record_add_part(copy, &record->parts[i].main_uuid, &record->parts[i].uuid, record->parts[i].path) != 0)
			sim_fail("out of memory");
	(void)sim_memory_pause(paused);
	return copy;
}

void record_disown(const struct record *record)
{
	(void)record; /* one volume */
}

int record_find(const char *directory, const char *origin_path, const uuid128_t *volume_uuid, struct record **record)
{
	(void)directory;
	if (world.saved == NULL || strcmp(world.saved->origin_path, origin_path) != 0 ||
	    (!uuid_is_nil(volume_uuid) && !uuid_equal(volume_uuid, &world.saved->volume_uuid)))
		return -ENOENT;
	*record = record_copy(world.saved);
	return 0;
}

int record_save(const struct record *record)
{
	if (sim_record_fails(world.host))
		return -EIO;
	record_destroy(world.saved);
	world.saved = record_copy(record);
	return 0;
}

void sim_record_reset(struct disk_host *host)
{
	record_destroy(world.saved);
	world.saved = NULL;
	world.host = host;
}

void sim_world_enter(struct disk_host *host, struct sim_world *before)
{
	*before = (struct sim_world){ world.host, world.saved };
	world.host = host;
	world.saved = world.saved != NULL ? record_copy(world.saved) : NULL;
}

void sim_world_leave(const struct sim_world *before)
{
	record_destroy(world.saved);
	world.host = before->host;
	world.saved = before->saved;
}
