/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A store's superblock and the origin's fingerprint. rowsnap-format(5) says the same, and how superblocks are read,
 * written and put in a chain. Numbers are little-endian; UUIDs are their 16 bytes in the order of their text; times are
 * nanoseconds since 1970-01-01T00:00:00Z; reserved bytes are written as 0 and not looked at.
 *
 *   0         4096          512 KiB   + 4096          1 MiB
 *   +---------+-------------+---------+-------------+------------
 *   | copy 0  | unused      | copy 1  | unused      | area 0 ...  (area.c)
 *   +---------+-------------+---------+-------------+------------
 *
 * Both copies are the same bytes; after a crash they may differ, and the valid one with the larger generation counts. A
 * change increases the generation and writes first the copy that is not the newest valid one, then a barrier, then the
 * other, then a barrier: at every moment one of the two is whole.
 *
 *   bytes           field
 *      0-   7       magic: "rowsnap" and a zero byte (72 6f 77 73 6e 61 70 00)
 *      8-  11 u32   version: 1
 *     12-  15 u32   header_bytes: how many bytes are defined: 448, or 832 with the feature "joined"; a later version's
 *                   may be more, up to 4088
 *     16-  19 u32   compat features: unknown bits are harmless
 *     20-  23 u32   ro_compat features: with unknown bits, only reading is allowed
 *     24-  27 u32   incompat features: with unknown bits, nothing is. Bit 0: joined
 *     28-  31       reserved
 *     32-  39 u64   generation
 *     40-  47 u64   sequence: 0 if empty, else 1 or more, growing along the chain
 *     48-  63       store UUID: never nil
 *     64-  79       volume UUID: nil if and only if empty
 *     80-  95       predecessor's UUID: the next-older store's; nil: this is the oldest
 *     96- 111       successor's UUID: the next-newer store's; nil: this is the newest
 *    112- 127       fold source's UUID: the store being folded into this one; nil: none. If merging, the merge target's
 *                   instead: the store of the snapshot that the origin is being put back to
 *    128- 143       witness UUID: another store, that could not carry its own broken mark; nil: none
 *    144- 147 u32   role: 1 snapshot, 2 fork, 3 part
 *    148- 151 u32   state: 0 empty, 1 prepared, 2 active, 3 sealed, 4 merging, 5 joined
 *    152- 155 u32   block_bytes: a power of two, 4096 to 65536
 *    156- 159 u32   slots_per_area: 1 to 254
 *    160- 167 u64   first_area_offset: 1048576
 *    168- 175 u64   limit_bytes: the store's largest size, room for one area at least; 0: no limit but the disk's
 *    176- 183 u64   origin_bytes: 0 if empty, else a multiple of 512, at most 2^44 (16 TiB)
 *    184- 191 u64   created_ns: when the snapshot was taken
 *    192- 199 u64   sealed_ns: when a newer one took over; 0: not
 *    200- 207 u64   durable_slots: slots [0, n) of the log were known durable when this was written
 *    208- 215 u64   log_slots: the log's end, if clean
 *    216- 223 u64   fold_base_slots: the log's end before the fold, if there is one
 *    224- 227 u32   clean: 1: the log ends at log_slots exactly; 0: it must be recovered
 *    228- 231 u32   broken reason: 0 not broken, 1 full, 2 store error, 3 barrier, 4 metadata, 5 origin changed
 *    232- 239 u64   broken time; 0 if not broken
 *    240- 243 u32   the witness's broken reason; 0 if and only if there is no witness
 *    244- 247       reserved
 *    248- 255 u64   the witness's broken time; 0 if none
 *    256- 319       name: the snapshot's, padded with zero bytes, one of them at least; all zero if empty
 *    320- 447       fingerprint: 16 x u64
 *    448-4087       reserved; with the feature "joined":
 *    448- 451 u32   part_count: how many stores are joined to this one, 0 to 15
 *    452- 455 u32   part_index: in a part, its number, 1 to 15; else 0
 *    456- 471       main UUID: in a part, the store it is joined to; else nil
 *    472- 831       15 x part: 0-15 its store UUID; 16-19 u32 first_area: the first area of the log that lies in it, or
 *                   0xffffffff: none yet; 20-23 u32 skipped_slots: how many slots before that area are not used.
 *                   Zeroes from part_count on
 *    832-4087       reserved
 *   4088-4095 u64   checksum: XXH3_64bits(bytes 0-4087), that is with seed 0: the UUID that seeds all the others'
 *                   checksums is not known to be right before this one is; it is among the bytes
 *
 * Magic, version and checksum keep their places in all versions. A copy is looked at in this order: magic, checksum,
 * version and incompat, then every field's range as above, and what fields say together:
 *   - durable_slots, log_slots, fold_base_slots: at most 0xfffffff0; if clean, none of the others exceeds log_slots
 *     (fold_base_slots counts only in a fold)
 *   - no link, fold source or witness is the store itself; predecessor and successor differ; a fold source is not the
 *     predecessor
 *   - empty: no links, fold, marks, witness, and no slots
 *   - prepared: no successor, no fold, and no slots: the first commit comes after active
 *   - active: no successor, but for that being folded into this store (a drop of the newest)
 *   - sealed: clean, but for a fold into it; a fold source is the successor
 *   - merging: clean; the merge target is not nil, and may be the store itself or its predecessor
 *   - fingerprint sectors beyond the origin's end are 0
 *   - joined if and only if part_count is not 0 or the role is part; header_bytes is 832 at least then
 *   - part: state joined, and nobody else's is; no parts, links, fold, marks, witness or slots; clean; part_index 1 to 15;
 *     the main UUID is neither nil nor the store itself. Volume, name, sequence, origin and geometry are the main store's
 *   - parts: not if empty or prepared; UUIDs are not nil and differ, also from the store's; first_area does not
 *     get smaller from part to part, and behind one that has none no other has one; skipped_slots is 0 without a
 *     first_area, and not more than first_area * slots_per_area
 *
 * Fingerprint: sector i of 512 bytes is at origin offset 512 * i for i < 8, and 65536 + 512 * (i - 8) for the rest:
 * where file systems keep their superblock, label and UUID. Its checksum is XXH3_64bits(512 bytes), that is with seed
 * 0, with 1 in place of a result of 0; 0 stands for a sector beyond the origin's end. In a fingerprint entry's slot the
 * same 128 bytes come first, and zeroes fill the block.
 */
#include "format/superblock.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <xxhash.h>

#include "format/bytes.h"

static const uint8_t magic[8] = { 'r', 'o', 'w', 's', 'n', 'a', 'p', '\0' };

enum {
	AT_VERSION = 8,
	AT_HEADER_BYTES = 12,
	AT_COMPAT = 16,
	AT_RO_COMPAT = 20,
	AT_INCOMPAT = 24,
	AT_GENERATION = 32,
	AT_SEQUENCE = 40,
	AT_STORE_UUID = 48,
	AT_VOLUME_UUID = 64,
	AT_PREDECESSOR_UUID = 80,
	AT_SUCCESSOR_UUID = 96,
	AT_FOLD_SOURCE_UUID = 112,
	AT_WITNESS_UUID = 128,
	AT_ROLE = 144,
	AT_STATE = 148,
	AT_BLOCK_BYTES = 152,
	AT_SLOTS_PER_AREA = 156,
	AT_FIRST_AREA_OFFSET = 160,
	AT_LIMIT_BYTES = 168,
	AT_ORIGIN_BYTES = 176,
	AT_CREATED = 184,
	AT_SEALED = 192,
	AT_DURABLE_SLOTS = 200,
	AT_LOG_SLOTS = 208,
	AT_FOLD_BASE_SLOTS = 216,
	AT_CLEAN = 224,
	AT_BROKEN_REASON = 228,
	AT_BROKEN_TIME = 232,
	AT_WITNESS_REASON = 240,
	AT_WITNESS_TIME = 248,
	AT_NAME = 256,
	AT_FINGERPRINT = 320,
	HEADER_BYTES = 448,
	AT_PART_COUNT = 448,
	AT_PART_INDEX = 452,
	AT_MAIN_UUID = 456,
	AT_PARTS = 472,
	PART_BYTES = 24,
	AT_PART_FIRST_AREA = 16,
	AT_PART_SKIPPED_SLOTS = 20,
	HEADER_BYTES_JOINED = 832,
	AT_CHECKSUM = 4088,
};

#define NAME_BYTES ((size_t)NAME_LENGTH_MAX + 1)
#define FINGERPRINT_FAR_OFFSET UINT64_C(65536)

_Static_assert(AT_NAME + NAME_LENGTH_MAX + 1 == AT_FINGERPRINT, "the name ends where the fingerprint begins");
_Static_assert(AT_FINGERPRINT + (int)FINGERPRINT_BYTES == HEADER_BYTES, "the fingerprint is the last field");
_Static_assert(AT_CHECKSUM + sizeof(uint64_t) == SUPERBLOCK_BYTES, "the checksum ends the superblock");
_Static_assert(FINGERPRINT_SECTORS * sizeof(uint64_t) == FINGERPRINT_BYTES, "a fingerprint's sectors fill it");

_Static_assert(AT_PARTS + (int)(STORE_PARTS_MAX - 1) * PART_BYTES == HEADER_BYTES_JOINED, "the parts are the last field");

static void put_uuid(uint8_t *at, const uuid128_t *uuid)
{
	memcpy(at, uuid->bytes, sizeof(uuid->bytes));
}

static void get_uuid(const uint8_t *at, uuid128_t *uuid)
{
	memcpy(uuid->bytes, at, sizeof(uuid->bytes));
}

static bool is_joined(const struct superblock *superblock)
{
	return superblock->part_count > 0 || superblock->role == ROLE_PART;
}

static void put_parts(uint8_t *out, const struct superblock *superblock)
{
	put_u32(out + AT_HEADER_BYTES, HEADER_BYTES_JOINED);
	put_u32(out + AT_INCOMPAT, superblock->incompat | FEATURE_JOINED);
	put_u32(out + AT_PART_COUNT, superblock->part_count);
	put_u32(out + AT_PART_INDEX, superblock->part_index);
	put_uuid(out + AT_MAIN_UUID, &superblock->main_uuid);
	assert(superblock->part_count < STORE_PARTS_MAX);
	for (size_t i = 0; i < superblock->part_count; i++) {
		uint8_t *at = out + AT_PARTS + i * PART_BYTES;

		put_uuid(at, &superblock->parts[i].uuid);
		put_u32(at + AT_PART_FIRST_AREA, superblock->parts[i].first_area);
		put_u32(at + AT_PART_SKIPPED_SLOTS, superblock->parts[i].skipped_slots);
	}
}

/* The count must have been found in range: find_raw_fault(). */
static void get_parts(const uint8_t *in, struct superblock *superblock)
{
	superblock->part_count = get_u32(in + AT_PART_COUNT);
	superblock->part_index = get_u32(in + AT_PART_INDEX);
	get_uuid(in + AT_MAIN_UUID, &superblock->main_uuid);
	for (size_t i = 0; i < superblock->part_count; i++) {
		const uint8_t *at = in + AT_PARTS + i * PART_BYTES;

		get_uuid(at, &superblock->parts[i].uuid);
		superblock->parts[i].first_area = get_u32(at + AT_PART_FIRST_AREA);
		superblock->parts[i].skipped_slots = get_u32(at + AT_PART_SKIPPED_SLOTS);
	}
}

void superblock_encode(uint8_t out[static SUPERBLOCK_BYTES], const struct superblock *superblock)
{
	memset(out, 0, SUPERBLOCK_BYTES);
	memcpy(out, magic, sizeof(magic));
	put_u32(out + AT_VERSION, FORMAT_VERSION);
	put_u32(out + AT_HEADER_BYTES, HEADER_BYTES);
	put_u32(out + AT_COMPAT, superblock->compat);
	put_u32(out + AT_RO_COMPAT, superblock->ro_compat);
	put_u32(out + AT_INCOMPAT, superblock->incompat & ~FEATURE_JOINED);
	put_u64(out + AT_GENERATION, superblock->generation);
	put_u64(out + AT_SEQUENCE, superblock->sequence);
	put_uuid(out + AT_STORE_UUID, &superblock->store_uuid);
	put_uuid(out + AT_VOLUME_UUID, &superblock->volume_uuid);
	put_uuid(out + AT_PREDECESSOR_UUID, &superblock->predecessor_uuid);
	put_uuid(out + AT_SUCCESSOR_UUID, &superblock->successor_uuid);
	put_uuid(out + AT_FOLD_SOURCE_UUID, superblock->state == STATE_MERGING ? &superblock->merge_target_uuid :
										  &superblock->fold_source_uuid);
	put_uuid(out + AT_WITNESS_UUID, &superblock->witness_uuid);
	put_u32(out + AT_ROLE, (uint32_t)superblock->role);
	put_u32(out + AT_STATE, (uint32_t)superblock->state);
	put_u32(out + AT_BLOCK_BYTES, superblock->geometry.block_bytes);
	put_u32(out + AT_SLOTS_PER_AREA, superblock->geometry.slots_per_area);
	put_u64(out + AT_FIRST_AREA_OFFSET, superblock->geometry.first_area_offset);
	put_u64(out + AT_LIMIT_BYTES, superblock->limit_bytes);
	put_u64(out + AT_ORIGIN_BYTES, superblock->origin_bytes);
	put_u64(out + AT_CREATED, superblock->created_ns);
	put_u64(out + AT_SEALED, superblock->sealed_ns);
	put_u64(out + AT_DURABLE_SLOTS, superblock->durable_slots);
	put_u64(out + AT_LOG_SLOTS, superblock->log_slots);
	put_u64(out + AT_FOLD_BASE_SLOTS, superblock->fold_base_slots);
	put_u32(out + AT_CLEAN, superblock->clean ? 1 : 0);
	put_u32(out + AT_BROKEN_REASON, (uint32_t)superblock->broken.reason);
	put_u64(out + AT_BROKEN_TIME, superblock->broken.time_ns);
	put_u32(out + AT_WITNESS_REASON, (uint32_t)superblock->witness.reason);
	put_u64(out + AT_WITNESS_TIME, superblock->witness.time_ns);
	memcpy(out + AT_NAME, superblock->name, strnlen(superblock->name, NAME_LENGTH_MAX));
	fingerprint_encode(out + AT_FINGERPRINT, &superblock->fingerprint);
	if (is_joined(superblock))
		put_parts(out, superblock);
	put_u64(out + AT_CHECKSUM, XXH3_64bits(out, AT_CHECKSUM));
}

/* Enumerations must have been found in range, and the name terminated: find_raw_fault(). */
static void read_fields(const uint8_t *in, struct superblock *superblock)
{
	superblock->compat = get_u32(in + AT_COMPAT);
	superblock->ro_compat = get_u32(in + AT_RO_COMPAT);
	superblock->incompat = get_u32(in + AT_INCOMPAT);
	superblock->generation = get_u64(in + AT_GENERATION);
	superblock->sequence = get_u64(in + AT_SEQUENCE);
	get_uuid(in + AT_STORE_UUID, &superblock->store_uuid);
	get_uuid(in + AT_VOLUME_UUID, &superblock->volume_uuid);
	get_uuid(in + AT_PREDECESSOR_UUID, &superblock->predecessor_uuid);
	get_uuid(in + AT_SUCCESSOR_UUID, &superblock->successor_uuid);
	get_uuid(in + AT_WITNESS_UUID, &superblock->witness_uuid);
	superblock->role = (enum store_role)get_u32(in + AT_ROLE);
	superblock->state = (enum store_state)get_u32(in + AT_STATE);
	get_uuid(in + AT_FOLD_SOURCE_UUID, superblock->state == STATE_MERGING ? &superblock->merge_target_uuid :
										 &superblock->fold_source_uuid);
	superblock->geometry.block_bytes = get_u32(in + AT_BLOCK_BYTES);
	superblock->geometry.slots_per_area = get_u32(in + AT_SLOTS_PER_AREA);
	superblock->geometry.first_area_offset = get_u64(in + AT_FIRST_AREA_OFFSET);
	superblock->limit_bytes = get_u64(in + AT_LIMIT_BYTES);
	superblock->origin_bytes = get_u64(in + AT_ORIGIN_BYTES);
	superblock->created_ns = get_u64(in + AT_CREATED);
	superblock->sealed_ns = get_u64(in + AT_SEALED);
	superblock->durable_slots = get_u64(in + AT_DURABLE_SLOTS);
	superblock->log_slots = get_u64(in + AT_LOG_SLOTS);
	superblock->fold_base_slots = get_u64(in + AT_FOLD_BASE_SLOTS);
	superblock->clean = get_u32(in + AT_CLEAN) == 1;
	superblock->broken.reason = (enum broken_reason)get_u32(in + AT_BROKEN_REASON);
	superblock->broken.time_ns = get_u64(in + AT_BROKEN_TIME);
	superblock->witness.reason = (enum broken_reason)get_u32(in + AT_WITNESS_REASON);
	superblock->witness.time_ns = get_u64(in + AT_WITNESS_TIME);
	memcpy(superblock->name, in + AT_NAME, NAME_BYTES);
	fingerprint_decode(in + AT_FINGERPRINT, &superblock->fingerprint);
	if ((superblock->incompat & FEATURE_JOINED) != 0)
		get_parts(in, superblock);
}

/* The find_..._fault() functions return NULL, or a static text for the first fault. Here: what read_fields() needs. */
static const char *find_raw_fault(const uint8_t *in)
{
	uint32_t header_bytes = get_u32(in + AT_HEADER_BYTES);
	uint32_t role = get_u32(in + AT_ROLE);
	bool joined = (get_u32(in + AT_INCOMPAT) & FEATURE_JOINED) != 0;
	const uint8_t *name = in + AT_NAME;
	size_t length = strnlen((const char *)name, NAME_BYTES);

	if (header_bytes < HEADER_BYTES || header_bytes > AT_CHECKSUM)
		return "header_bytes: not a size a superblock can have";
	if (joined && header_bytes < HEADER_BYTES_JOINED)
		return "header_bytes: too small for a joined store";
	if (joined && get_u32(in + AT_PART_COUNT) >= STORE_PARTS_MAX)
		return "part_count: over 15";
	if (role != ROLE_SNAPSHOT && role != ROLE_FORK && role != ROLE_PART)
		return "role: unknown";
	if (get_u32(in + AT_STATE) > STATE_JOINED)
		return "state: unknown";
	if (get_u32(in + AT_CLEAN) > 1)
		return "clean: neither 0 nor 1";
	if (get_u32(in + AT_BROKEN_REASON) > BROKEN_ORIGIN_CHANGED)
		return "broken reason: unknown";
	if (get_u32(in + AT_WITNESS_REASON) > BROKEN_ORIGIN_CHANGED)
		return "witness broken reason: unknown";
	if (length == NAME_BYTES)
		return "name: not terminated";
	for (; length < NAME_BYTES; length++)
		if (name[length] != 0)
			return "name: not padded with zeroes";
	return NULL;
}

static const char *find_identity_fault(const struct superblock *superblock)
{
	const uuid128_t *self = &superblock->store_uuid;
	bool empty = superblock->state == STATE_EMPTY;

	if (uuid_is_nil(self))
		return "store UUID: nil";
	if (uuid_is_nil(&superblock->volume_uuid) != empty)
		return empty ? "volume UUID: set in an empty store" : "volume UUID: nil";
	if (uuid_equal(&superblock->predecessor_uuid, self))
		return "predecessor UUID: the store itself";
	if (uuid_equal(&superblock->successor_uuid, self))
		return "successor UUID: the store itself";
	if (!uuid_is_nil(&superblock->successor_uuid) &&
	    uuid_equal(&superblock->successor_uuid, &superblock->predecessor_uuid))
		return "successor UUID: the predecessor";
	if (empty && !uuid_is_nil(&superblock->predecessor_uuid))
		return "predecessor UUID: set in an empty store";
	if (empty && !uuid_is_nil(&superblock->successor_uuid))
		return "successor UUID: set in an empty store";
	if ((superblock->sequence == 0) != empty)
		return empty ? "sequence: set in an empty store" : "sequence: 0";
	if (empty && superblock->name[0] != '\0')
		return "name: set in an empty store";
	if (!empty && !name_is_valid(superblock->name))
		return "name: not a valid one";
	return NULL;
}

static const char *find_size_fault(const struct superblock *superblock)
{
	const struct geometry *geometry = &superblock->geometry;
	uint64_t origin_bytes = superblock->origin_bytes;
	bool empty = superblock->state == STATE_EMPTY;

	if (!geometry_is_valid(geometry))
		return "geometry (block_bytes, slots_per_area, first_area_offset): not a valid one";
	if (superblock->limit_bytes != 0 &&
	    superblock->limit_bytes < geometry->first_area_offset + geometry_area_bytes(geometry))
		return "limit_bytes: less than one area takes";
	if ((origin_bytes == 0) != empty)
		return empty ? "origin_bytes: set in an empty store" : "origin_bytes: 0";
	if (origin_bytes % FINGERPRINT_SECTOR_BYTES != 0)
		return "origin_bytes: not a multiple of 512";
	if (origin_bytes > ORIGIN_BYTES_MAX)
		return "origin_bytes: over 16 TiB";
	for (unsigned i = 0; i < FINGERPRINT_SECTORS; i++)
		if (fingerprint_offset(i) >= origin_bytes && superblock->fingerprint.sector[i] != 0)
			return "fingerprint: set beyond the origin's end";
	return NULL;
}

static const char *find_log_fault(const struct superblock *superblock)
{
	bool folding = !uuid_is_nil(&superblock->fold_source_uuid);

	if (superblock->durable_slots > SLOT_INDEX_MAX)
		return "durable_slots: too large";
	if (superblock->log_slots > SLOT_INDEX_MAX)
		return "log_slots: too large";
	if (superblock->fold_base_slots > SLOT_INDEX_MAX)
		return "fold_base_slots: too large";
	if (superblock->clean && superblock->durable_slots > superblock->log_slots)
		return "durable_slots: past the log's end";
	if (folding && superblock->clean && superblock->fold_base_slots > superblock->log_slots)
		return "fold_base_slots: past the log's end";
	if (superblock->state == STATE_EMPTY || superblock->state == STATE_PREPARED ||
	    superblock->state == STATE_JOINED) {
		if (superblock->durable_slots != 0)
			return "durable_slots: set in a store without a log";
		if (superblock->log_slots != 0)
			return "log_slots: set in a store without a log";
		if (folding)
			return "fold source UUID: set in a store without a log";
	}
	return NULL;
}

static const char *find_link_fault(const struct superblock *superblock)
{
	const uuid128_t *source = &superblock->fold_source_uuid;
	bool folding = !uuid_is_nil(source);
	bool has_successor = !uuid_is_nil(&superblock->successor_uuid);

	if (folding && uuid_equal(source, &superblock->store_uuid))
		return "fold source UUID: the store itself";
	if (folding && uuid_equal(source, &superblock->predecessor_uuid))
		return "fold source UUID: the predecessor";
	if (superblock->state == STATE_PREPARED && has_successor)
		return "successor UUID: set in a prepared store";
	if (superblock->state == STATE_ACTIVE && has_successor && !uuid_equal(source, &superblock->successor_uuid))
		return "successor UUID: set in an active store";
	if (superblock->state == STATE_SEALED && folding && !uuid_equal(source, &superblock->successor_uuid))
		return "fold source UUID: not the successor";
	if (superblock->state == STATE_SEALED && !folding && !superblock->clean)
		return "clean: 0 in a sealed store";
	if (superblock->state == STATE_MERGING && !superblock->clean)
		return "clean: 0 in a merging store";
	if (superblock->state == STATE_MERGING && uuid_is_nil(&superblock->merge_target_uuid))
		return "merge target UUID: nil in a merging store";
	return NULL;
}

static const char *find_mark_fault(const struct superblock *superblock)
{
	const struct broken_mark *broken = &superblock->broken;
	const struct broken_mark *witness = &superblock->witness;
	bool has_witness = !uuid_is_nil(&superblock->witness_uuid);
	bool empty = superblock->state == STATE_EMPTY;

	if (empty && broken->reason != BROKEN_NOT)
		return "broken reason: set in an empty store";
	if (broken->reason == BROKEN_NOT && broken->time_ns != 0)
		return "broken time: set without a reason";
	if (empty && has_witness)
		return "witness UUID: set in an empty store";
	if (has_witness && uuid_equal(&superblock->witness_uuid, &superblock->store_uuid))
		return "witness UUID: the store itself";
	if (has_witness != (witness->reason != BROKEN_NOT))
		return has_witness ? "witness broken reason: 0" : "witness broken reason: set without a witness";
	if (witness->reason == BROKEN_NOT && witness->time_ns != 0)
		return "witness broken time: set without a reason";
	return NULL;
}

/* Of what is a part, and only of that. */
static const char *find_role_fault(const struct superblock *superblock)
{
	bool part = superblock->role == ROLE_PART;

	if (part && (superblock->incompat & FEATURE_JOINED) == 0)
		return "role: a part without the feature of it";
	if (!is_joined(superblock) && (superblock->incompat & FEATURE_JOINED) != 0)
		return "incompat features: joined, without parts or being one";
	if (part != (superblock->state == STATE_JOINED))
		return part ? "state: not joined, in a part" : "state: joined, and no part";
	if (!part && (superblock->part_index != 0 || !uuid_is_nil(&superblock->main_uuid)))
		return "part_index, main UUID: set, and it is no part";
	if (!part)
		return NULL;
	if (superblock->part_count > 0)
		return "part_count: set in a part";
	if (superblock->part_index == 0 || superblock->part_index >= STORE_PARTS_MAX)
		return "part_index: not 1 to 15";
	if (uuid_is_nil(&superblock->main_uuid) || uuid_equal(&superblock->main_uuid, &superblock->store_uuid))
		return "main UUID: nil, or the part itself";
	if (!uuid_is_nil(&superblock->predecessor_uuid) || !uuid_is_nil(&superblock->successor_uuid))
		return "predecessor or successor UUID: set in a part";
	if (superblock->broken.reason != BROKEN_NOT || !uuid_is_nil(&superblock->witness_uuid))
		return "broken reason or witness: set in a part";
	if (!superblock->clean)
		return "clean: 0 in a part";
	return NULL;
}

static const char *find_parts_fault(const struct superblock *superblock)
{
	uint32_t last = 0;

	if (superblock->part_count > 0 &&
	    (superblock->state == STATE_EMPTY || superblock->state == STATE_PREPARED))
		return "part_count: set in a store without a log";
	for (uint32_t i = 0; i < superblock->part_count; i++) {
		const struct part *part = &superblock->parts[i];

		if (uuid_is_nil(&part->uuid) || uuid_equal(&part->uuid, &superblock->store_uuid))
			return "part UUID: nil, or the store itself";
		for (uint32_t j = 0; j < i; j++)
			if (uuid_equal(&superblock->parts[j].uuid, &part->uuid))
				return "part UUID: there twice";
		if (part->first_area == PART_AREA_NONE && part->skipped_slots != 0)
			return "skipped_slots: set in a part without areas";
		if (part->first_area != PART_AREA_NONE &&
		    (last == PART_AREA_NONE || part->first_area < last))
			return "first_area: not in order";
		if (part->first_area != PART_AREA_NONE &&
		    (uint64_t)part->first_area * superblock->geometry.slots_per_area > SLOT_INDEX_MAX)
			return "first_area: too large";
		if (part->first_area != PART_AREA_NONE &&
		    part->skipped_slots > (uint64_t)part->first_area * superblock->geometry.slots_per_area)
			return "skipped_slots: more than there are";
		last = part->first_area;
	}
	return NULL;
}

static const char *find_fault(const uint8_t *in, struct superblock *superblock)
{
	static const char *(*const finders[])(const struct superblock *superblock) = {
		find_role_fault, find_identity_fault, find_size_fault, find_log_fault,
		find_link_fault, find_mark_fault,     find_parts_fault,
	};
	const char *fault = find_raw_fault(in);

	if (fault != NULL)
		return fault;
	read_fields(in, superblock);
	for (size_t i = 0; i < sizeof(finders) / sizeof(finders[0]) && fault == NULL; i++)
		fault = finders[i](superblock);
	return fault;
}

static const char *find_unsupported(const uint8_t *in)
{
	if (get_u32(in + AT_VERSION) != FORMAT_VERSION)
		return "version: unknown";
	if ((get_u32(in + AT_INCOMPAT) & ~FEATURES_INCOMPAT) != 0)
		return "incompat features: unknown ones";
	return NULL;
}

int superblock_decode(const uint8_t in[static SUPERBLOCK_BYTES], struct superblock *superblock, const char **why)
{
	struct superblock found = { 0 };
	const char *fault;
	int error = -EPROTONOSUPPORT;

	if (memcmp(in, magic, sizeof(magic)) != 0)
		return -ENODATA;
	if (get_u64(in + AT_CHECKSUM) != XXH3_64bits(in, AT_CHECKSUM))
		return -EBADMSG;
	fault = find_unsupported(in);
	if (fault == NULL) {
		error = -EINVAL;
		fault = find_fault(in, &found);
	}
	if (fault != NULL) {
		if (why != NULL)
			*why = fault;
		return error;
	}
	*superblock = found;
	return 0;
}

bool superblock_looks_torn(const uint8_t damaged[static SUPERBLOCK_BYTES], const uint8_t good[static SUPERBLOCK_BYTES])
{
	struct superblock version, other;
	uint8_t whole[SUPERBLOCK_BYTES];
	size_t defined = HEADER_BYTES;

	if (memcmp(damaged, good, AT_CHECKSUM) == 0)
		return true;
	if (((get_u32(damaged + AT_INCOMPAT) | get_u32(good + AT_INCOMPAT)) & FEATURE_JOINED) != 0)
		defined = HEADER_BYTES_JOINED;
	if (memcmp(damaged + defined, good + defined, SUPERBLOCK_BYTES - defined) != 0)
		return false;
	memcpy(whole, damaged, AT_CHECKSUM);
	put_u64(whole + AT_CHECKSUM, XXH3_64bits(whole, AT_CHECKSUM));
	return superblock_decode(whole, &version, NULL) == 0 && superblock_decode(good, &other, NULL) == 0 &&
	       uuid_equal(&version.store_uuid, &other.store_uuid) && version.generation != other.generation;
}

bool name_is_valid(const char *name)
{
	static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
	size_t length = strnlen(name, NAME_BYTES);

	if (length == 0 || length > NAME_LENGTH_MAX)
		return false;
	return strspn(name, allowed) == length && name[0] != '-' && name[0] != '.' && strcmp(name, "origin") != 0;
}

const char *store_state_text(enum store_state state)
{
	switch (state) {
	case STATE_EMPTY:
		return "empty";
	case STATE_PREPARED:
		return "prepared";
	case STATE_ACTIVE:
		return "active";
	case STATE_SEALED:
		return "sealed";
	case STATE_MERGING:
		return "merging";
	case STATE_JOINED:
		return "joined";
	}
	return "unknown";
}

const char *broken_reason_text(enum broken_reason reason)
{
	switch (reason) {
	case BROKEN_NOT:
		return "not broken";
	case BROKEN_FULL:
		return "full";
	case BROKEN_STORE_ERROR:
		return "store error";
	case BROKEN_BARRIER:
		return "barrier failed";
	case BROKEN_METADATA:
		return "metadata lost";
	case BROKEN_ORIGIN_CHANGED:
		return "origin changed";
	}
	return "unknown";
}

uint64_t fingerprint_checksum(const uint8_t sector[static FINGERPRINT_SECTOR_BYTES])
{
	uint64_t checksum = XXH3_64bits(sector, FINGERPRINT_SECTOR_BYTES);

	return checksum != 0 ? checksum : 1;
}

uint64_t fingerprint_offset(unsigned index)
{
	const unsigned near_sectors = FINGERPRINT_SECTORS / 2;

	assert(index < FINGERPRINT_SECTORS);
	if (index < near_sectors)
		return (uint64_t)index * FINGERPRINT_SECTOR_BYTES;
	return FINGERPRINT_FAR_OFFSET + (uint64_t)(index - near_sectors) * FINGERPRINT_SECTOR_BYTES;
}

void fingerprint_encode(uint8_t out[static FINGERPRINT_BYTES], const struct fingerprint *fingerprint)
{
	for (size_t i = 0; i < FINGERPRINT_SECTORS; i++)
		put_u64(out + i * sizeof(uint64_t), fingerprint->sector[i]);
}

void fingerprint_decode(const uint8_t in[static FINGERPRINT_BYTES], struct fingerprint *fingerprint)
{
	for (size_t i = 0; i < FINGERPRINT_SECTORS; i++)
		fingerprint->sector[i] = get_u64(in + i * sizeof(uint64_t));
}
