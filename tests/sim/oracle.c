/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What may be read.
 *
 * A cell is one 512-byte sector of the origin: writes of clients are carried out on it whole or not at all. Its values:
 *
 *   content    what it would hold; contents are numbered, equal ones alike; WILD is anything (after a discard)
 *   applied    which of the writes under way are in it already (a bit for each)
 *   until      when the cell ceased to hold it; FOREVER: it may hold it now
 *   durable    a power cut may bring it back
 *
 * 1. A write that begins adds, for every value the cell may hold now, the same with the write applied, in every order
 *    with the others under way. When it ends well, what does not have it has ceased; when it fails, nothing has.
 * 2. A flush that began at t and succeeded: what ceased before t cannot come back. FUA: what does not have it cannot
 *    come back.
 * 3. A read that began at t may find what has not ceased before t. Found in a quiet cell, it is what the cell holds.
 * 4. A snapshot's cell holds one of the values that the origin's cell may hold between the asking and the answer. What
 *    is read first is what it holds from then on.
 */
#include <stdio.h>
#include <stdlib.h>
#include <xxhash.h>

#include "tests/sim/sim.h"

#define FOREVER UINT64_MAX
#define WILD 0u
#define ZEROES 1u
#define BUCKETS 4096u

struct content {
	uint8_t bytes[SECTOR_BYTES];
	uint64_t hash;
	uint32_t next; /* in its bucket; 0: none */
};

struct value {
	uint32_t content;
	uint32_t applied;
	uint64_t until;
	bool durable;
};

struct cell {
	struct value *values;
	unsigned count, size;
	bool borrowed; /* the values lie in the clone's memory */
	uint64_t touched; /* when a write began or ended here last */
	struct oracle_write *writes[WRITES_PER_CELL];
};

struct choice {
	uint32_t *contents;
	unsigned count, size;
	bool borrowed;
};

struct oracle_snapshot {
	char name[64];
	bool open; /* being taken */
	struct choice *cells;
	struct list link;
};

/* All that was ever seen; of an oracle and its clones. */
struct library {
	struct content *contents;
	uint32_t content_count, content_size;
	uint32_t buckets[BUCKETS];
};

struct oracle {
	uint64_t cell_count, clock, oldest;
	struct cell *cells;
	struct list snapshots;
	struct library *library;
	bool is_clone;
	void *memory; /* a clone's values and choices */
};

/* ---- contents ---- */

static const uint8_t *content_bytes(const struct oracle *oracle, uint32_t content)
{
	return oracle->library->contents[content].bytes;
}

static uint32_t content_number(struct oracle *oracle, const uint8_t *bytes)
{
	struct library *library = oracle->library;
	uint64_t hash = XXH3_64bits(bytes, SECTOR_BYTES);
	uint32_t *bucket = &library->buckets[hash % BUCKETS];
	struct content *content;

	for (uint32_t at = *bucket; at != 0; at = library->contents[at].next)
		if (library->contents[at].hash == hash && memcmp(library->contents[at].bytes, bytes, SECTOR_BYTES) == 0)
			return at;
	if (library->content_count == library->content_size) {
		library->content_size *= 2;
		library->contents = sim_resize(library->contents, library->content_size, sizeof(*library->contents));
	}
	content = &library->contents[library->content_count];
	memcpy(content->bytes, bytes, SECTOR_BYTES);
	content->hash = hash;
	content->next = *bucket;
	*bucket = library->content_count;
	return library->content_count++;
}

/* The content of cell `index` after `write` upon `content`. */
static uint32_t content_after(struct oracle *oracle, const struct oracle_write *write, uint64_t index, uint32_t content)
{
	uint64_t cell = index * SECTOR_BYTES, end = write->offset + write->length;
	uint64_t from = write->offset > cell ? write->offset : cell;
	uint64_t to = end < cell + SECTOR_BYTES ? end : cell + SECTOR_BYTES;
	uint8_t bytes[SECTOR_BYTES];

	if (write->discard)
		return WILD;
	if (content == WILD && to - from < SECTOR_BYTES)
		return WILD;
	memcpy(bytes, content_bytes(oracle, content), SECTOR_BYTES);
	if (write->data != NULL)
		memcpy(bytes + (from - cell), write->data + (from - write->offset), (size_t)(to - from));
	else
		memset(bytes + (from - cell), 0, (size_t)(to - from));
	return content_number(oracle, bytes);
}

/* ---- choices ---- */

/* Room for `size` of which `count` are there, which may lie in somebody else's memory. */
static void *grow(void *memory, unsigned count, unsigned size, size_t bytes, bool *borrowed)
{
	void *larger;

	if (!*borrowed)
		return sim_resize(memory, size, bytes);
	larger = sim_resize(NULL, size, bytes);
	memcpy(larger, memory, count * bytes);
	*borrowed = false;
	return larger;
}

static void choice_add(struct choice *choice, uint32_t content)
{
	for (unsigned i = 0; i < choice->count; i++)
		if (choice->contents[i] == content)
			return;
	if (choice->count == choice->size) {
		choice->size = choice->size == 0 ? 2 : choice->size * 2;
		choice->contents = grow(choice->contents, choice->count, choice->size, sizeof(*choice->contents),
					&choice->borrowed);
	}
	choice->contents[choice->count++] = content;
}

/* ---- cells ---- */

static void value_add(struct oracle *oracle, uint64_t index, uint32_t content, uint32_t applied)
{
	struct cell *cell = &oracle->cells[index];

	for (unsigned i = 0; i < cell->count; i++)
		if (cell->values[i].until == FOREVER && cell->values[i].content == content &&
		    cell->values[i].applied == applied) {
			cell->values[i].durable = true;
			return;
		}
	if (cell->count == cell->size) {
		cell->size = cell->size == 0 ? 2 : cell->size * 2;
		cell->values = grow(cell->values, cell->count, cell->size, sizeof(*cell->values), &cell->borrowed);
	}
	cell->values[cell->count++] = (struct value){ content, applied, FOREVER, true };
	list_for_each(link, &oracle->snapshots) {
		struct oracle_snapshot *snapshot = container_of(link, struct oracle_snapshot, link);

		if (snapshot->open)
			choice_add(&snapshot->cells[index], content);
	}
}

/* Removes what can neither come back nor be found by a read under way, and what is there twice. */
static void cell_prune(const struct oracle *oracle, struct cell *cell)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < cell->count; i++) {
		const struct value *value = &cell->values[i];
		bool wanted = value->until == FOREVER || value->durable || value->until >= oracle->oldest;

		for (unsigned j = 0; j < kept && wanted; j++) {
			struct value *other = &cell->values[j];

			if (other->content != value->content || other->applied != value->applied ||
			    (other->until == FOREVER) != (value->until == FOREVER))
				continue;
			other->until = other->until > value->until ? other->until : value->until;
			other->durable = other->durable || value->durable;
			wanted = false;
		}
		if (wanted)
			cell->values[kept++] = *value;
	}
	cell->count = kept;
}

struct oracle *oracle_create(uint64_t origin_bytes)
{
	struct oracle *oracle = sim_take(sizeof(*oracle));
	static const uint8_t zeroes[SECTOR_BYTES];

	oracle->cell_count = origin_bytes / SECTOR_BYTES;
	oracle->cells = sim_take((size_t)oracle->cell_count * sizeof(*oracle->cells));
	oracle->library = sim_take(sizeof(*oracle->library));
	oracle->library->content_size = 1024;
	oracle->library->contents = sim_take(oracle->library->content_size * sizeof(struct content));
	list_init(&oracle->snapshots);
	oracle->library->content_count = ZEROES;
	if (content_number(oracle, zeroes) != ZEROES)
		sim_fail("zeroes are not ZEROES");
	for (uint64_t i = 0; i < oracle->cell_count; i++)
		value_add(oracle, i, ZEROES, 0);
	return oracle;
}

void oracle_destroy(struct oracle *oracle)
{
	list_for_each_safe(link, &oracle->snapshots)
		oracle_snapshot_destroy(oracle, container_of(link, struct oracle_snapshot, link));
	for (uint64_t i = 0; i < oracle->cell_count; i++)
		if (!oracle->cells[i].borrowed)
			sim_give(oracle->cells[i].values);
	if (!oracle->is_clone) {
		sim_give(oracle->library->contents);
		sim_give(oracle->library);
	}
	sim_give(oracle->cells);
	sim_give(oracle->memory);
	sim_give(oracle);
}

/* ---- clones ---- */

static size_t clone_bytes(const struct oracle *oracle)
{
	size_t bytes = 0;

	for (uint64_t i = 0; i < oracle->cell_count; i++) {
		bytes += oracle->cells[i].count * sizeof(struct value);
		list_for_each(link, &oracle->snapshots)
			bytes += container_of(link, struct oracle_snapshot, link)->cells[i].count * sizeof(uint32_t);
	}
	return bytes;
}

static void snapshot_clone(struct oracle *oracle, const struct oracle_snapshot *from, uint8_t **memory)
{
	struct oracle_snapshot *snapshot = sim_take(sizeof(*snapshot));

	*snapshot = *from;
	snapshot->cells = sim_resize(NULL, (size_t)oracle->cell_count, sizeof(*snapshot->cells));
	for (uint64_t i = 0; i < oracle->cell_count; i++) {
		struct choice *choice = &snapshot->cells[i];

		*choice = from->cells[i];
		memcpy(*memory, choice->contents, choice->count * sizeof(*choice->contents));
		choice->contents = (uint32_t *)(void *)*memory;
		choice->size = choice->count;
		choice->borrowed = true;
		*memory += choice->count * sizeof(*choice->contents);
	}
	list_append(&oracle->snapshots, &snapshot->link);
}

struct oracle *oracle_clone(struct oracle *from)
{
	struct oracle *oracle = sim_take(sizeof(*oracle));
	uint8_t *memory = sim_resize(NULL, clone_bytes(from) + 1, 1);

	*oracle = *from;
	oracle->is_clone = true;
	oracle->memory = memory;
	oracle->cells = sim_resize(NULL, (size_t)from->cell_count, sizeof(*oracle->cells));
	list_init(&oracle->snapshots);
	for (uint64_t i = 0; i < oracle->cell_count; i++) {
		struct cell *cell = &oracle->cells[i];

		*cell = from->cells[i];
		memcpy(memory, cell->values, cell->count * sizeof(*cell->values));
		cell->values = (struct value *)(void *)memory;
		cell->size = cell->count;
		cell->borrowed = true;
		memory += cell->count * sizeof(*cell->values);
	}
	list_for_each(link, &from->snapshots)
		snapshot_clone(oracle, container_of(link, struct oracle_snapshot, link), &memory);
	return oracle;
}

struct oracle_snapshot *oracle_snapshot_find(const struct oracle *oracle, const char *name)
{
	list_for_each(link, &oracle->snapshots) {
		struct oracle_snapshot *snapshot = container_of(link, struct oracle_snapshot, link);

		if (strcmp(snapshot->name, name) == 0)
			return snapshot;
	}
	return NULL;
}

void oracle_set(struct oracle *oracle, uint64_t offset, const uint8_t *data, uint64_t bytes)
{
	for (uint64_t at = 0; at < bytes; at += SECTOR_BYTES)
		oracle->cells[(offset + at) / SECTOR_BYTES].values[0].content = content_number(oracle, data + at);
}

uint64_t oracle_time(struct oracle *oracle)
{
	return ++oracle->clock;
}

/* ---- writes ---- */

static void write_cells(const struct oracle_write *write, uint64_t *first, uint64_t *end)
{
	*first = write->offset / SECTOR_BYTES;
	*end = (write->offset + write->length + SECTOR_BYTES - 1) / SECTOR_BYTES;
}

bool oracle_has_room(const struct oracle *oracle, uint64_t offset, uint64_t length)
{
	for (uint64_t i = offset / SECTOR_BYTES; i < (offset + length + SECTOR_BYTES - 1) / SECTOR_BYTES; i++) {
		unsigned busy = 0;

		for (unsigned bit = 0; bit < WRITES_PER_CELL; bit++)
			busy += oracle->cells[i].writes[bit] != NULL;
		if (busy + 1 >= WRITES_PER_CELL)
			return false;
	}
	return true;
}

static void cell_write_begin(struct oracle *oracle, uint64_t index, struct oracle_write *write)
{
	struct cell *cell = &oracle->cells[index];
	unsigned bit = 0;

	while (cell->writes[bit] != NULL)
		bit++;
	cell->writes[bit] = write;
	cell->touched = oracle->clock;
	/* The list grows under this loop: so what was added is the base of more. */
	for (unsigned i = 0; i < cell->count; i++) {
		struct value value = cell->values[i];

		for (bit = 0; bit < WRITES_PER_CELL && value.until == FOREVER; bit++)
			if (cell->writes[bit] != NULL && (value.applied & 1u << bit) == 0)
				value_add(oracle, index, content_after(oracle, cell->writes[bit], index, value.content),
					  value.applied | 1u << bit);
	}
}

void oracle_write_begin(struct oracle *oracle, struct oracle_write *write)
{
	uint64_t first, end;

	oracle->clock++;
	write_cells(write, &first, &end);
	for (uint64_t i = first; i < end && write->length > 0; i++)
		cell_write_begin(oracle, i, write);
}

static void cell_write_end(struct oracle *oracle, struct cell *cell, const struct oracle_write *write, bool ok)
{
	unsigned bit = 0;

	while (cell->writes[bit] != write)
		bit++;
	cell->writes[bit] = NULL;
	cell->touched = oracle->clock;
	for (unsigned i = 0; i < cell->count; i++) {
		struct value *value = &cell->values[i];

		if (ok && !write->discard && (value->applied & 1u << bit) == 0) {
			if (value->until == FOREVER)
				value->until = oracle->clock;
			if (write->fua)
				value->durable = false;
		}
		value->applied &= ~(1u << bit);
	}
	cell_prune(oracle, cell);
}

void oracle_write_end(struct oracle *oracle, struct oracle_write *write, bool ok)
{
	uint64_t first, end;

	oracle->clock++;
	write_cells(write, &first, &end);
	for (uint64_t i = first; i < end && write->length > 0; i++)
		cell_write_end(oracle, &oracle->cells[i], write, ok);
}

void oracle_flush_end(struct oracle *oracle, uint64_t begun)
{
	for (uint64_t i = 0; i < oracle->cell_count; i++) {
		struct cell *cell = &oracle->cells[i];

		if (cell->count == 1)
			continue;
		for (unsigned j = 0; j < cell->count; j++)
			if (cell->values[j].until < begun)
				cell->values[j].durable = false;
		cell_prune(oracle, cell);
	}
}

void oracle_prune(struct oracle *oracle, uint64_t oldest)
{
	oracle->oldest = oldest;
}

/* ---- reads ---- */

static void describe(const struct oracle *oracle, uint32_t content, char *text, size_t size)
{
	const uint8_t *bytes = content_bytes(oracle, content);

	if (content == WILD)
		(void)snprintf(text, size, "(anything)");
	else if (content == ZEROES)
		(void)snprintf(text, size, "zeroes");
	else
		(void)snprintf(text, size, "%02x%02x%02x%02x.. (%u)", bytes[0], bytes[1], bytes[2], bytes[3], content);
}

static uint32_t content_found(struct oracle *oracle, const uint8_t *data, uint64_t at, uint64_t index, uint64_t offset,
			      uint64_t length, uint32_t expected)
{
	uint64_t cell = index * SECTOR_BYTES;
	uint64_t from = offset > cell ? offset : cell;
	uint64_t to = offset + length < cell + SECTOR_BYTES ? offset + length : cell + SECTOR_BYTES;
	uint8_t bytes[SECTOR_BYTES] = { 0 };

	(void)at;
	if (expected != WILD)
		memcpy(bytes, content_bytes(oracle, expected), SECTOR_BYTES);
	if (data != NULL)
		memcpy(bytes + (from - cell), data + (from - offset), (size_t)(to - from));
	else
		memset(bytes + (from - cell), 0, (size_t)(to - from));
	return content_number(oracle, bytes);
}

/* Whether the part of cell `index` that was read is that of `content`; *whole: all of the cell was read. */
static bool cell_matches(const struct oracle *oracle, uint64_t index, uint64_t offset, uint64_t length,
			 const uint8_t *data, uint32_t content, bool *whole)
{
	static const uint8_t zeroes[SECTOR_BYTES];
	uint64_t cell = index * SECTOR_BYTES;
	uint64_t from = offset > cell ? offset : cell;
	uint64_t to = offset + length < cell + SECTOR_BYTES ? offset + length : cell + SECTOR_BYTES;

	*whole = to - from == SECTOR_BYTES;
	return content == WILD || memcmp(content_bytes(oracle, content) + (from - cell),
					 data != NULL ? data + (from - offset) : zeroes, (size_t)(to - from)) == 0;
}

static bool cell_is_quiet(const struct cell *cell, uint64_t since)
{
	for (unsigned bit = 0; bit < WRITES_PER_CELL; bit++)
		if (cell->writes[bit] != NULL)
			return false;
	return cell->touched < since;
}

/* Rule 3's second half. */
static void cell_narrow(struct oracle *oracle, uint64_t index, uint64_t offset, uint64_t length, const uint8_t *data)
{
	struct cell *cell = &oracle->cells[index];
	uint32_t content = content_found(oracle, data, 0, index, offset, length, WILD);

	for (unsigned i = 0; i < cell->count; i++)
		if (cell->values[i].until == FOREVER && cell->values[i].content != content)
			cell->values[i].until = oracle->clock;
	value_add(oracle, index, content, 0);
	cell_prune(oracle, cell);
}

static void cell_check(struct oracle *oracle, uint64_t index, uint64_t begun, uint64_t offset, uint64_t length,
		       const uint8_t *data)
{
	struct cell *cell = &oracle->cells[index];
	bool whole = false, found = false;
	char text[64];

	for (unsigned i = 0; i < cell->count && !found; i++)
		found = cell->values[i].until >= begun &&
			cell_matches(oracle, index, offset, length, data, cell->values[i].content, &whole);
	if (found) {
		if (whole && (cell->count > 1 || cell->values[0].content == WILD) && cell_is_quiet(cell, begun))
			cell_narrow(oracle, index, offset, length, data);
		return;
	}
	describe(oracle, content_found(oracle, data, 0, index, offset, length, WILD), text, sizeof(text));
	printf("# the origin's sector %llu (byte %llu) reads as %s; it may be:\n", (unsigned long long)index,
	       (unsigned long long)index * SECTOR_BYTES, text);
	for (unsigned i = 0; i < cell->count; i++) {
		describe(oracle, cell->values[i].content, text, sizeof(text));
		printf("#   %s%s%s\n", text, cell->values[i].until < begun ? ", but that ceased" : "",
		       cell->values[i].durable ? ", may survive a power cut" : "");
	}
	sim_fail("the origin has wrong data");
}

void oracle_check_origin(struct oracle *oracle, uint64_t begun, uint64_t offset, uint64_t length, const uint8_t *data)
{
	oracle->clock++;
	for (uint64_t i = offset / SECTOR_BYTES; i < (offset + length + SECTOR_BYTES - 1) / SECTOR_BYTES; i++)
		cell_check(oracle, i, begun, offset, length, data);
}

/* ---- crashes ---- */

void oracle_power_cut(struct oracle *oracle)
{
	oracle->clock++;
	oracle->oldest = oracle->clock;
	for (uint64_t i = 0; i < oracle->cell_count; i++) {
		struct cell *cell = &oracle->cells[i];

		for (unsigned j = 0; j < cell->count; j++) {
			cell->values[j].until = cell->values[j].durable ? FOREVER : 0;
			cell->values[j].applied = 0;
		}
		memset(cell->writes, 0, sizeof(cell->writes));
		cell_prune(oracle, cell);
	}
}

void oracle_kill(struct oracle *oracle, bool cache_lost)
{
	oracle->clock++;
	oracle->oldest = oracle->clock;
	for (uint64_t i = 0; i < oracle->cell_count; i++) {
		struct cell *cell = &oracle->cells[i];

		for (unsigned j = 0; j < cell->count; j++) {
			if (cache_lost && cell->values[j].durable)
				cell->values[j].until = FOREVER;
			cell->values[j].applied = 0;
		}
		memset(cell->writes, 0, sizeof(cell->writes));
		cell_prune(oracle, cell);
	}
}

/* ---- snapshots ---- */

struct oracle_snapshot *oracle_snapshot_begin(struct oracle *oracle, const char *name)
{
	struct oracle_snapshot *snapshot = sim_take(sizeof(*snapshot));

	snapshot->cells = sim_take((size_t)oracle->cell_count * sizeof(*snapshot->cells));
	(void)snprintf(snapshot->name, sizeof(snapshot->name), "%s", name);
	snapshot->open = true;
	list_append(&oracle->snapshots, &snapshot->link);
	for (uint64_t i = 0; i < oracle->cell_count; i++)
		for (unsigned j = 0; j < oracle->cells[i].count; j++)
			if (oracle->cells[i].values[j].until == FOREVER)
				choice_add(&snapshot->cells[i], oracle->cells[i].values[j].content);
	return snapshot;
}

void oracle_snapshot_end(struct oracle *oracle, struct oracle_snapshot *snapshot)
{
	(void)oracle;
	snapshot->open = false;
}

void oracle_snapshot_destroy(struct oracle *oracle, struct oracle_snapshot *snapshot)
{
	for (uint64_t i = 0; i < oracle->cell_count; i++)
		if (!snapshot->cells[i].borrowed)
			sim_give(snapshot->cells[i].contents);
	sim_give(snapshot->cells);
	list_remove(&snapshot->link);
	sim_give(snapshot);
}

static void choice_check(struct oracle *oracle, const struct oracle_snapshot *snapshot, uint64_t index, uint64_t offset,
			 uint64_t length, const uint8_t *data)
{
	struct choice *choice = &snapshot->cells[index];
	unsigned kept = 0;
	bool whole = false;
	char text[64];
	uint32_t only;

	for (unsigned i = 0; i < choice->count; i++)
		if (cell_matches(oracle, index, offset, length, data, choice->contents[i], &whole))
			kept++;
	if (kept > 0) {
		/* Rule 4. */
		if (whole && (choice->count > 1 || choice->contents[0] == WILD)) {
			only = content_found(oracle, data, 0, index, offset, length, WILD);
			choice->count = 1;
			choice->contents[0] = only;
		}
		return;
	}
	describe(oracle, content_found(oracle, data, 0, index, offset, length, WILD), text, sizeof(text));
	printf("# snapshot %s's sector %llu (byte %llu) reads as %s; it may be:\n", snapshot->name,
	       (unsigned long long)index, (unsigned long long)index * SECTOR_BYTES, text);
	for (unsigned i = 0; i < choice->count; i++) {
		describe(oracle, choice->contents[i], text, sizeof(text));
		printf("#   %s\n", text);
	}
	sim_fail("snapshot %s has wrong data", snapshot->name);
}

void oracle_check_snapshot(struct oracle *oracle, struct oracle_snapshot *snapshot, uint64_t offset, uint64_t length,
			   const uint8_t *data)
{
	for (uint64_t i = offset / SECTOR_BYTES; i < (offset + length + SECTOR_BYTES - 1) / SECTOR_BYTES; i++)
		choice_check(oracle, snapshot, i, offset, length, data);
}

void oracle_overwrite(struct oracle *oracle, uint64_t offset, const uint8_t *data)
{
	struct cell *cell = &oracle->cells[offset / SECTOR_BYTES];

	oracle->clock++;
	cell->touched = oracle->clock;
	cell->count = 0;
	value_add(oracle, offset / SECTOR_BYTES, content_number(oracle, data), 0);
}

void oracle_put_back(struct oracle *oracle, struct oracle_snapshot *snapshot, uint64_t offset, const uint8_t *data)
{
	choice_check(oracle, snapshot, offset / SECTOR_BYTES, offset, SECTOR_BYTES, data);
	oracle_overwrite(oracle, offset, data);
}
