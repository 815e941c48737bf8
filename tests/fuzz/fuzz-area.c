/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An area's metadata: its header and its entries. The input says where it is expected to be, and which checksums are to
 * be put right (so that what lies behind them is reached), and then the bytes as they are on disk, padded with zeroes:
 *
 *	u8 of the store's UUID, u8 flags, u8 slots in an area, u32 area, u64 blocks on the origin, metadata
 *
 *   1. What is accepted is within the ranges that were asked for.
 *   2. Encoding what was decoded gives the same bytes, but for the header's reserved ones.
 *   3. An entry tells of its own place only: moved to another index, or area, or store, it does not hold.
 */
#include <errno.h>

#include "format/area.h"
#include "format/bytes.h"
#include "format/superblock.h"
#include "tests/fuzz/fuzz.h"

#define PUT_HEADER 1u  /* put its checksum right */
#define PUT_ENTRIES 2u /* and those of the entries that are not all zeroes */
#define PUT_AREA 4u    /* and the area's number */

struct place {
	uint64_t seed;
	uint32_t area, slots_per_area;
	block_t block_count;
};

static uint8_t *entry_at(uint8_t *meta, uint32_t index)
{
	return meta + AREA_HEADER_BYTES + (size_t)index * ENTRY_BYTES;
}

static void put_entry_checksum(uint8_t *meta, const struct place *place, uint32_t index)
{
	static const uint8_t zeroes[ENTRY_BYTES];
	uint8_t input[20], *at = entry_at(meta, index);

	if (memcmp(at, zeroes, ENTRY_BYTES) == 0)
		return;
	put_u32(input, place->area);
	put_u32(input + 4, index);
	memcpy(input + 8, at, 12);
	put_u32(at + 12, data_checksum(place->seed, input, sizeof(input)));
}

static void put_right(uint8_t *meta, const struct place *place, unsigned flags)
{
	if (flags & PUT_AREA)
		put_u32(meta + 4, place->area);
	if (flags & PUT_HEADER)
		put_u32(meta + 28, data_checksum(place->seed, meta, 28));
	for (uint32_t index = 0; flags & PUT_ENTRIES && index < AREA_SLOTS_MAX; index++)
		put_entry_checksum(meta, place, index);
}

static void look_at_header(const uint8_t *meta, const struct place *place)
{
	uint8_t encoded[AREA_META_BYTES], expected[AREA_HEADER_BYTES];
	struct area_header header;
	int error = area_header_decode(meta, place->seed, place->area, place->slots_per_area, &header);

	fuzz_check("a header's error is one of those promised", error == 0 || error == -ENODATA || error == -EBADMSG);
	if (error != 0)
		return;
	fuzz_check("a header is within its ranges", header.area == place->area &&
							    header.entry_count <= place->slots_per_area &&
							    header.durable_slots <= SLOT_INDEX_MAX);
	memcpy(encoded, meta, sizeof(encoded));
	area_header_encode(encoded, place->seed, &header);
	memcpy(expected, meta, sizeof(expected));
	memset(expected + 22, 0, 6);
	put_u32(expected + 28, data_checksum(place->seed, expected, 28));
	fuzz_check("encoding a header undoes decoding", memcmp(encoded, expected, sizeof(expected)) == 0);
	fuzz_check("encoding a header leaves the entries alone",
		   memcmp(encoded + AREA_HEADER_BYTES, meta + AREA_HEADER_BYTES, AREA_META_BYTES - AREA_HEADER_BYTES) == 0);
}

static void check_entry(const struct entry *entry, const struct place *place)
{
	bool has_block = entry->type == ENTRY_DATA || entry->type == ENTRY_ZERO || entry->type == ENTRY_LOST;

	fuzz_check("a type has a word", strcmp(entry_type_text(entry->type), "unknown") != 0);
	fuzz_check("an entry has blocks or none, by its type", (entry->count > 0) == has_block);
	fuzz_check("its blocks lie on the origin", has_block ? entry->block < place->block_count &&
								      entry->count <= place->block_count - entry->block :
							      entry->block == 0);
	fuzz_check("only runs of zeroes have several", entry->type == ENTRY_ZERO || entry->count <= 1);
}

/* The entry, which holds at its place, is moved to others. (The checksum has 32 bits: a miss is no proof, and rare.) */
static void check_moved(uint8_t *meta, const struct place *place, uint32_t index)
{
	uint32_t other = (index + 1) % AREA_SLOTS_MAX;
	uint8_t saved[ENTRY_BYTES];
	struct entry entry;
	unsigned held = 0;

	held += entry_decode(meta, place->seed, place->area + 1, index, place->block_count, &entry) != -EBADMSG;
	held += entry_decode(meta, place->seed + 1, place->area, index, place->block_count, &entry) != -EBADMSG;
	memcpy(saved, entry_at(meta, other), sizeof(saved));
	memcpy(entry_at(meta, other), entry_at(meta, index), sizeof(saved));
	held += entry_decode(meta, place->seed, place->area, other, place->block_count, &entry) != -EBADMSG;
	memcpy(entry_at(meta, other), saved, sizeof(saved));
	fuzz_check("an entry holds at its own place only", held < 2);
}

static void look_at_entry(uint8_t *meta, const struct place *place, uint32_t index)
{
	uint8_t encoded[AREA_META_BYTES];
	struct entry entry;
	int error = entry_decode(meta, place->seed, place->area, index, place->block_count, &entry);

	fuzz_check("an entry's error is one of those promised",
		   error == 0 || error == -ENODATA || error == -EBADMSG || error == -EINVAL);
	if (error != 0)
		return;
	check_entry(&entry, place);
	entry_encode(encoded, place->seed, place->area, index, &entry);
	fuzz_check("encoding an entry undoes decoding",
		   memcmp(entry_at(encoded, index), entry_at(meta, index), ENTRY_BYTES) == 0);
	check_moved(meta, place, index);
}

static void look_at(uint8_t *meta, const struct place *place)
{
	look_at_header(meta, place);
	for (uint32_t index = 0; index < AREA_SLOTS_MAX; index++)
		look_at_entry(meta, place, index);
}

static void check_geometry(const struct place *place, uint64_t store_bytes)
{
	struct geometry geometry = { BLOCK_BYTES_MIN << (place->area % 5), place->slots_per_area, FIRST_AREA_OFFSET };
	uint64_t slots = geometry_slots(&geometry, store_bytes);
	slot_t last = SLOT(slots - 1);

	fuzz_check("a geometry with everything in range is valid", geometry_is_valid(&geometry));
	fuzz_check("a store has whole areas", slots <= SLOT_INDEX_MAX && slots % place->slots_per_area == 0);
	if (slots == 0)
		return;
	fuzz_check("its last slot lies in it, before the area's second metadata copy",
		   geometry_slot_offset(&geometry, last) + geometry.block_bytes ==
				   geometry_meta_offset(&geometry, geometry_slot_area(&geometry, last), 1) &&
			   geometry_meta_offset(&geometry, geometry_slot_area(&geometry, last), 1) + AREA_META_BYTES <=
				   store_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input input = { data, size };
	uuid128_t uuid = { { fuzz_u8(&input), 1 } };
	unsigned flags = fuzz_u8(&input);
	uint32_t slots = fuzz_u8(&input) % AREA_SLOTS_MAX + 1, area = fuzz_u32(&input);
	struct place place = { checksum_seed(&uuid), area, slots, fuzz_u64(&input) };
	uint8_t meta[AREA_META_BYTES];

	fuzz_take(&input, meta, sizeof(meta));
	look_at(meta, &place);
	put_right(meta, &place, flags);
	look_at(meta, &place);
	check_geometry(&place, place.block_count);
	return 0;
}
