/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What check finds in damaged stores, what repair makes of them, and that a repair that is cut short at any write
 * leaves a store that reads as before it or as after it, and can be repaired again; also one that memory was short for.
 */
#include "core/check.h"
#include "core/metadata.h"
#include "core/repair.h"

#include "tests/unit/memory-fails.h"

#include "tests/unit/memory-disk.h"
#include "tests/unit/unit.h"

#define PER_AREA 4u
#define BLOCKS 64u
#define BLOCK_BYTES 4096u
#define SLOTS 11u /* of s2: two full areas, and one with three entries */
#define AREA_BYTES (2 * AREA_META_BYTES + PER_AREA * BLOCK_BYTES)
#define MAX_WRITES 40u

static const struct geometry geometry = { BLOCK_BYTES, PER_AREA, FIRST_AREA_OFFSET };
static struct disk_host *host;
static uint64_t seen[FOUND_COUNT]; /* in the store looked at */
static struct check_finding last[FOUND_COUNT];

/* ---- making stores ---- */

static uuid128_t id(unsigned number)
{
	uuid128_t uuid = { { 0 } };

	uuid.bytes[0] = (uint8_t)number;
	return uuid;
}

/* Store `number` of three: 1 and 2 are sealed, 3 is active. */
static struct superblock super(unsigned number, uint64_t slots)
{
	struct superblock superblock = {
		.generation = 7,
		.store_uuid = id(number),
		.volume_uuid = id(99),
		.sequence = number,
		.role = ROLE_SNAPSHOT,
		.state = number < 3 ? STATE_SEALED : STATE_ACTIVE,
		.created_ns = number,
		.origin_bytes = BLOCKS * BLOCK_BYTES,
		.geometry = geometry,
		.clean = true,
		.log_slots = slots,
		.durable_slots = slots,
	};

	superblock.name[0] = 's';
	superblock.name[1] = (char)('0' + number);
	superblock.predecessor_uuid = id(number - 1);
	superblock.successor_uuid = id(number < 3 ? number + 1 : 0);
	return superblock;
}

static uint8_t *bytes_of(unsigned number)
{
	return memory_files[number].bytes;
}

static void put_super(unsigned number, const struct superblock *superblock)
{
	superblock_encode(bytes_of(number) + SUPERBLOCK_OFFSET_0, superblock);
	superblock_encode(bytes_of(number) + SUPERBLOCK_OFFSET_1, superblock);
}

static uint64_t seed_of(unsigned number)
{
	uuid128_t uuid = id(number);

	return checksum_seed(&uuid);
}

static uint8_t *meta_of(unsigned number, uint32_t area, unsigned copy)
{
	return bytes_of(number) + geometry_meta_offset(&geometry, area, copy);
}

static uint8_t *data_of(unsigned number, uint32_t slot)
{
	return bytes_of(number) + geometry_slot_offset(&geometry, SLOT(slot));
}

/* What slot `slot` of the usual log has: mostly data, and one of each other kind. */
static struct entry entry_of(unsigned number, uint32_t slot)
{
	struct entry entry = { .type = ENTRY_DATA, .block = slot, .count = 1 };

	switch (slot) {
	case 2:
		return (struct entry){ .type = ENTRY_ZERO, .block = 20, .count = 5 };
	case 5:
		return (struct entry){ .type = ENTRY_VOID };
	case 6:
		return (struct entry){ .type = ENTRY_LOST, .block = 30, .count = 1 };
	case 8:
		entry = (struct entry){ .type = ENTRY_FINGERPRINT };
		break;
	default:
		break;
	}
	entry.data_checksum = data_checksum(seed_of(number), data_of(number, slot), BLOCK_BYTES);
	return entry;
}

static void put_entry(unsigned number, uint32_t slot, const struct entry *entry, unsigned copies)
{
	for (unsigned copy = 0; copy < 2; copy++)
		if ((copies & 1u << copy) != 0)
			entry_encode(meta_of(number, slot / PER_AREA, copy), seed_of(number), slot / PER_AREA,
				     slot % PER_AREA, entry);
}

static void put_header(unsigned number, uint32_t area, unsigned copy, uint32_t entries, uint64_t durable)
{
	struct area_header header = {
		.area = area, .write_count = 5 + copy, .durable_slots = durable, .entry_count = (uint16_t)entries
	};

	area_header_encode(meta_of(number, area, copy), seed_of(number), &header);
}

static void make_store(unsigned number, uint32_t slots)
{
	struct superblock superblock = super(number, slots);
	uint32_t areas = (slots + PER_AREA - 1) / PER_AREA;

	memory_resize(&memory_files[number], 0);
	memory_resize(&memory_files[number], FIRST_AREA_OFFSET + (uint64_t)areas * AREA_BYTES);
	(void)snprintf(memory_files[number].name, sizeof(memory_files[number].name), "s%u", number);
	memory_files[number].bad_to = 0;
	put_super(number, &superblock);
	for (uint32_t slot = 0; slot < slots; slot++) {
		struct entry entry;

		memset(data_of(number, slot), (int)(0x30 + slot + 16 * number), BLOCK_BYTES);
		entry = entry_of(number, slot);
		put_entry(number, slot, &entry, 3);
	}
	for (uint32_t area = 0; area < areas; area++)
		for (unsigned copy = 0; copy < 2; copy++)
			put_header(number, area, copy, slots - area * PER_AREA < PER_AREA ? slots - area * PER_AREA : PER_AREA,
				   area * PER_AREA);
}

static void make_chain(void)
{
	make_store(1, 4);
	make_store(2, SLOTS);
	make_store(3, SLOTS);
	memory_power = UINT64_MAX;
	memory_dead = false;
}

/* Store 3 as a crash leaves it: [0, 8) are known durable, the log goes on to `slots`. */
static void crash_store_3(void)
{
	struct superblock superblock = super(3, SLOTS);

	superblock.clean = false;
	superblock.log_slots = 0;
	superblock.durable_slots = 2;
	put_super(3, &superblock);
	for (unsigned copy = 0; copy < 2; copy++)
		put_header(3, 2, copy, 3, 8);
}

/* ---- looking at them ---- */

static struct repair plan;
static bool count_all; /* findings of the other stores too */

static void found(const struct check_finding *finding, void *context)
{
	const struct check_store *looked_at = context;

	if (finding->store != looked_at && !count_all)
		return;
	seen[finding->code]++;
	last[finding->code] = *finding;
	if (plan.one == looked_at)
		repair_note(&plan, finding);
}

/* Checks the stores in `numbers` ("231"), and counts what is found in the first. With `power` writes, repairs that. */
static int look(const char *numbers, bool repair)
{
	struct check_store stores[3] = { 0 };
	struct check check = { .host = host, .stores = stores, .found = found };
	char path[] = "s0";
	int error = 0;

	check.context = &stores[0];
	memset(seen, 0, sizeof(seen));
	memset(&plan, 0, sizeof(plan));
	plan.one = repair ? &stores[0] : NULL;
	for (check.count = 0; error == 0 && numbers[check.count] != '\0'; check.count += error == 0) {
		struct check_store *one = &stores[check.count];

		path[1] = numbers[check.count];
		one->links_only = repair && check.count > 0;
		error = store_open(host, path, repair && check.count == 0 ? 0 : DISK_OPEN_READ_ONLY, &one->store);
	}
	if (error == 0)
		error = check_run(&check);
	if (error == 0 && repair && repair_is_planned(&plan))
		error = repair_carry_out(&plan);
	repair_end(&plan);
	check_end(&check);
	for (size_t i = 0; i < check.count; i++)
		store_close(stores[i].store);
	return error;
}

/* Whether exactly the codes of this list (ended by FOUND_COUNT) were found, whatever the number. */
static bool found_just(const enum check_code *codes)
{
	bool ok = true;

	for (unsigned code = 0; code < FOUND_COUNT; code++) {
		bool wanted = false;

		for (const enum check_code *at = codes; *at != FOUND_COUNT; at++)
			wanted = wanted || *at == code;
		if (wanted != (seen[code] > 0)) {
			printf("# %s: %llu\n", check_kind(code)->code, (unsigned long long)seen[code]);
			ok = false;
		}
	}
	return ok;
}

#define JUST(...) found_just((const enum check_code[]){ __VA_ARGS__ __VA_OPT__(, ) FOUND_COUNT })

/* How a store reads: of each block, what is there, or an error; or that it cannot be opened at all. */
struct reading {
	int error;
	uint64_t blocks[BLOCKS];
};

#define READS_ERROR UINT64_MAX
#define READS_ZERO (UINT64_MAX - 1)
#define READS_ON 0u /* in the next store */

static uint64_t read_block(const struct store *store, block_t block, bool broken)
{
	struct map_run run = map_find(store->map, block, 1);
	struct log_format format = log_format_of(store);
	const struct memory_file *file = &memory_files[store->path[1] - '0'];
	uint32_t area = run.slot.index / PER_AREA;
	struct area_copies both = { .area = area };
	uint8_t data[BLOCK_BYTES], meta[2][AREA_META_BYTES];
	struct entry entry;

	if (run.kind == MAP_ABSENT)
		return broken ? READS_ERROR : READS_ON;
	if (run.kind != MAP_SLOT)
		return run.kind == MAP_ZERO ? READS_ZERO : READS_ERROR;
	for (unsigned copy = 0; copy < 2; copy++) {
		both.copies[copy].bytes = meta[copy];
		both.copies[copy].error = memory_read(file, meta[copy], geometry_meta_offset(&geometry, area, copy),
						      AREA_META_BYTES);
		area_copy_decode(&format, &both, copy);
	}
	area_copies_choose(&both);
	if (!area_copies_entry(&format, &both, run.slot.index % PER_AREA, &entry) || entry.type != ENTRY_DATA ||
	    memory_read(file, data, geometry_slot_offset(&geometry, run.slot), BLOCK_BYTES) != 0 ||
	    data_checksum(format.seed, data, BLOCK_BYTES) != entry.data_checksum)
		return READS_ERROR;
	return 1 + data[0];
}

static struct reading read_store(unsigned number)
{
	struct recovery recovery = { .writable = false };
	struct reading reading = { 0 };
	char path[] = { 's', (char)('0' + number), '\0' };
	struct store *store;
	const char *why;

	if (store_open(host, path, DISK_OPEN_READ_ONLY, &store) != 0)
		abort();
	reading.error = store_load_wait(store, &why);
	if (reading.error == 0)
		reading.error = store_recover(store, &recovery);
	for (block_t block = 0; reading.error == 0 && block < BLOCKS; block++)
		reading.blocks[block] = read_block(store, block,
						   recovery.lost_metadata || store->superblock.broken.reason != BROKEN_NOT);
	store_close(store);
	return reading;
}

static bool same_reading(const struct reading *a, const struct reading *b)
{
	return memcmp(a, b, sizeof(*a)) == 0;
}

/* ---- the damage ---- */

static void flip(uint8_t *at)
{
	*at ^= 0x55;
}

static uint8_t *entry_at(unsigned number, uint32_t slot, unsigned copy)
{
	return meta_of(number, slot / PER_AREA, copy) + AREA_HEADER_BYTES + slot % PER_AREA * ENTRY_BYTES;
}

static void super_copy_0(void) { flip(bytes_of(2) + 184); }
static void super_copy_1(void) { memset(bytes_of(2) + SUPERBLOCK_OFFSET_1, 0, SUPERBLOCK_BYTES); }

static void super_both(void)
{
	super_copy_0();
	flip(bytes_of(2) + SUPERBLOCK_OFFSET_1 + 50);
}

static void super_copy_torn(void)
{
	struct superblock newer = super(2, SLOTS);
	uint8_t bytes[SUPERBLOCK_BYTES];

	newer.generation = 8;
	newer.predecessor_uuid = id(0);
	superblock_encode(bytes, &newer);
	memcpy(bytes_of(2) + SUPERBLOCK_OFFSET_1, bytes, 512);
}

static void super_older_copy(void)
{
	struct superblock older = super(2, SLOTS);

	older.generation = 6;
	superblock_encode(bytes_of(2), &older);
}

static void super_same_generation(void)
{
	struct superblock other = super(2, SLOTS);

	other.created_ns = 17;
	superblock_encode(bytes_of(2), &other);
}

static void super_of_another(void)
{
	struct superblock other = super(2, SLOTS);

	other.store_uuid = id(55);
	superblock_encode(bytes_of(2), &other);
}

static void meta_copy_0_gone(void) { memset(meta_of(2, 1, 0), 0, AREA_META_BYTES); }
static void meta_copy_1_gone(void) { memset(meta_of(2, 1, 1), 0xee, AREA_META_BYTES); }

static void headers_bad(void)
{
	flip(meta_of(2, 0, 0) + 9);
	flip(meta_of(2, 0, 1) + 9);
}

static void different_entries_bad(void)
{
	flip(entry_at(2, 4, 0));
	flip(entry_at(2, 7, 1));
}

static void same_entry_bad(void)
{
	flip(entry_at(2, 4, 0));
	flip(entry_at(2, 4, 1));
}

static void same_entry_and_data_bad(void)
{
	same_entry_bad();
	flip(data_of(2, 7));
	flip(data_of(2, 0));
	super_copy_0();
}

static void area_gone(void)
{
	meta_copy_0_gone();
	meta_copy_1_gone();
}

static void entry_out_of_range(void)
{
	struct entry entry = { .type = ENTRY_DATA, .block = BLOCKS, .count = 1, .data_checksum = 1 };

	put_entry(2, 7, &entry, 3);
}

static void entry_out_of_range_once(void)
{
	struct entry entry = { .type = ENTRY_ZERO, .block = BLOCKS - 1, .count = 2 };

	put_entry(2, 7, &entry, 1);
}

static void entries_differ(void)
{
	struct entry entry = { .type = ENTRY_LOST, .block = 7, .count = 1 };

	put_entry(2, 7, &entry, 2);
}

static void copy_behind(void)
{
	memset(entry_at(2, 10, 0), 0, ENTRY_BYTES);
	put_header(2, 2, 0, 2, 8);
}

static void data_bad(void) { flip(data_of(2, 9) + 4000); }
static void fingerprint_bad(void) { flip(data_of(2, 8)); }

static void cut_an_area_off(void) { memory_resize(&memory_files[2], FIRST_AREA_OFFSET + 2 * AREA_BYTES); }

static void cut_within_an_area(void)
{
	memory_resize(&memory_files[2], geometry_slot_offset(&geometry, SLOT(7)));
}

static void end_too_early(void)
{
	struct superblock old = super(2, 5);

	put_super(2, &old);
	put_header(2, 2, 1, 3, 9);
}

static void duplicate(void)
{
	struct entry entry = { .type = ENTRY_DATA, .block = 0, .count = 1 };

	memcpy(data_of(2, 9), data_of(2, 0), BLOCK_BYTES);
	entry.data_checksum = data_checksum(seed_of(2), data_of(2, 9), BLOCK_BYTES);
	put_entry(2, 9, &entry, 3);
}

static void contradiction(void)
{
	struct entry entry = { .type = ENTRY_DATA, .block = 22, .count = 1 };

	entry.data_checksum = data_checksum(seed_of(2), data_of(2, 9), BLOCK_BYTES);
	put_entry(2, 9, &entry, 3);
	entry.block = 0;
	entry.data_checksum = data_checksum(seed_of(2), data_of(2, 10), BLOCK_BYTES);
	put_entry(2, 10, &entry, 3);
}

static void leftovers(void)
{
	struct entry entry = { .type = ENTRY_ZERO, .block = 40, .count = 1 };

	put_entry(2, SLOTS, &entry, 1);
}

static void marked_broken(void)
{
	struct superblock broken = super(2, SLOTS);

	broken.broken = (struct broken_mark){ BROKEN_FULL, 5 };
	put_super(2, &broken);
}

static void predecessor_wrong(void)
{
	struct superblock odd = super(2, SLOTS);

	odd.predecessor_uuid = id(77);
	put_super(2, &odd);
}

/* ---- of store 3, after a crash ---- */

static void crashed(void) { crash_store_3(); }

static void crashed_with_tail(void)
{
	crash_store_3();
	flip(data_of(3, 9)); /* past the mark: the log ends there */
	memory_resize(&memory_files[3], FIRST_AREA_OFFSET + 5 * AREA_BYTES);
	put_header(3, 3, 0, 1, 8);
	struct entry entry = { .type = ENTRY_ZERO, .block = 40, .count = 1 };
	put_entry(3, 13, &entry, 1);
}

static void crashed_and_torn(void)
{
	crash_store_3();
	memset(meta_of(3, 2, 1), 0, 512);
	flip(entry_at(3, 6, 0));
}

static void crashed_and_damaged(void)
{
	crash_store_3();
	flip(data_of(3, 3));
	flip(entry_at(3, 1, 0));
	flip(entry_at(3, 1, 1));
}

static void crashed_and_cut(void)
{
	struct superblock superblock = super(3, SLOTS);

	superblock.clean = false;
	superblock.log_slots = 0;
	superblock.durable_slots = 8;
	put_super(3, &superblock);
	memory_resize(&memory_files[3], FIRST_AREA_OFFSET + AREA_BYTES);
}

/* ---- the cases ---- */

#define CODES_MAX 6u

struct damage {
	const char *name;
	void (*apply)(void);
	enum check_code found[CODES_MAX]; /* each list without what is in an undamaged store; ended by FOUND_COUNT */
	enum check_code left[CODES_MAX];
};

#define END FOUND_COUNT
/* Slot 5 is void and block 30 is lost: nothing is wrong with that. */
#define USUAL FOUND_BLOCKS_LOST, FOUND_SLOTS_VOID

static const struct damage damages[] = {
	{ "nothing", NULL, { USUAL, END }, { USUAL, END } },
	{ "superblock copy 0", super_copy_0, { USUAL, FOUND_SUPERBLOCK_COPY_DAMAGED, END }, { USUAL, END } },
	{ "superblock copy 1", super_copy_1, { USUAL, FOUND_SUPERBLOCK_COPY_DAMAGED, END }, { USUAL, END } },
	{ "both superblocks", super_both, { FOUND_SUPERBLOCK_LOST, END }, { FOUND_SUPERBLOCK_LOST, END } },
	{ "a superblock copy that is torn", super_copy_torn, { USUAL, FOUND_SUPERBLOCK_COPY_TORN, END }, { USUAL, END } },
	{ "a superblock copy that is older", super_older_copy, { USUAL, FOUND_SUPERBLOCK_COPY_BEHIND, END }, { USUAL, END } },
	{ "superblock copies that differ", super_same_generation,
	  { USUAL, FOUND_SUPERBLOCK_CONTRADICTION, END }, { USUAL, FOUND_SUPERBLOCK_CONTRADICTION, END } },
	{ "superblock copies of two stores", super_of_another,
	  { FOUND_SUPERBLOCK_CONTRADICTION, END }, { FOUND_SUPERBLOCK_CONTRADICTION, END } },
	{ "metadata copy 0", meta_copy_0_gone, { USUAL, FOUND_METADATA_COPY_DAMAGED, END }, { USUAL, END } },
	{ "metadata copy 1", meta_copy_1_gone, { USUAL, FOUND_METADATA_COPY_DAMAGED, END }, { USUAL, END } },
	{ "both headers", headers_bad, { USUAL, FOUND_METADATA_COPY_DAMAGED, END }, { USUAL, END } },
	{ "different entries of two copies", different_entries_bad,
	  { USUAL, FOUND_METADATA_COPY_DAMAGED, END }, { USUAL, END } },
	{ "the same entry of both copies", same_entry_bad,
	  { USUAL, FOUND_METADATA_COPY_DAMAGED, FOUND_ENTRY_LOST, END }, { USUAL, FOUND_SNAPSHOT_BROKEN, END } },
	{ "an entry, data, and a superblock copy", same_entry_and_data_bad,
	  { USUAL, FOUND_METADATA_COPY_DAMAGED, FOUND_ENTRY_LOST, FOUND_DATA_DAMAGED, FOUND_SUPERBLOCK_COPY_DAMAGED },
	  { USUAL, FOUND_SNAPSHOT_BROKEN, END } },
	{ "all metadata of an area", area_gone, { FOUND_METADATA_COPY_DAMAGED, FOUND_ENTRY_LOST, END },
	  { FOUND_SLOTS_VOID, FOUND_SNAPSHOT_BROKEN, END } },
	{ "an entry out of range", entry_out_of_range,
	  { USUAL, FOUND_METADATA_COPY_DAMAGED, FOUND_ENTRY_OUT_OF_RANGE, END }, { USUAL, FOUND_SNAPSHOT_BROKEN, END } },
	{ "an entry out of range in one copy", entry_out_of_range_once,
	  { USUAL, FOUND_METADATA_COPY_DAMAGED, END }, { USUAL, END } },
	{ "entries that differ", entries_differ, { USUAL, FOUND_METADATA_COPIES_DIFFER, END }, { USUAL, END } },
	{ "a metadata copy that is older", copy_behind,
	  { USUAL, FOUND_METADATA_COPY_BEHIND, END }, { USUAL, FOUND_METADATA_COPY_BEHIND, END } },
	{ "data", data_bad, { USUAL, FOUND_DATA_DAMAGED, END }, { USUAL, END } },
	{ "a fingerprint", fingerprint_bad, { USUAL, FOUND_FINGERPRINT_DAMAGED, END }, { USUAL, END } },
	{ "a missing area", cut_an_area_off, { USUAL, FOUND_STORE_TRUNCATED, END }, { USUAL, FOUND_SNAPSHOT_BROKEN, END } },
	{ "missing data and metadata", cut_within_an_area,
	  { USUAL, FOUND_STORE_TRUNCATED, FOUND_METADATA_COPY_DAMAGED, FOUND_DATA_DAMAGED, END },
	  { USUAL, FOUND_SNAPSHOT_BROKEN, END } },
	{ "an end that is too early", end_too_early,
	  { FOUND_MARK_PAST_END, FOUND_LEFTOVERS_PAST_END, END }, { END } },
	{ "a duplicate", duplicate, { USUAL, FOUND_EXCEPTION_DUPLICATE, END }, { USUAL, FOUND_EXCEPTION_DUPLICATE, END } },
	{ "duplicates of other content", contradiction,
	  { USUAL, FOUND_EXCEPTION_DUPLICATE, FOUND_EXCEPTION_CONTRADICTED, END },
	  { USUAL, FOUND_EXCEPTION_DUPLICATE, FOUND_EXCEPTION_CONTRADICTED, END } },
	{ "leftovers", leftovers, { USUAL, FOUND_LEFTOVERS_PAST_END, END }, { USUAL, FOUND_LEFTOVERS_PAST_END, END } },
	{ "a broken mark", marked_broken, { USUAL, FOUND_SNAPSHOT_BROKEN, END }, { USUAL, FOUND_SNAPSHOT_BROKEN, END } },
	{ "a wrong predecessor", predecessor_wrong, { USUAL, FOUND_PREDECESSOR_BEHIND, END }, { USUAL, END } },
};

static const struct damage crashes[] = {
	{ "a crash", crashed, { USUAL, FOUND_STORE_NOT_STOPPED, END }, { USUAL, FOUND_STORE_NOT_STOPPED, END } },
	{ "a crash with a tail", crashed_with_tail,
	  { USUAL, FOUND_STORE_NOT_STOPPED, FOUND_TAIL_TORN, END }, { USUAL, FOUND_STORE_NOT_STOPPED, END } },
	{ "a crash while metadata was written", crashed_and_torn,
	  { USUAL, FOUND_STORE_NOT_STOPPED, FOUND_METADATA_COPY_TORN, END },
	  { USUAL, FOUND_STORE_NOT_STOPPED, FOUND_METADATA_COPY_TORN, END } },
	{ "a crash, and damage before the mark", crashed_and_damaged,
	  { USUAL, FOUND_STORE_NOT_STOPPED, FOUND_METADATA_COPY_DAMAGED, FOUND_ENTRY_LOST, FOUND_DATA_DAMAGED },
	  { USUAL, FOUND_STORE_NOT_STOPPED, FOUND_SNAPSHOT_BROKEN, END } },
	{ "a crash, and a missing area", crashed_and_cut,
	  { FOUND_STORE_NOT_STOPPED, FOUND_STORE_TRUNCATED, END }, { FOUND_SNAPSHOT_BROKEN, END } },
};

static bool found_codes(const enum check_code *codes)
{
	enum check_code list[CODES_MAX + 1];

	memcpy(list, codes, CODES_MAX * sizeof(*codes));
	list[CODES_MAX] = END;
	return found_just(list);
}

static void check_named(const char *name, const char *what, bool ok)
{
	char line[160];

	(void)snprintf(line, sizeof(line), "%s: %s", name, what);
	check(line, ok);
}

static void damage_store(const struct damage *damage)
{
	make_chain();
	if (damage->apply != NULL)
		damage->apply();
	plan.one = NULL;
}

/* Cuts the repair short at every write, torn in several ways. */
static bool survives_cuts(const struct damage *damage, unsigned number, const char *numbers)
{
	static const unsigned torn[] = { 0, 1, 2, 7, 8 };
	struct reading before, after, now;
	uint64_t writes;
	bool ok = true;

	damage_store(damage);
	before = read_store(number);
	memory_writes = 0;
	if (look(numbers, true) != 0)
		return false;
	writes = memory_writes;
	after = read_store(number);
	for (uint64_t power = 0; power < writes && power < MAX_WRITES; power++)
		for (size_t i = 0; i < sizeof(torn) / sizeof(torn[0]); i++) {
			damage_store(damage);
			memory_writes = 0;
			memory_power = power;
			memory_torn_sectors = torn[i];
			(void)look(numbers, true);
			memory_power = UINT64_MAX;
			memory_dead = false;
			now = read_store(number);
			ok = ok && (same_reading(&now, &before) || same_reading(&now, &after));
			ok = ok && look(numbers, true) == 0;
			now = read_store(number);
			ok = ok && same_reading(&now, &after);
			ok = ok && look(numbers, false) == 0 && (damage->left[0] == END || found_codes(damage->left));
			if (!ok) {
				printf("# write %llu, %u sectors of it\n", (unsigned long long)power, torn[i]);
				return false;
			}
		}
	return ok && writes < MAX_WRITES;
}

/* Each allocation fails in turn: that is told, nothing changes but what a repair may change, and all memory comes back. */
static bool survives_short_memory(const struct damage *damage, unsigned number, const char *numbers)
{
	struct reading before, after, now;
	bool ok = true, short_of = true;

	damage_store(damage);
	before = read_store(number);
	ok = look(numbers, true) == 0;
	after = read_store(number);
	for (uint64_t at = 0; ok && short_of; at++) {
		int64_t in_use = memory_in_use;
		int error;

		damage_store(damage);
		memory_short(at);
		error = look(numbers, true);
		short_of = memory_was_short;
		memory_short(MEMORY_ENOUGH);
		ok = error == (short_of ? -ENOMEM : 0) && memory_in_use == in_use;
		now = read_store(number);
		ok = ok && (same_reading(&now, &after) || (short_of && same_reading(&now, &before)));
		ok = ok && look(numbers, true) == 0;
		now = read_store(number);
		ok = ok && same_reading(&now, &after);
		if (!ok)
			printf("# allocation %llu: error %d, %lld pieces too many\n", (unsigned long long)at, error,
			       (long long)(memory_in_use - in_use));
	}
	return ok;
}

/* Nothing that could be read before reads otherwise afterwards, but for an error. */
static bool nothing_is_invented(const struct reading *before, const struct reading *after)
{
	for (unsigned block = 0; block < BLOCKS && before->error == 0; block++)
		if (after->blocks[block] != before->blocks[block] && after->blocks[block] != READS_ERROR)
			return false;
	return true;
}

static void test_damage(const struct damage *damage, unsigned number, const char *numbers)
{
	struct reading before, after;
	uint8_t *copy;

	damage_store(damage);
	before = read_store(number);
	copy = malloc((size_t)memory_files[number].size);
	if (copy == NULL)
		abort();
	memcpy(copy, bytes_of(number), (size_t)memory_files[number].size);
	check("check runs", look(numbers, false) == 0);
	check_named(damage->name, "check finds just that", found_codes(damage->found));
	check_named(damage->name, "check writes nothing",
	     memcmp(copy, bytes_of(number), (size_t)memory_files[number].size) == 0);
	free(copy);
	check_named(damage->name, "repair runs", look(numbers, true) == 0);
	after = read_store(number);
	check_named(damage->name, "repair invents nothing", damage->apply == end_too_early || nothing_is_invented(&before, &after));
	check("check runs again", look(numbers, false) == 0);
	if (damage->left[0] != END)
		check_named(damage->name, "check agrees with the repair", found_codes(damage->left));
	check_named(damage->name, "a repair cut short is as before or as after, and can be done again",
	     survives_cuts(damage, number, numbers));
	check_named(damage->name, "a repair without memory says so, and can be done again",
	     survives_short_memory(damage, number, numbers));
}

/* ---- what cannot be read ---- */

static void make_bad(unsigned number, uint64_t from, uint64_t bytes)
{
	memory_files[number].bad_from = from;
	memory_files[number].bad_to = from + bytes;
}

static void test_unreadable(void)
{
	make_chain();
	make_bad(2, geometry_slot_offset(&geometry, SLOT(9)), 512);
	check("a slot that cannot be read", look("231", false) == 0 && JUST(USUAL, FOUND_DATA_UNREADABLE));
	check("its block and place are told", last[FOUND_DATA_UNREADABLE].block == 9 &&
						      last[FOUND_DATA_UNREADABLE].slot == 9 &&
						      last[FOUND_DATA_UNREADABLE].area == 2 &&
						      last[FOUND_DATA_UNREADABLE].offset ==
							      geometry_slot_offset(&geometry, SLOT(9)));
	memory_writes = 0;
	check("it is not given up by a repair", look("231", true) == 0 && memory_writes == 0);
	make_bad(2, geometry_slot_offset(&geometry, SLOT(5)), BLOCK_BYTES);
	check("a slot that nobody needs", look("231", false) == 0 && JUST(USUAL));
	make_bad(2, geometry_meta_offset(&geometry, 1, 0), 512);
	check("a metadata copy", look("231", false) == 0 && JUST(USUAL, FOUND_METADATA_COPY_UNREADABLE));
	make_bad(2, SUPERBLOCK_OFFSET_1, 512);
	check("a superblock copy", look("231", false) == 0 && JUST(USUAL, FOUND_SUPERBLOCK_COPY_UNREADABLE));
	make_bad(2, geometry_meta_offset(&geometry, 1, 0), AREA_BYTES);
	memory_writes = 0;
	check("an area", look("231", false) == 0 && JUST(FOUND_METADATA_COPY_UNREADABLE, FOUND_ENTRY_UNREADABLE) &&
				 seen[FOUND_METADATA_COPY_UNREADABLE] == 2 && seen[FOUND_ENTRY_UNREADABLE] == 1);
	check("what cannot be read is not marked broken", look("231", true) != 0 || memory_writes == 0);
	make_chain();
	crash_store_3();
	make_bad(3, geometry_slot_offset(&geometry, SLOT(9)), 512);
	check("a log's tail", look("321", false) == 0 && seen[FOUND_TAIL_UNREADABLE] == 1 &&
				      last[FOUND_TAIL_UNREADABLE].slot == 9);
	memory_writes = 0;
	check("it is not cut off by a repair", look("321", true) == 0 && memory_writes == 0);
	flip(meta_of(3, 2, 0));
	check("nor is the metadata written that goes on behind it", look("321", true) == 0 && memory_writes == 0);
	flip(meta_of(3, 0, 0) + 9);
	check("what lies before is mended all the same", look("321", true) == 0 && memory_writes == 1);
}

/* ---- the chain ---- */

static void edit(unsigned number, void (*change)(struct superblock *superblock))
{
	struct superblock superblock = super(number, number == 1 ? 4 : SLOTS);

	change(&superblock);
	put_super(number, &superblock);
}

static void to_prepared(struct superblock *superblock)
{
	superblock->state = STATE_PREPARED;
	superblock->log_slots = 0;
	superblock->durable_slots = 0;
}

static void to_newest(struct superblock *superblock)
{
	superblock->state = STATE_ACTIVE;
	superblock->successor_uuid = id(0);
}

static void to_other_volume(struct superblock *superblock)
{
	superblock->volume_uuid = id(98);
}

static void to_merging(struct superblock *superblock)
{
	superblock->state = STATE_MERGING;
	superblock->clean = true;
	superblock->merge_target_uuid = superblock->store_uuid;
}

static void to_folding(struct superblock *superblock)
{
	superblock->clean = false;
	superblock->log_slots = 0;
	superblock->fold_source_uuid = superblock->successor_uuid;
}

static void to_folded(struct superblock *superblock)
{
	superblock->successor_uuid = id(3);
}

static void to_stray(struct superblock *superblock)
{
	superblock->successor_uuid = id(50);
}

static void to_witness(struct superblock *superblock)
{
	superblock->witness_uuid = id(2);
	superblock->witness = (struct broken_mark){ BROKEN_STORE_ERROR, 9 };
}

static void to_empty(struct superblock *superblock)
{
	*superblock = (struct superblock){ .generation = 7,
					   .store_uuid = superblock->store_uuid,
					   .role = ROLE_SNAPSHOT,
					   .geometry = geometry,
					   .clean = true };
}

static void test_chain(void)
{
	make_chain();
	check("a newer store is not there", look("21", false) == 0 && JUST(USUAL, FOUND_NEWER_ABSENT));
	check("an older store is not there", look("23", false) == 0 && JUST(USUAL, FOUND_OLDER_ABSENT));
	edit(3, to_prepared);
	check("an unfinished snapshot without the one before", look("3", false) == 0 && seen[FOUND_NEWEST_UNFINISHED] == 1);
	check("an unfinished snapshot with the one before", look("321", false) == 0 && seen[FOUND_NEWEST_UNFINISHED] == 1);
	edit(2, to_newest);
	check("a snapshot that did not come about", look("321", false) == 0 && seen[FOUND_STORE_UNBORN] == 1);
	make_chain();
	edit(2, to_other_volume);
	count_all = true;
	check("a store of another volume", look("12", false) == 0 && seen[FOUND_CHAIN_CONTRADICTION] == 1);
	count_all = false;
	make_chain();
	edit(3, to_merging);
	check("a merge", look("321", false) == 0 && seen[FOUND_MERGE_UNFINISHED] == 1);
	make_chain();
	edit(2, to_folding);
	check("a fold", look("231", false) == 0 && seen[FOUND_FOLD_UNFINISHED] == 0 && seen[FOUND_CHAIN_CONTRADICTION] == 1);
	make_chain();
	edit(1, to_folding);
	check("a fold of one that has a successor", look("123", false) == 0 && seen[FOUND_FOLD_UNFINISHED] == 1);
	make_chain();
	edit(1, to_folded);
	check("a store that was folded", look("213", false) == 0 && seen[FOUND_STORE_LEFTOVER] == 1);
	check("the link of the one behind it", look("312", false) == 0 && seen[FOUND_PREDECESSOR_BEHIND] == 1);
	check("it is mended", look("312", true) == 0 && look("312", false) == 0 && seen[FOUND_PREDECESSOR_BEHIND] == 0);
	make_chain();
	edit(3, to_witness);
	check("a witness", look("321", false) == 0 && seen[FOUND_WITNESS] == 1);
	check("what it testifies", look("231", false) == 0 && seen[FOUND_SNAPSHOT_BROKEN] == 1);
	edit(1, to_folded);
	edit(2, to_stray);
	check("a store that is in the chain no more, by a link to one that is not here either",
	      look("213", false) == 0 && seen[FOUND_STORE_LEFTOVER] == 1 && seen[FOUND_CHAIN_CONTRADICTION] == 0);
	check("the others are put in order without it", look("312", false) == 0 && seen[FOUND_PREDECESSOR_BEHIND] == 1 &&
								seen[FOUND_CHAIN_CONTRADICTION] == 0);
	make_chain();
	edit(3, to_empty);
	check("an empty store", look("31", false) == 0 && JUST(FOUND_STORE_EMPTY));
}

/* Both copies are good, and of one generation: no crash leaves that. */
static void test_two_superblocks(void)
{
	struct superblock other = super(2, SLOTS);

	make_chain();
	other.created_ns++;
	superblock_encode(bytes_of(2) + SUPERBLOCK_OFFSET_1, &other);
	check("two superblocks of the same generation that differ",
	      look("231", false) == 0 && seen[FOUND_SUPERBLOCK_CONTRADICTION] == 1 &&
		      seen[FOUND_SUPERBLOCK_COPY_BEHIND] == 0);
}

/*
 * A log that was known durable to where there is nothing any more: recovery must not take what is left for all there
 * was.
 */
static void test_recovery_of_what_is_cut(void)
{
	struct reading reading;

	make_chain();
	crashed_and_cut();
	reading = read_store(3);
	check("recovery: a store shorter than its durable mark lost exceptions",
	      reading.error == 0 && reading.blocks[0] > READS_ON && reading.blocks[60] == READS_ERROR);
}

static void test_places(void)
{
	make_chain();
	flip(data_of(2, 9));
	(void)look("231", false);
	check("damaged data: where", last[FOUND_DATA_DAMAGED].slot == 9 && last[FOUND_DATA_DAMAGED].block == 9 &&
					     last[FOUND_DATA_DAMAGED].area == 2 &&
					     last[FOUND_DATA_DAMAGED].offset == geometry_slot_offset(&geometry, SLOT(9)));
	make_chain();
	area_gone();
	(void)look("231", false);
	check("lost entries: how many, and where",
	      seen[FOUND_ENTRY_LOST] == 1 && last[FOUND_ENTRY_LOST].slot == 4 && last[FOUND_ENTRY_LOST].count == 4 &&
		      last[FOUND_ENTRY_LOST].offset == geometry_meta_offset(&geometry, 1, 0) + AREA_HEADER_BYTES);
	check("a damaged copy: which",
	      seen[FOUND_METADATA_COPY_DAMAGED] == 2 && last[FOUND_METADATA_COPY_DAMAGED].copy == 1 &&
		      last[FOUND_METADATA_COPY_DAMAGED].offset == geometry_meta_offset(&geometry, 1, 1));
}

/* Every code has a name of its own, and what it means. */
static void test_kinds(void)
{
	bool ok = true;

	for (unsigned code = 0; code < FOUND_COUNT; code++) {
		const struct check_kind *kind = check_kind((enum check_code)code);

		ok = ok && kind->meaning != NULL && (kind->repair != NULL) == (kind->mend != MEND_NOTHING);
		for (unsigned other = 0; other < code; other++)
			ok = ok && strcmp(kind->code, check_kind((enum check_code)other)->code) != 0;
	}
	check("every kind of finding is described", ok);
}

int main(void)
{
	if (disk_host_create(1, &host) != 0)
		return 1;
	test_kinds();
	for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++)
		test_damage(&damages[i], 2, "231");
	for (size_t i = 0; i < sizeof(crashes) / sizeof(crashes[0]); i++)
		test_damage(&crashes[i], 3, "321");
	test_recovery_of_what_is_cut();
	test_places();
	test_unreadable();
	test_chain();
	test_two_superblocks();
	check("nothing was written to what was opened for reading", !memory_wrote_read_only);
	for (unsigned i = 0; i < MEMORY_FILES; i++)
		free(memory_files[i].bytes);
	disk_host_destroy(host);
	return unit_done();
}
