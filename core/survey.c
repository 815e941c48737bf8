/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See survey.h. An entry is taken from the newer metadata copy where it holds there, else from the other. */
#include "core/survey.h"

#include <errno.h>
#include <stdlib.h>

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

/* `meta`: both copies, one after the other. */
static void survey_area(const struct store *store, struct survey *survey, uint32_t number, uint32_t used,
			const uint8_t *meta)
{
	const struct superblock *superblock = &store->superblock;
	uint32_t per_area = superblock->geometry.slots_per_area;
	struct survey_area area = { .area = number };
	unsigned newer = 0;

	for (unsigned c = 0; c < 2; c++)
		area.header_valid[c] = area_header_decode(meta + (size_t)c * AREA_META_BYTES, store->seed, number, per_area,
							  &area.headers[c]) == 0;
	if (area.header_valid[1] &&
	    (!area.header_valid[0] || area.headers[1].write_count > area.headers[0].write_count))
		newer = 1;
	for (uint32_t i = 0; i < used; i++) {
		block_t block_count = superblock_block_count(superblock);
		struct entry entry;
		bool found = false;

		for (unsigned c = 0; c < 2 && !found; c++)
			found = entry_decode(meta + (size_t)(c == 0 ? newer : 1 - newer) * AREA_META_BYTES, store->seed,
					     number, i, block_count, &entry) == 0;
		if (!found) {
			area.counts.missing++;
			continue;
		}
		count_entry(&area.counts, &entry);
		if (survey->entry != NULL)
			survey->entry(SLOT((uint64_t)number * per_area + i), &entry, survey->context);
	}
	add_counts(&survey->total, &area.counts);
	if (survey->area != NULL)
		survey->area(&area, survey->context);
}

int survey_store(struct store *store, struct survey *survey)
{
	const struct geometry *geometry = &store->superblock.geometry;
	uint32_t per_area = geometry->slots_per_area, end = store_end(store).index;
	uint8_t *meta = aligned_alloc(AREA_META_BYTES, (size_t)2 * AREA_META_BYTES);
	int error = meta == NULL ? -ENOMEM : 0;

	survey->areas = ((uint64_t)end + per_area - 1) / per_area;
	survey->total = (struct survey_counts){ 0 };
	survey->failed_area = 0;
	for (uint32_t area = 0; area < survey->areas && error == 0; area++) {
		uint32_t left = end - area * per_area;

		survey->failed_area = area;
		for (unsigned c = 0; c < 2 && error == 0; c++)
			error = disk_read_wait(store->host, store->disk, meta + (size_t)c * AREA_META_BYTES,
					       AREA_META_BYTES, geometry_meta_offset(geometry, area, c));
		if (error == 0)
			survey_area(store, survey, area, left < per_area ? left : per_area, meta);
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
