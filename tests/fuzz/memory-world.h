/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the engine wants of the world, for fuzz targets: disks in memory, nobody else who uses them, and a volume's record
 * that is not kept.
 */
#ifndef TESTS_FUZZ_MEMORY_WORLD_H
#define TESTS_FUZZ_MEMORY_WORLD_H

#include "core/record.h"
#include "io/probe.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/memory-disk.h"

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

void record_disown(const struct record *record)
{
	(void)record;
}

int record_find(const char *directory, const char *origin_path, const uuid128_t *volume_uuid, struct record **record)
{
	(void)directory;
	(void)origin_path;
	(void)volume_uuid;
	(void)record;
	return -ENOENT;
}

int record_save(const struct record *record)
{
	(void)record;
	return 0;
}

/* File `index` is there again, of that name and size, and all zeroes. */
static inline uint8_t *memory_file_make(unsigned index, const char *name, uint64_t bytes)
{
	struct memory_file *file = &memory_files[index];

	memory_resize(file, 0);
	memory_resize(file, bytes);
	(void)snprintf(file->name, sizeof(file->name), "%s", name);
	file->bad_from = 0;
	file->bad_to = 0;
	return file->bytes;
}

static inline void memory_world_begin(uint64_t size_max)
{
	memory_writes = 0;
	memory_power = UINT64_MAX;
	memory_torn_sectors = 0;
	memory_dead = false;
	memory_wrote_read_only = false;
	memory_size_max = size_max;
	memory_random = 0x5a;
	memory_host = NULL;
}

#endif
