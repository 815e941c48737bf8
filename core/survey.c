/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See survey.h. */
#include "core/survey.h"

#include <errno.h>
#include <stdlib.h>

#include "core/metadata.h"

static void count_entry(struct survey_counts *counts, const struct entry *entry)
{
	switch (entry->type) {
	case ENTRY_DATA:
		counts->data++;
		return;
	case ENTRY_ZERO:
		counts->zero_runs++;
		counts->zero_blocks += entry->count;
		return;
	case ENTRY_LOST:
		counts->lost++;
		return;
	case ENTRY_VOID:
		counts->voids++;
		return;
	case ENTRY_FINGERPRINT:
		counts->fingerprints++;
		return;
	}
}

static void add_counts(struct survey_counts *to, const struct survey_counts *more)
{
	to->data += more->data;
	to->zero_runs += more->zero_runs;
	to->zero_blocks += more->zero_blocks;
	to->lost += more->lost;
	to->voids += more->voids;
	to->fingerprints += more->fingerprints;
	to->missing += more->missing;
}

static void survey_area(const struct log_format *format, struct survey *survey, uint32_t used,
			const struct area_copies *both)
{
	uint64_t first = (uint64_t)both->area * format->geometry.slots_per_area;
	struct survey_area area = { .area = both->area };

	for (unsigned c = 0; c < 2; c++) {
		area.header_valid[c] = both->copies[c].valid;
		area.headers[c] = both->copies[c].header;
	}
	for (uint32_t i = 0; i < used; i++) {
		struct entry entry;

		if (!area_copies_entry(format, both, i, &entry)) {
			area.counts.missing++;
			continue;
		}
		count_entry(&area.counts, &entry);
		if (survey->entry != NULL)
			survey->entry(SLOT(first + i), &entry, survey->context);
	}
	add_counts(&survey->total, &area.counts);
	if (survey->area != NULL)
		survey->area(&area, survey->context);
}

static int read_area(struct store *store, const struct log_format *format, uint32_t area, uint8_t *meta,
		     struct area_copies *both)
{
	*both = (struct area_copies){ .area = area };
	for (unsigned c = 0; c < 2; c++) {
		uint8_t *bytes = meta + (size_t)c * AREA_META_BYTES;
		struct store_place place = store_meta_place(store, area, c);
		int error = disk_read_wait(store->host, place.part->disk, bytes, AREA_META_BYTES, place.offset);

		if (error != 0)
			return error;
		both->copies[c].bytes = bytes;
		area_copy_decode(format, both, c);
	}
	area_copies_choose(both);
	return 0;
}

int survey_store(struct store *store, struct survey *survey)
{
	const struct log_format format = log_format_of(store);
	uint32_t per_area = format.geometry.slots_per_area, end = store_end(store).index;
	uint8_t *meta = aligned_alloc(AREA_META_BYTES, (size_t)2 * AREA_META_BYTES);
	int error = meta == NULL ? -ENOMEM : 0;

	survey->areas = ((uint64_t)end + per_area - 1) / per_area;
	survey->total = (struct survey_counts){ 0 };
	survey->failed_area = 0;
	for (uint32_t area = 0; area < survey->areas && error == 0; area++) {
		uint32_t left = end - area * per_area, slots = store_area_slots(store, area);
		struct area_copies both;

		survey->failed_area = area;
		error = read_area(store, &format, area, meta, &both);
		if (error == 0)
			survey_area(&format, survey, left < slots ? left : slots, &both);
	}
	free(meta);
	return error;
}

static void add_extent(struct survey_extents *extents, uint64_t count)
{
	if (count == 0)
		return;
	extents->extents++;
	extents->blocks += count;
	if (count > extents->longest)
		extents->longest = count;
	extents->of_length[63u - (unsigned)__builtin_clzll(count)]++;
}

void survey_extents(const struct store *store, struct survey_extents *extents)
{
	block_t block = 0, block_count = superblock_block_count(&store->superblock);
	struct map_run last = { .kind = MAP_ABSENT };

	*extents = (struct survey_extents){ 0 };
	while (store->map != NULL && block < block_count) {
		struct map_run run = map_find(store->map, block, block_count - block);

		block += run.count;
		if (run.kind == last.kind && run.kind != MAP_ABSENT &&
		    (run.kind != MAP_SLOT || run.slot.index == last.slot.index + last.count)) {
			last.count += run.count; /* it was cut at a region's end */
			continue;
		}
		if (last.kind != MAP_ABSENT)
			add_extent(extents, last.count);
		last = run;
	}
	if (last.kind != MAP_ABSENT)
		add_extent(extents, last.count);
}
