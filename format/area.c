/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Areas, entries and checksums: the bytes of a store's log. rowsnap-format(5) says the same, and how the log is
 * written, recovered and read. Numbers are little-endian; reserved bytes are written as 0 and not looked at.
 *
 * The log is a row of slots, each with room for one block and with one entry that says what is in it. Slot s is the
 * slot s % slots_per_area of area s / slots_per_area; an entry has the same index in its area's metadata.
 *
 *   area_bytes = 2 * 4096 + slots_per_area * block_bytes
 *   area a     = first_area_offset + a * area_bytes:
 *
 *   +-----------------+--------+--------+-----+------------------------+-----------------+
 *   | metadata copy 0 | slot 0 | slot 1 | ... | slot slots_per_area-1  | metadata copy 1 |
 *   | 4096 bytes      | block_bytes each                               | 4096 bytes      |
 *   +-----------------+------------------------------------------------+-----------------+
 *
 * Metadata, 4096 bytes: a header of 32, then 254 entries of 16, of which slots_per_area are used; entry i is at
 * 32 + 16 * i.
 *
 *   header  bytes   field
 *    0- 3           magic: "RSar" (52 53 61 72)
 *    4- 7   u32     area: the area's own number
 *    8-15   u64     write_count: grows with every write of the area's metadata
 *   16-19   u32     durable_slots: slots [0, n) of the log were known durable when this was written; at most fffffff0
 *   20-21   u16     entry_count: entries [0, n) are used; at most slots_per_area
 *   22-27           reserved
 *   28-31   u32     checksum: low(bytes 0-27)
 *
 *   entry   bytes   field
 *    0- 7   u64     low 56 bits: block; high 8 bits (byte 7): type
 *    8-11   u32     value
 *   12-15   u32     checksum: low(20 bytes: area as u32, index in the area as u32, the entry's bytes 0-11)
 *
 *   type            block              value
 *   1 data          the block          low(the slot's block_bytes bytes)
 *   2 zero          the first block    how many blocks, 1 or more; they were all zeroes; the slot is left empty
 *   3 lost          the block          0; the old content could not be read; the slot is left empty
 *   4 void          0                  0; the slot could not be written and holds nothing
 *   5 fingerprint   0                  low(the slot's block_bytes bytes): a coming fingerprint (superblock.c)
 *
 *   low(bytes)    = the low 32 bits of XXH3_64bits_withSeed(bytes, seed)
 *   seed          = XXH3_64bits(the store UUID's 16 bytes), that is with seed 0
 *
 * An entry whose 16 bytes are all 0 is unused. One holds when its checksum is right for where it is, and type, block
 * and value are as above. The blocks it names lie on the origin, whose last block, if partial, is stored and
 * checksummed padded with zeroes. Of the two copies, an entry is taken from the one whose header is valid and has the
 * larger write_count if it holds there, else from the other.
 *
 * Why so: the seed makes whatever an earlier use of the disk left behind invalid, so formatting has nothing to zero;
 * and the area and index in an entry's checksum pin it to its place. Neither does the header cover the entries nor an
 * entry another one: each holds by itself, so when a metadata write is torn, of its 512-byte sectors some new and some
 * old, all that either version has can still be told, and the other copy was not being written.
 */
#include "format/area.h"

#include <assert.h>
#include <errno.h>
#include <xxhash.h>

#include "format/bytes.h"
#include "format/superblock.h"

#define HEADER_MAGIC UINT32_C(0x72615352) /* "RSar" */

enum {
	HEADER_AREA = 4,
	HEADER_WRITE_COUNT = 8,
	HEADER_DURABLE_SLOTS = 16,
	HEADER_ENTRY_COUNT = 20,
	HEADER_CHECKSUM = 28,
};

enum {
	ENTRY_VALUE = 8,
	ENTRY_CHECKSUM = 12,
	ENTRY_CHECKSUM_INPUT_BYTES = 8 + ENTRY_CHECKSUM,
};

#define ENTRY_TYPE_SHIFT 56
#define ENTRY_BLOCK_MASK ((UINT64_C(1) << ENTRY_TYPE_SHIFT) - 1)

_Static_assert(AREA_HEADER_BYTES + AREA_SLOTS_MAX * ENTRY_BYTES == AREA_META_BYTES, "the metadata block is full");
_Static_assert(HEADER_CHECKSUM + sizeof(uint32_t) == AREA_HEADER_BYTES, "the header's checksum ends it");
_Static_assert(ENTRY_CHECKSUM + sizeof(uint32_t) == ENTRY_BYTES, "the entry's checksum ends it");

bool geometry_is_valid(const struct geometry *geometry)
{
	uint32_t block_bytes = geometry->block_bytes;

	return block_bytes >= BLOCK_BYTES_MIN && block_bytes <= BLOCK_BYTES_MAX &&
	       (block_bytes & (block_bytes - 1)) == 0 && geometry->slots_per_area >= 1 &&
	       geometry->slots_per_area <= AREA_SLOTS_MAX && geometry->first_area_offset == FIRST_AREA_OFFSET;
}

uint64_t geometry_area_bytes(const struct geometry *geometry)
{
	return 2 * (uint64_t)AREA_META_BYTES + (uint64_t)geometry->slots_per_area * geometry->block_bytes;
}

uint64_t geometry_area_offset(const struct geometry *geometry, uint32_t area)
{
	return geometry->first_area_offset + area * geometry_area_bytes(geometry);
}

uint64_t geometry_meta_offset(const struct geometry *geometry, uint32_t area, unsigned copy)
{
	uint64_t offset = geometry_area_offset(geometry, area);

	assert(copy < 2);
	return copy == 0 ? offset : offset + geometry_area_bytes(geometry) - AREA_META_BYTES;
}

uint64_t geometry_slot_offset(const struct geometry *geometry, slot_t slot)
{
	return geometry_area_offset(geometry, geometry_slot_area(geometry, slot)) + AREA_META_BYTES +
	       (uint64_t)geometry_slot_in_area(geometry, slot) * geometry->block_bytes;
}

uint32_t geometry_slot_area(const struct geometry *geometry, slot_t slot)
{
	assert(geometry->slots_per_area > 0);
	return slot.index / geometry->slots_per_area;
}

uint32_t geometry_slot_in_area(const struct geometry *geometry, slot_t slot)
{
	assert(geometry->slots_per_area > 0);
	return slot.index % geometry->slots_per_area;
}

uint64_t geometry_slots(const struct geometry *geometry, uint64_t store_bytes)
{
	uint64_t areas, areas_max;

	assert(geometry->slots_per_area > 0);
	if (store_bytes <= geometry->first_area_offset)
		return 0;
	areas = (store_bytes - geometry->first_area_offset) / geometry_area_bytes(geometry);
	areas_max = SLOT_INDEX_MAX / geometry->slots_per_area;
	return (areas < areas_max ? areas : areas_max) * geometry->slots_per_area;
}

uint64_t checksum_seed(const uuid128_t *store_uuid)
{
	return XXH3_64bits(store_uuid->bytes, sizeof(store_uuid->bytes));
}

uint32_t data_checksum(uint64_t seed, const void *data, size_t bytes)
{
	return (uint32_t)(XXH3_64bits_withSeed(data, bytes, seed) & UINT32_MAX);
}

void area_header_encode(uint8_t meta[static AREA_META_BYTES], uint64_t seed, const struct area_header *header)
{
	assert(header->durable_slots <= SLOT_INDEX_MAX);
	assert(header->entry_count <= AREA_SLOTS_MAX);

	memset(meta, 0, AREA_HEADER_BYTES);
	put_u32(meta, HEADER_MAGIC);
	put_u32(meta + HEADER_AREA, header->area);
	put_u64(meta + HEADER_WRITE_COUNT, header->write_count);
	put_u32(meta + HEADER_DURABLE_SLOTS, (uint32_t)header->durable_slots);
	put_u16(meta + HEADER_ENTRY_COUNT, header->entry_count);
	put_u32(meta + HEADER_CHECKSUM, data_checksum(seed, meta, HEADER_CHECKSUM));
}

int area_header_decode(const uint8_t meta[static AREA_META_BYTES], uint64_t seed, uint32_t area,
		       uint32_t slots_per_area, struct area_header *header)
{
	struct area_header found = {
		.area = get_u32(meta + HEADER_AREA),
		.write_count = get_u64(meta + HEADER_WRITE_COUNT),
		.durable_slots = get_u32(meta + HEADER_DURABLE_SLOTS),
		.entry_count = get_u16(meta + HEADER_ENTRY_COUNT),
	};

	if (get_u32(meta) != HEADER_MAGIC)
		return -ENODATA;
	if (get_u32(meta + HEADER_CHECKSUM) != data_checksum(seed, meta, HEADER_CHECKSUM))
		return -EBADMSG;
	if (found.area != area || found.entry_count > slots_per_area || found.durable_slots > SLOT_INDEX_MAX)
		return -EBADMSG;
	*header = found;
	return 0;
}

/* `at` is the entry's first byte. */
static uint32_t entry_checksum(const uint8_t *at, uint64_t seed, uint32_t area, uint32_t index)
{
	uint8_t input[ENTRY_CHECKSUM_INPUT_BYTES];

	put_u32(input, area);
	put_u32(input + 4, index);
	memcpy(input + 8, at, ENTRY_CHECKSUM);
	return data_checksum(seed, input, sizeof(input));
}

static uint32_t entry_value(const struct entry *entry)
{
	switch (entry->type) {
	case ENTRY_DATA:
	case ENTRY_FINGERPRINT:
		return entry->data_checksum;
	case ENTRY_ZERO:
		return entry->count;
	case ENTRY_LOST:
	case ENTRY_VOID:
		break;
	}
	return 0;
}

void entry_encode(uint8_t meta[static AREA_META_BYTES], uint64_t seed, uint32_t area, uint32_t index,
		  const struct entry *entry)
{
	uint8_t *at = meta + AREA_HEADER_BYTES + (size_t)index * ENTRY_BYTES;

	assert(index < AREA_SLOTS_MAX);
	assert(entry->block <= ENTRY_BLOCK_MASK);
	assert(entry->type != ENTRY_ZERO || entry->count > 0);
	assert((entry->type != ENTRY_VOID && entry->type != ENTRY_FINGERPRINT) || entry->block == 0);

	put_u64(at, entry->block | (uint64_t)entry->type << ENTRY_TYPE_SHIFT);
	put_u32(at + ENTRY_VALUE, entry_value(entry));
	put_u32(at + ENTRY_CHECKSUM, entry_checksum(at, seed, area, index));
}

/* Fills in the fields `value` stands for. Returns false when block or value cannot be so in an entry of that type. */
static bool entry_interpret(struct entry *entry, unsigned type, uint32_t value, block_t block_count)
{
	switch (type) {
	case ENTRY_DATA:
		entry->type = ENTRY_DATA;
		entry->count = 1;
		entry->data_checksum = value;
		return entry->block < block_count;
	case ENTRY_ZERO:
		entry->type = ENTRY_ZERO;
		entry->count = value;
		return value > 0 && entry->block < block_count && value <= block_count - entry->block;
	case ENTRY_LOST:
		entry->type = ENTRY_LOST;
		entry->count = 1;
		return value == 0 && entry->block < block_count;
	case ENTRY_VOID:
		entry->type = ENTRY_VOID;
		return value == 0 && entry->block == 0;
	case ENTRY_FINGERPRINT:
		entry->type = ENTRY_FINGERPRINT;
		entry->data_checksum = value;
		return entry->block == 0;
	default: /* a byte from the disk, not an enum */
		return false;
	}
}

int entry_decode(const uint8_t meta[static AREA_META_BYTES], uint64_t seed, uint32_t area, uint32_t index,
		 block_t block_count, struct entry *entry)
{
	static const uint8_t unused[ENTRY_BYTES];
	const uint8_t *at = meta + AREA_HEADER_BYTES + (size_t)index * ENTRY_BYTES;
	struct entry found = { .block = get_u64(at) & ENTRY_BLOCK_MASK };
	unsigned type = (unsigned)(get_u64(at) >> ENTRY_TYPE_SHIFT);

	assert(index < AREA_SLOTS_MAX);
	if (memcmp(at, unused, sizeof(unused)) == 0)
		return -ENODATA;
	if (get_u32(at + ENTRY_CHECKSUM) != entry_checksum(at, seed, area, index))
		return -EBADMSG;
	if (!entry_interpret(&found, type, get_u32(at + ENTRY_VALUE), block_count))
		return -EINVAL;
	*entry = found;
	return 0;
}

const char *entry_type_text(enum entry_type type)
{
	switch (type) {
	case ENTRY_DATA:
		return "data";
	case ENTRY_ZERO:
		return "zero";
	case ENTRY_LOST:
		return "lost";
	case ENTRY_VOID:
		return "void";
	case ENTRY_FINGERPRINT:
		return "fingerprint";
	}
	return "unknown";
}
