/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Checking one store's log: every metadata copy, every entry and, unless `quick`, the data of every slot.
 *
 * The store is read front to back, whole areas at a time, in reads of 1 MiB; what is ahead of the area being looked
 * at is under way meanwhile (WINDOW_BYTES, and two areas at least). A read that fails is made again for each piece
 * that is needed, so that an error says which one it was. With `quick`, and past the log's end, only the metadata is
 * read.
 *
 *   a clean log        ends at log_slots: all before that must be there
 *   one that is not    is read back first (recover.c), which tells its end and its durable mark. Before the mark all
 *                      must be there; the metadata that the last commits were writing (recover.c says which) may
 *                      be torn. What holds past the end is a torn tail, and no fault.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/check.h"
#include "core/map.h"
#include "core/metadata.h"

#define READ_BYTES (UINT64_C(1) << 20)
#define WINDOW_BYTES (UINT64_C(16) << 20)
#define WINDOW_AREAS_MAX 64u
#define READS_MAX 17u /* the largest area, 254 slots of 64 KiB, takes 16 */
#define PAST_END_AREAS 64u
#define COMPARISONS_MAX 4096u /* duplicates whose first exception is read again */
#define RUNS_NAMED_MAX 16u

struct area_read {
	struct area_window *window;
	int error;
	struct disk_io io;
};

struct area_window {
	uint8_t *memory;
	bool whole; /* the area's bytes as they are on disk; else its two metadata copies */
	unsigned pending, read_count;
	struct area_read reads[READS_MAX];
	struct area_copies both;
};

/* Numbers told in one finding: how many, and the first runs of them. */
struct tally {
	uint64_t count, first, run_first, run_last;
	uint64_t slot; /* of the first */
	unsigned runs;
	char text[RUNS_NAMED_MAX * 48];
};

struct log_check {
	struct check *check;
	struct check_store *of;
	struct store *store;
	struct log_format format;
	uint32_t per_area;
	uint64_t area_bytes;
	bool bounded;          /* the log is clean */
	bool unknown_end;      /* a read error: `end` is only as far as it is known */
	uint64_t end, mark;    /* slots */
	uint32_t unsettled_area; /* areas before it were not being written when a crash came */
	uint32_t areas;        /* those with slots of the log */
	uint32_t there;        /* what the store has room for now */
	uint32_t next, stop;   /* to be read: the next one, and how far for now */
	struct map *map;
	uint8_t *memory, *spare; /* the windows'; AREA_META_BYTES twice */
	struct area_window *windows;
	uint32_t window_count;
	uint64_t header_mark; /* the largest that a header tells, and where */
	uint32_t header_mark_area;
	unsigned header_mark_copy;
	struct tally lost, voids, duplicates, past_end;
	unsigned comparisons;
};

/* ---- reading ---- */

static void area_read_done(struct disk_io *io, int error)
{
	struct area_read *read = container_of(io, struct area_read, io);

	read->error = error;
	read->window->pending--;
}

static void window_add_read(struct area_window *window, struct store_place place, uint8_t *at,
			    uint64_t bytes)
{
	struct area_read *read = &window->reads[window->read_count++];

	assert(window->read_count <= READS_MAX);
	*read = (struct area_read){
		.window = window,
		.io = {
			.disk = place.part->disk,
			.op = DISK_READ,
			.offset = place.offset,
			.length = bytes,
			.single = { .iov_base = at, .iov_len = (size_t)bytes },
			.done = area_read_done,
		},
	};
	window->pending++;
	disk_submit(&read->io);
}

static void window_start(struct log_check *log, uint32_t area)
{
	struct area_window *window = &log->windows[area % log->window_count];
	struct store_place place = store_area_place(log->store, area);

	window->both = (struct area_copies){ .area = area };
	window->whole = !log->check->quick && area < log->areas;
	window->read_count = 0;
	if (window->whole) {
		for (uint64_t at = 0; at < log->area_bytes; at += READ_BYTES, place.offset += READ_BYTES)
			window_add_read(window, place, window->memory + at,
					log->area_bytes - at < READ_BYTES ? log->area_bytes - at : READ_BYTES);
	} else {
		for (unsigned copy = 0; copy < 2; copy++)
			window_add_read(window, store_meta_place(log->store, area, copy),
					window->memory + (size_t)copy * AREA_META_BYTES, AREA_META_BYTES);
	}
	disk_host_push(log->check->host);
}

/* Whether the area's bytes [at, at + bytes) have been read: 0, or the error of reading just these. */
static int window_range(const struct log_check *log, const struct area_window *window, uint64_t at, uint64_t bytes)
{
	struct store_place place = store_area_place(log->store, window->both.area);

	for (uint64_t i = at / READ_BYTES; i <= (at + bytes - 1) / READ_BYTES; i++)
		if (window->reads[i].error != 0)
			return disk_read_wait(log->check->host, place.part->disk, window->memory + at, (size_t)bytes,
					      place.offset + at);
	return 0;
}

static void window_decode(const struct log_check *log, struct area_window *window)
{
	for (unsigned copy = 0; copy < 2; copy++) {
		struct meta_copy *meta = &window->both.copies[copy];
		uint64_t at = copy == 0 ? 0 : log->area_bytes - AREA_META_BYTES;

		if (window->whole) {
			meta->bytes = window->memory + at;
			meta->error = window_range(log, window, at, AREA_META_BYTES);
		} else {
			meta->bytes = window->memory + (size_t)copy * AREA_META_BYTES;
			meta->error = window->reads[copy].error;
		}
		area_copy_decode(&log->format, &window->both, copy);
	}
	area_copies_choose(&window->both);
}

/* ---- tallies ---- */

static void tally_end_run(struct tally *tally)
{
	size_t used = strlen(tally->text);
	const char *comma = tally->runs == 0 ? "" : ", ";

	if (tally->count == 0)
		return;
	if (tally->runs == RUNS_NAMED_MAX)
		(void)snprintf(tally->text + used, sizeof(tally->text) - used, ", ...");
	else if (tally->runs < RUNS_NAMED_MAX && tally->run_first == tally->run_last)
		(void)snprintf(tally->text + used, sizeof(tally->text) - used, "%s%llu", comma,
			       (unsigned long long)tally->run_first);
	else if (tally->runs < RUNS_NAMED_MAX)
		(void)snprintf(tally->text + used, sizeof(tally->text) - used, "%s%llu-%llu", comma,
			       (unsigned long long)tally->run_first, (unsigned long long)tally->run_last);
	tally->runs++;
}

static void tally_add(struct tally *tally, uint64_t number, uint64_t slot)
{
	if (tally->count == 0) {
		tally->first = number;
		tally->slot = slot;
	}
	if (tally->count == 0 || number != tally->run_last + 1) {
		tally_end_run(tally);
		tally->run_first = number;
	}
	tally->run_last = number;
	tally->count++;
}

/* ---- where ---- */

static struct check_finding at_area(const struct log_check *log, enum check_code code, uint32_t area)
{
	struct check_finding at = check_at(log->of, code);

	at.area = area;
	at.part = store_area_part(log->store, area);
	at.offset = store_area_place(log->store, area).offset;
	return at;
}

static struct check_finding at_copy(const struct log_check *log, enum check_code code, uint32_t area, unsigned copy)
{
	struct check_finding at = at_area(log, code, area);

	at.copy = copy;
	at.offset = store_meta_place(log->store, area, copy).offset;
	return at;
}

static struct check_finding at_slot(const struct log_check *log, enum check_code code, uint64_t slot)
{
	struct check_finding at = at_area(log, code, (uint32_t)(slot / log->per_area));

	at.slot = slot;
	at.offset = store_slot_place(log->store, SLOT(slot)).offset;
	return at;
}

/* The byte offset of an entry in metadata copy 0. */
static uint64_t entry_offset(const struct log_check *log, uint64_t slot)
{
	return store_meta_place(log->store, (uint32_t)(slot / log->per_area), 0).offset + AREA_HEADER_BYTES +
	       slot % log->per_area * ENTRY_BYTES;
}

/* ---- the metadata copies ---- */

/* The last commits may have been writing here when a crash came, or when there was no room for what was written. */
static bool may_be_torn(const struct log_check *log, uint32_t area)
{
	if (store_area_slots(log->store, area) < log->per_area)
		return true;
	return !log->bounded && area >= log->unsettled_area;
}

struct copy_state {
	uint32_t bad, missing;
	uint32_t first_bad, first_missing;
};

static struct copy_state look_at_copy(const struct log_check *log, const struct area_copies *both, unsigned which,
				      uint32_t wanted)
{
	const struct meta_copy *copy = &both->copies[which];
	struct copy_state state = { 0 };
	struct entry entry;

	for (uint32_t i = 0; i < wanted; i++) {
		int error = entry_decode(copy->bytes, log->format.seed, both->area, i, log->format.block_count, &entry);

		if (error == 0)
			continue;
		if (error == -ENODATA && !(copy->valid && i < copy->header.entry_count)) {
			if (state.missing++ == 0)
				state.first_missing = i;
		} else if (state.bad++ == 0) {
			state.first_bad = i;
		}
	}
	return state;
}

static void check_copy(struct log_check *log, const struct area_copies *both, unsigned which, uint32_t wanted)
{
	const struct meta_copy *copy = &both->copies[which];
	struct copy_state state;
	bool torn = may_be_torn(log, both->area);
	struct check_finding at;

	if (copy->error != 0) {
		at = at_copy(log, FOUND_METADATA_COPY_UNREADABLE, both->area, which);
		check_tell(log->check, &at, "metadata copy %u of area %u cannot be read (%s)", which, both->area,
			   strerror(-copy->error));
		return;
	}
	state = look_at_copy(log, both, which, wanted);
	if (!copy->valid || state.bad > 0) {
		at = at_copy(log, torn ? FOUND_METADATA_COPY_TORN : FOUND_METADATA_COPY_DAMAGED, both->area, which);
		if (state.bad > 0) {
			at.slot = (uint64_t)both->area * log->per_area + state.first_bad;
			at.count = state.bad;
			check_tell(log->check, &at, "in metadata copy %u of area %u, %u of %u entries do not hold%s",
				   which, both->area, state.bad, wanted, copy->valid ? "" : ", nor does the header");
		} else {
			check_tell(log->check, &at, "the header of metadata copy %u of area %u does not hold%s", which,
				   both->area, state.missing == wanted ? ", and no entry is there" : "");
		}
	} else if (state.missing > 0 && !torn) {
		at = at_copy(log, FOUND_METADATA_COPY_BEHIND, both->area, which);
		at.slot = (uint64_t)both->area * log->per_area + state.first_missing;
		at.count = state.missing;
		check_tell(log->check, &at, "metadata copy %u of area %u has only %u of %u entries", which, both->area,
			   wanted - state.missing, wanted);
	}
}

static void check_copies(struct log_check *log, const struct area_copies *both, uint32_t wanted)
{
	struct entry entries[2];
	uint32_t differ = 0, first = 0;
	struct check_finding at;

	for (unsigned which = 0; which < 2; which++)
		check_copy(log, both, which, wanted);
	for (uint32_t i = 0; i < wanted && !may_be_torn(log, both->area); i++) {
		size_t place = AREA_HEADER_BYTES + (size_t)i * ENTRY_BYTES;

		if (!area_copy_entry(&log->format, both, 0, i, &entries[0]) ||
		    !area_copy_entry(&log->format, both, 1, i, &entries[1]) ||
		    memcmp(both->copies[0].bytes + place, both->copies[1].bytes + place, ENTRY_BYTES) == 0)
			continue;
		if (differ++ == 0)
			first = i;
	}
	if (differ == 0)
		return;
	at = at_copy(log, FOUND_METADATA_COPIES_DIFFER, both->area, 1 - both->first_choice);
	at.slot = (uint64_t)both->area * log->per_area + first;
	at.count = differ;
	check_tell(log->check, &at,
		   "the metadata copies of area %u say different things of %u slots, the first being %llu", both->area, differ, (unsigned long long)at.slot);
}

static void note_header_marks(struct log_check *log, const struct area_copies *both)
{
	for (unsigned which = 0; which < 2; which++) {
		const struct meta_copy *copy = &both->copies[which];

		if (!copy->valid || copy->header.durable_slots <= log->header_mark)
			continue;
		log->header_mark = copy->header.durable_slots;
		log->header_mark_area = both->area;
		log->header_mark_copy = which;
	}
}

/* ---- entries that are not there ---- */

static enum check_code missing_code(const struct log_check *log, const struct area_copies *both, uint32_t index)
{
	enum check_code code = FOUND_ENTRY_LOST;
	struct entry entry;

	for (unsigned which = 0; which < 2; which++) {
		const struct meta_copy *copy = &both->copies[which];

		if (copy->error != 0)
			return FOUND_ENTRY_UNREADABLE;
		if (entry_decode(copy->bytes, log->format.seed, both->area, index, log->format.block_count, &entry) ==
		    -EINVAL)
			code = FOUND_ENTRY_OUT_OF_RANGE;
	}
	return code;
}

static void tell_missing(struct log_check *log, enum check_code code, uint64_t slot, uint64_t count)
{
	struct check_finding at = at_slot(log, code, slot);
	const char *what = "does not hold in either metadata copy";

	if (code == FOUND_ENTRY_UNREADABLE)
		what = "cannot be read";
	else if (code == FOUND_ENTRY_OUT_OF_RANGE)
		what = "names blocks that the origin does not have, or a type that there is not";
	at.offset = entry_offset(log, slot);
	at.count = count;
	if (count == 1)
		check_tell(log->check, &at, "the entry of slot %llu %s", (unsigned long long)slot, what);
	else
		check_tell(log->check, &at, "each entry of slots %llu-%llu %s", (unsigned long long)slot,
			   (unsigned long long)(slot + count - 1), what);
}

/* ---- duplicates ---- */

static uint32_t zero_checksum(const struct log_check *log)
{
	static const uint8_t zeroes[BLOCK_BYTES_MAX];

	return data_checksum(log->format.seed, zeroes, log->format.geometry.block_bytes);
}

/* The entry of a slot that was passed already. */
static bool read_entry(const struct log_check *log, slot_t slot, struct entry *entry)
{
	struct area_copies both = { .area = geometry_slot_area(&log->format.geometry, slot) };

	for (unsigned which = 0; which < 2; which++) {
		struct meta_copy *copy = &both.copies[which];
		struct store_place place = store_meta_place(log->store, both.area, which);

		copy->bytes = log->spare + (size_t)which * AREA_META_BYTES;
		copy->error = disk_read_wait(log->check->host, place.part->disk,
					     log->spare + (size_t)which * AREA_META_BYTES, AREA_META_BYTES, place.offset);
		area_copy_decode(&log->format, &both, which);
	}
	area_copies_choose(&both);
	return area_copies_entry(&log->format, &both, geometry_slot_in_area(&log->format.geometry, slot), entry);
}

/* Two exceptions of one block must have the same content: both are said to be what the snapshot holds. */
static void compare_duplicate(struct log_check *log, uint64_t slot, const struct entry *entry)
{
	struct map_run run = map_find(log->map, entry->block, 1);
	struct check_finding at = at_slot(log, FOUND_EXCEPTION_CONTRADICTED, slot);
	struct entry first;

	if (entry->type != ENTRY_DATA || log->comparisons == COMPARISONS_MAX)
		return;
	log->comparisons++;
	if (run.kind == MAP_LOST || (run.kind == MAP_ZERO && entry->data_checksum == zero_checksum(log)))
		return;
	if (run.kind == MAP_SLOT && (!read_entry(log, run.slot, &first) || first.data_checksum == entry->data_checksum))
		return;
	at.block = entry->block;
	if (run.kind == MAP_SLOT)
		check_tell(log->check, &at, "slot %llu has other content of block %llu than slot %u",
			   (unsigned long long)slot, (unsigned long long)entry->block, run.slot.index);
	else
		check_tell(log->check, &at, "slot %llu has content of block %llu, which an entry before says is zero",
			   (unsigned long long)slot, (unsigned long long)entry->block);
}

static int note_exception(struct log_check *log, uint64_t slot, const struct entry *entry)
{
	uint64_t before = map_block_count(log->map), fresh;
	enum map_kind kind = entry->type == ENTRY_DATA ? MAP_SLOT : entry->type == ENTRY_ZERO ? MAP_ZERO : MAP_LOST;
	int error = map_add(log->map, entry->block, entry->count, kind, SLOT(slot));

	if (error != 0)
		return error;
	fresh = map_block_count(log->map) - before;
	if (fresh < entry->count) {
		tally_add(&log->duplicates, slot, slot);
		compare_duplicate(log, slot, entry);
	} else if (entry->type == ENTRY_LOST) {
		tally_add(&log->lost, entry->block, slot);
	}
	return 0;
}

/* ---- entries that are there ---- */

/* The data's checksum, as far as it can be read. */
static void check_data(struct log_check *log, const struct area_window *window, uint64_t slot,
		       const struct entry *entry)
{
	uint32_t block_bytes = log->format.geometry.block_bytes;
	uint64_t place = AREA_META_BYTES + slot % log->per_area * block_bytes;
	int error = window_range(log, window, place, block_bytes);
	bool is_block = entry->type == ENTRY_DATA;
	struct check_finding at = at_slot(log, FOUND_DATA_UNREADABLE, slot);

	if (is_block)
		at.block = entry->block;
	if (error == 0 &&
	    data_checksum(log->format.seed, window->memory + place, block_bytes) == entry->data_checksum) {
		log->of->blocks_verified++;
		log->of->bytes_verified += block_bytes;
		return;
	}
	if (error == 0)
		at.code = is_block ? FOUND_DATA_DAMAGED : FOUND_FINGERPRINT_DAMAGED;
	if (is_block)
		check_tell(log->check, &at, "block %llu, in slot %llu, %s%s", (unsigned long long)entry->block,
			   (unsigned long long)slot, error != 0 ? "cannot be read: " : "does not match its checksum",
			   error != 0 ? strerror(-error) : "");
	else
		check_tell(log->check, &at, "the fingerprint of the origin in slot %llu %s%s", (unsigned long long)slot,
			   error != 0 ? "cannot be read: " : "does not match its checksum",
			   error != 0 ? strerror(-error) : "");
}

static int check_entry(struct log_check *log, const struct area_window *window, uint64_t slot,
		       const struct entry *entry)
{
	log->of->entries++;
	switch (entry->type) {
	case ENTRY_DATA:
		if (window->whole)
			check_data(log, window, slot, entry);
		return note_exception(log, slot, entry);
	case ENTRY_ZERO:
	case ENTRY_LOST:
		return note_exception(log, slot, entry);
	case ENTRY_VOID:
		tally_add(&log->voids, slot, slot);
		return 0;
	case ENTRY_FINGERPRINT:
		if (window->whole)
			check_data(log, window, slot, entry);
		return 0;
	}
	return 0;
}

static int check_entries(struct log_check *log, const struct area_window *window, uint32_t wanted)
{
	uint64_t first = (uint64_t)window->both.area * log->per_area, run = 0;
	enum check_code run_code = FOUND_ENTRY_LOST;
	int error = 0;

	for (uint32_t i = 0; i <= wanted && error == 0; i++) {
		bool there = false;
		struct entry entry;
		enum check_code code = FOUND_ENTRY_LOST;

		if (i < wanted) {
			there = area_copies_entry(&log->format, &window->both, i, &entry);
			if (!there)
				code = missing_code(log, &window->both, i);
		}
		if (run > 0 && (i == wanted || there || code != run_code)) {
			tell_missing(log, run_code, first + i - run, run);
			run = 0;
		}
		if (there) {
			error = check_entry(log, window, first + i, &entry);
		} else {
			run_code = code;
			run++;
		}
	}
	return error;
}

/* What holds past the log's end; where there is something, it is looked further. */
static void check_past_end(struct log_check *log, const struct area_copies *both, uint32_t from)
{
	uint32_t before = log->stop;
	struct entry entry;

	for (uint32_t i = from; i < store_area_slots(log->store, both->area); i++) {
		uint64_t slot = (uint64_t)both->area * log->per_area + i;

		if (!area_copies_entry(&log->format, both, i, &entry))
			continue;
		tally_add(&log->past_end, slot, slot);
		log->of->tail_areas = both->area + 1;
		log->stop = log->there - both->area > PAST_END_AREAS ? both->area + 1 + PAST_END_AREAS : log->there;
	}
	if (log->stop < before)
		log->stop = before;
}

static int check_area(struct log_check *log, struct area_window *window)
{
	struct area_copies *both = &window->both;
	uint64_t first = (uint64_t)both->area * log->per_area;
	uint32_t wanted = 0, slots = store_area_slots(log->store, both->area);
	int error;

	window_decode(log, window);
	note_header_marks(log, both);
	if (both->area < log->areas) {
		wanted = log->end - first < slots ? (uint32_t)(log->end - first) : slots;
		check_copies(log, both, wanted);
		error = check_entries(log, window, wanted);
		if (error != 0)
			return error;
		log->of->areas++;
	}
	if (wanted < slots)
		check_past_end(log, both, wanted);
	return 0;
}

static int run(struct log_check *log)
{
	int error = 0;

	for (uint32_t area = 0; area < log->stop; area++) {
		struct area_window *window = &log->windows[area % log->window_count];

		for (; log->next < log->stop && log->next < area + log->window_count; log->next++)
			window_start(log, log->next);
		while (window->pending > 0)
			disk_host_wait(log->check->host);
		if (error == 0)
			error = check_area(log, window);
		if (error != 0)
			log->stop = log->next; /* what is under way must end */
		if (log->check->progress != NULL)
			log->check->progress(log->of, (uint64_t)area + 1, log->stop, log->check->context);
	}
	return error;
}

/* ---- what is known before, and after ---- */

/* A read error stopped recovery, which reads several slots at once: which one it was, from slot `end` to its area's. */
static uint64_t first_unreadable(const struct log_check *log)
{
	uint8_t *block = aligned_alloc(AREA_META_BYTES, BLOCK_BYTES_MAX);
	uint64_t slot = log->end;

	for (; block != NULL && slot / log->per_area == log->end / log->per_area; slot++) {
		struct store_place place = store_slot_place(log->store, SLOT(slot));
		int error = disk_read_wait(log->check->host, place.part->disk, block, log->format.geometry.block_bytes,
					   place.offset);

		if (error == 0)
			continue;
		free(block);
		return slot;
	}
	free(block);
	return log->end; /* its metadata, then */
}

/* The log's end and the durable mark of a store that was not stopped cleanly. */
static int find_end(struct log_check *log)
{
	struct recovery recovery = { .writable = false };
	int error = store_recover(log->store, &recovery);
	struct check_finding at = check_at(log->of, FOUND_STORE_NOT_STOPPED);

	map_destroy(log->store->map);
	log->store->map = NULL;
	if (error == -ENOMEM)
		return error;
	log->end = recovery.end_slots;
	log->mark = recovery.durable_slots;
	log->unsettled_area = recovery.unsettled_area;
	check_tell(log->check, &at,
		   "was not stopped cleanly: its log goes to slot %llu%s, of which %llu are known durable",
		   (unsigned long long)log->end, error != 0 ? " at least" : "", (unsigned long long)log->mark);
	if (error != 0) {
		log->unknown_end = true;
		log->of->end_slots = log->end;
		at = at_slot(log, FOUND_TAIL_UNREADABLE, first_unreadable(log));
		check_tell(log->check, &at, "what follows the durable mark cannot be read at slot %llu: %s",
			   (unsigned long long)at.slot, strerror(-error));
	}
	return 0;
}

static void cut_to_what_is_there(struct log_check *log)
{
	uint64_t there = (uint64_t)log->there * log->per_area, wanted = log->bounded ? log->end : log->mark;
	struct check_finding at;

	if (log->end > there)
		log->end = there;
	/* The mark stays: what lies before it was not being written when the crash came. */
	log->of->end_slots = log->end;
	log->of->durable_slots = log->mark < there ? log->mark : there;
	if (wanted <= there)
		return;
	at = at_area(log, FOUND_STORE_TRUNCATED, log->there);
	at.slot = there;
	at.count = wanted - there;
	check_tell(log->check, &at, "its log goes to slot %llu, but the store has room for %llu only",
		   (unsigned long long)wanted, (unsigned long long)there);
}

static void tell_tally(struct log_check *log, enum check_code code, struct tally *tally, const char *what)
{
	struct check_finding at;

	if (tally->count == 0)
		return;
	tally_end_run(tally);
	at = at_slot(log, code, tally->slot);
	at.count = tally->count;
	if (code == FOUND_BLOCKS_LOST)
		at.block = tally->first;
	check_tell(log->check, &at, "%llu %s: %s", (unsigned long long)tally->count, what, tally->text);
}

static void tell_sums(struct log_check *log)
{
	struct check_finding at;

	tell_tally(log, FOUND_BLOCKS_LOST, &log->lost, "blocks are lost");
	tell_tally(log, FOUND_SLOTS_VOID, &log->voids, "slots are void");
	tell_tally(log, FOUND_EXCEPTION_DUPLICATE, &log->duplicates,
		   "slots have exceptions of blocks that have one already");
	if (log->bounded)
		tell_tally(log, FOUND_LEFTOVERS_PAST_END, &log->past_end, "slots past the log's end have entries");
	else if (!log->unknown_end)
		tell_tally(log, FOUND_TAIL_TORN, &log->past_end, "slots past the log's end have entries");
	/* One that was truncated, or ended where it was, is told as that. */
	if (!log->bounded || log->header_mark <= log->end || log->end >= (uint64_t)log->there * log->per_area)
		return;
	log->of->mark_past_end = log->header_mark;
	at = at_copy(log, FOUND_MARK_PAST_END, log->header_mark_area, log->header_mark_copy);
	at.slot = log->end;
	at.count = log->header_mark - log->end;
	check_tell(log->check, &at,
		   "the superblock says that the log ends at slot %llu, the metadata of area %u that %llu were durable",
		   (unsigned long long)log->end, log->header_mark_area, (unsigned long long)log->header_mark);
}

static int prepare(struct log_check *log)
{
	const struct superblock *superblock = &log->store->superblock;
	uint64_t count = WINDOW_BYTES / log->area_bytes;
	size_t metas = (size_t)2 * AREA_META_BYTES, room = log->check->quick ? metas : (size_t)log->area_bytes;

	log->bounded = superblock->clean;
	log->there = (uint32_t)(store_slots_there(log->store) / log->per_area);
	log->end = superblock->log_slots;
	log->mark = superblock->log_slots;
	if (!log->bounded && find_end(log) != 0)
		return -ENOMEM;
	cut_to_what_is_there(log);
	log->areas = (uint32_t)((log->end + log->per_area - 1) / log->per_area);
	log->stop = log->there - log->areas > PAST_END_AREAS ? log->areas + PAST_END_AREAS : log->there;
	if (count > WINDOW_AREAS_MAX || log->check->quick)
		count = WINDOW_AREAS_MAX;
	log->window_count = count < 2 ? 2 : (uint32_t)count;
	log->windows = calloc(log->window_count, sizeof(*log->windows));
	log->memory = aligned_alloc(AREA_META_BYTES, room * log->window_count + metas);
	if (log->windows == NULL || log->memory == NULL)
		return -ENOMEM;
	for (uint32_t i = 0; i < log->window_count; i++)
		log->windows[i].memory = log->memory + room * i;
	log->spare = log->memory + room * log->window_count;
	return map_create(log->format.block_count, &log->map);
}

int check_log(struct check *check, struct check_store *one)
{
	struct log_check *log = calloc(1, sizeof(*log));
	int error;

	if (log == NULL)
		return -ENOMEM;
	log->check = check;
	log->of = one;
	log->store = one->store;
	log->format = log_format_of(one->store);
	log->per_area = log->format.geometry.slots_per_area;
	log->area_bytes = geometry_area_bytes(&log->format.geometry);
	error = prepare(log);
	if (error == 0)
		error = run(log);
	if (error == 0)
		tell_sums(log);
	map_destroy(log->map);
	free(log->windows);
	free(log->memory);
	free(log);
	return error;
}
