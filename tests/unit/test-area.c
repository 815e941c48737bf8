/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Areas, entries and checksums: the exact bytes, where everything lies, and that nothing holds but in its own place, in
 * its own store, undamaged. The expected bytes are written out here, not computed, so that no change of the code can
 * move the format unseen.
 */
#include "format/area.h"

#include <errno.h>

#include "format/bytes.h"
#include "format/superblock.h"
#include "tests/unit/unit.h"

#define GOLDEN_AREA 0x01020304u
#define BLOCK_COUNT_ALL (UINT64_C(1) << 56) /* every block number an entry can name is on the origin */

/* splitmix64: enough for test data, and the same on every machine. */
static uint64_t random_next(uint64_t *state)
{
	uint64_t mixed = (*state += UINT64_C(0x9e3779b97f4a7c15));

	mixed = (mixed ^ (mixed >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	mixed = (mixed ^ (mixed >> 27)) * UINT64_C(0x94d049bb133111eb);
	return mixed ^ (mixed >> 31);
}

static uint64_t random_below(uint64_t *state, uint64_t limit)
{
	return random_next(state) % limit;
}

static uint64_t golden_seed(void)
{
	uuid128_t uuid;

	for (size_t i = 0; i < sizeof(uuid.bytes); i++)
		uuid.bytes[i] = (uint8_t)(0x10 + i);
	return checksum_seed(&uuid);
}

static bool bytes_are(const uint8_t *bytes, const char *hex)
{
	for (size_t i = 0; hex[2 * i] != '\0'; i++) {
		char found[3];

		(void)snprintf(found, sizeof(found), "%02x", bytes[i]);
		if (memcmp(found, hex + 2 * i, 2) != 0)
			return false;
	}
	return true;
}

static bool bytes_are_all(const uint8_t *bytes, uint8_t value, size_t count)
{
	size_t same = 0;

	while (same < count && bytes[same] == value)
		same++;
	return same == count;
}

static bool same_entry(const struct entry *a, const struct entry *b)
{
	return a->type == b->type && a->block == b->block && a->count == b->count &&
	       a->data_checksum == b->data_checksum;
}

static void test_checksums(void)
{
	static const uuid128_t nil;
	static uint8_t data[65536];

	check("a store's seed is the pinned one", golden_seed() == UINT64_C(0x84c960cee8ec65d9));
	check("the nil UUID's seed is the pinned one", checksum_seed(&nil) == UINT64_C(0xd0a66a65c7528968));
	check("the checksum of a block of zeroes is the pinned one",
	      data_checksum(golden_seed(), data, 4096) == 0x91831ed7);
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)((i * 7 + (i >> 8)) & 0xff);
	check("the checksum of a 4 KiB block is the pinned one",
	      data_checksum(golden_seed(), data, 4096) == 0xde05ea63);
	check("the checksum of a 64 KiB block is the pinned one",
	      data_checksum(golden_seed(), data, 65536) == 0x21d90701);
	check("another store's checksum of the same block is another",
	      data_checksum(checksum_seed(&nil), data, 4096) != data_checksum(golden_seed(), data, 4096));
}

static const struct area_header golden_header = {
	.area = GOLDEN_AREA,
	.write_count = UINT64_C(0x1112131415161718),
	.durable_slots = 0x21222324,
	.entry_count = 0xfd,
};

static void test_header_bytes(void)
{
	uint8_t meta[AREA_META_BYTES];

	memset(meta, 0xee, sizeof(meta));
	area_header_encode(meta, golden_seed(), &golden_header);
	check("a header is the pinned 32 bytes",
	      bytes_are(meta, "5253617204030201181716151413121124232221fd000000000000009c2fa4dd"));
	check("encoding a header leaves the entries alone",
	      bytes_are_all(meta + AREA_HEADER_BYTES, 0xee, AREA_META_BYTES - AREA_HEADER_BYTES));
}

static bool same_header(const struct area_header *a, const struct area_header *b)
{
	return a->area == b->area && a->write_count == b->write_count && a->durable_slots == b->durable_slots &&
	       a->entry_count == b->entry_count;
}

static void test_header_round_trip(void)
{
	uint64_t state = 1;
	unsigned misses = 0;

	for (unsigned round = 0; round < 20000; round++) {
		uint8_t meta[AREA_META_BYTES];
		uint64_t seed = random_next(&state);
		uint32_t slots_per_area = (uint32_t)(1 + random_below(&state, AREA_SLOTS_MAX));
		struct area_header before = {
			.area = (uint32_t)(random_next(&state) & UINT32_MAX),
			.write_count = random_next(&state),
			.durable_slots = random_below(&state, (uint64_t)SLOT_INDEX_MAX + 1),
			.entry_count = (uint16_t)random_below(&state, slots_per_area + 1),
		};
		struct area_header after;

		area_header_encode(meta, seed, &before);
		if (area_header_decode(meta, seed, before.area, slots_per_area, &after) != 0 ||
		    !same_header(&before, &after))
			misses++;
	}
	check("20,000 random headers come back as they were", misses == 0);
}

static void test_header_damage(void)
{
	uint8_t meta[AREA_META_BYTES] = { 0 };
	struct area_header after = { 0 };
	unsigned misses = 0;

	check("metadata never written has no header",
	      area_header_decode(meta, golden_seed(), 0, AREA_SLOTS_MAX, &after) == -ENODATA);
	area_header_encode(meta, golden_seed(), &golden_header);
	for (unsigned bit = 0; bit < AREA_HEADER_BYTES * 8; bit++) {
		meta[bit / 8] ^= (uint8_t)(1u << (bit % 8));
		misses += area_header_decode(meta, golden_seed(), GOLDEN_AREA, AREA_SLOTS_MAX, &after) !=
			  (bit < 32 ? -ENODATA : -EBADMSG);
		meta[bit / 8] ^= (uint8_t)(1u << (bit % 8));
	}
	check("no bit of a header can flip unseen", misses == 0);
	check("another store's header does not hold",
	      area_header_decode(meta, golden_seed() + 1, GOLDEN_AREA, AREA_SLOTS_MAX, &after) == -EBADMSG);
	check("another area's header does not hold",
	      area_header_decode(meta, golden_seed(), GOLDEN_AREA + 1, AREA_SLOTS_MAX, &after) == -EBADMSG);
	check("a header with more entries than the area has slots does not hold",
	      area_header_decode(meta, golden_seed(), GOLDEN_AREA, 0xfc, &after) == -EBADMSG);
	put_u32(meta + 16, SLOT_INDEX_MAX);
	put_u32(meta + 28, data_checksum(golden_seed(), meta, 28));
	check("a header whose durable mark is the largest holds",
	      area_header_decode(meta, golden_seed(), GOLDEN_AREA, AREA_SLOTS_MAX, &after) == 0);
	area_header_encode(meta, golden_seed(), &golden_header);
	check("one with as many entries as slots does",
	      area_header_decode(meta, golden_seed(), GOLDEN_AREA, 0xfd, &after) == 0);
	put_u32(meta + 16, SLOT_INDEX_MAX + 1);
	put_u32(meta + 28, data_checksum(golden_seed(), meta, 28));
	check("a header whose durable mark is past every slot does not hold",
	      area_header_decode(meta, golden_seed(), GOLDEN_AREA, AREA_SLOTS_MAX, &after) == -EBADMSG);
	check("a refused header leaves the caller's structure as it was", same_header(&after, &golden_header));
	area_header_encode(meta, golden_seed(), &golden_header);
	meta[22] = 1;
	put_u32(meta + 28, data_checksum(golden_seed(), meta, 28));
	check("a header's reserved bytes are not looked at",
	      area_header_decode(meta, golden_seed(), GOLDEN_AREA, AREA_SLOTS_MAX, &after) == 0);
}

static void test_entry_bytes(void)
{
	static const struct {
		uint32_t index;
		struct entry entry;
		const char *hex, *text;
	} entries[] = {
		{ 0, { ENTRY_DATA, UINT64_C(0x0a0b0c0d0e0f10), 1, 0x31323334 }, "100f0e0d0c0b0a01343332316d15b2c8",
		  "a data entry" },
		{ 1, { ENTRY_ZERO, 0x41424344, 0x51525354, 0 }, "444342410000000254535251291211aa", "a zero run" },
		{ 2, { ENTRY_LOST, 0x61626364, 1, 0 }, "646362610000000300000000e5fec9da", "a lost entry" },
		{ 200, { ENTRY_VOID, 0, 0, 0 }, "000000000000000400000000d500267b", "a void entry" },
		{ 253, { ENTRY_FINGERPRINT, 0, 0, 0x71727374 }, "0000000000000005747372715f259469",
		  "a fingerprint entry" },
	};
	uint8_t meta[AREA_META_BYTES];
	char text[64];

	for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
		size_t at = 32 + 16 * (size_t)entries[i].index;
		struct entry after;

		memset(meta, 0xee, sizeof(meta));
		entry_encode(meta, golden_seed(), GOLDEN_AREA, entries[i].index, &entries[i].entry);
		(void)snprintf(text, sizeof(text), "%s is the pinned 16 bytes", entries[i].text);
		check(text, bytes_are(meta + at, entries[i].hex) && bytes_are_all(meta, 0xee, at) &&
				    bytes_are_all(meta + at + 16, 0xee, sizeof(meta) - at - 16));
		(void)snprintf(text, sizeof(text), "%s comes back as it was", entries[i].text);
		check(text, entry_decode(meta, golden_seed(), GOLDEN_AREA, entries[i].index, BLOCK_COUNT_ALL, &after) ==
				    0 && same_entry(&entries[i].entry, &after));
	}
}

/* Valid for an origin of `block_count` blocks. */
static struct entry random_entry(uint64_t *state, block_t block_count)
{
	struct entry entry = { .type = (enum entry_type)(1 + random_below(state, 5)) };

	if (entry.type == ENTRY_DATA || entry.type == ENTRY_ZERO || entry.type == ENTRY_LOST) {
		entry.block = random_below(state, block_count);
		entry.count = 1;
	}
	if (entry.type == ENTRY_ZERO) {
		uint64_t room = block_count - entry.block;

		entry.count = (uint32_t)(1 + random_below(state, room < UINT32_MAX ? room : UINT32_MAX));
	}
	if (entry.type == ENTRY_DATA || entry.type == ENTRY_FINGERPRINT)
		entry.data_checksum = (uint32_t)(random_next(state) & UINT32_MAX);
	return entry;
}

static void test_entry_round_trip(void)
{
	uint64_t state = 2;
	unsigned misses = 0;

	for (unsigned round = 0; round < 200; round++) {
		uint8_t meta[AREA_META_BYTES] = { 0 };
		struct entry before[AREA_SLOTS_MAX], after;
		uint64_t seed = random_next(&state);
		uint32_t area = (uint32_t)(random_next(&state) & UINT32_MAX);
		block_t block_count = 1 + random_below(&state, UINT64_C(1) << random_below(&state, 33));

		for (uint32_t i = 0; i < AREA_SLOTS_MAX; i++) {
			before[i] = random_entry(&state, block_count);
			entry_encode(meta, seed, area, i, &before[i]);
		}
		for (uint32_t i = 0; i < AREA_SLOTS_MAX; i++)
			if (entry_decode(meta, seed, area, i, block_count, &after) != 0 ||
			    !same_entry(&before[i], &after))
				misses++;
	}
	check("200 areas full of random entries come back as they were", misses == 0);
}

static void test_entry_damage(void)
{
	struct entry entry = { ENTRY_DATA, 12345, 1, 0xdeadbeef }, after = { 0 };
	uint8_t meta[AREA_META_BYTES] = { 0 };
	unsigned misses = 0;

	for (uint32_t i = 0; i < AREA_SLOTS_MAX; i++)
		misses += entry_decode(meta, golden_seed(), 0, i, BLOCK_COUNT_ALL, &after) != -ENODATA;
	check("metadata never written has no entries", misses == 0);

	misses = 0;
	for (uint32_t type = ENTRY_DATA; type <= ENTRY_FINGERPRINT; type++) {
		uint8_t *at = meta + 32 + 16 * (size_t)type;

		entry.type = (enum entry_type)type;
		entry.block = type == ENTRY_VOID || type == ENTRY_FINGERPRINT ? 0 : 12345;
		entry_encode(meta, golden_seed(), 7, type, &entry);
		for (unsigned bit = 0; bit < ENTRY_BYTES * 8; bit++) {
			at[bit / 8] ^= (uint8_t)(1u << (bit % 8));
			misses += entry_decode(meta, golden_seed(), 7, type, BLOCK_COUNT_ALL, &after) != -EBADMSG;
			at[bit / 8] ^= (uint8_t)(1u << (bit % 8));
		}
	}
	check("no bit of an entry of any type can flip unseen", misses == 0);
	check("a refused entry leaves the caller's structure as it was", after.type == 0 && after.block == 0);
}

static void test_entry_place(void)
{
	const struct entry entry = { ENTRY_DATA, 12345, 1, 0xdeadbeef };
	uint8_t meta[AREA_META_BYTES] = { 0 };
	struct entry after;
	unsigned misses = 0;

	entry_encode(meta, golden_seed(), 7, 9, &entry);
	check("an entry holds in its place", entry_decode(meta, golden_seed(), 7, 9, BLOCK_COUNT_ALL, &after) == 0);
	check("an entry does not hold in another area",
	      entry_decode(meta, golden_seed(), 8, 9, BLOCK_COUNT_ALL, &after) == -EBADMSG);
	check("an entry does not hold in another store",
	      entry_decode(meta, golden_seed() ^ 1, 7, 9, BLOCK_COUNT_ALL, &after) == -EBADMSG);
	for (uint32_t i = 0; i < AREA_SLOTS_MAX; i++) {
		if (i == 9)
			continue;
		memcpy(meta + 32 + 16 * (size_t)i, meta + 32 + (size_t)16 * 9, 16);
		misses += entry_decode(meta, golden_seed(), 7, i, BLOCK_COUNT_ALL, &after) != -EBADMSG;
	}
	check("an entry does not hold at another index", misses == 0);
	entry_encode(meta, golden_seed(), 9, 7, &entry);
	memcpy(meta + 32 + (size_t)16 * 9, meta + 32 + (size_t)16 * 7, 16);
	check("an entry does not hold where area and index are exchanged",
	      entry_decode(meta, golden_seed(), 7, 9, BLOCK_COUNT_ALL, &after) == -EBADMSG);
}

/* An entry with a good checksum, made from its bytes. */
static int decode_raw(uint64_t block_and_type, uint32_t value, block_t block_count)
{
	uint8_t meta[AREA_META_BYTES] = { 0 }, input[20];
	uint8_t *at = meta + 32 + (size_t)16 * 3;
	struct entry after;

	put_u64(at, block_and_type);
	put_u32(at + 8, value);
	put_u32(input, 5);
	put_u32(input + 4, 3);
	memcpy(input + 8, at, 12);
	put_u32(at + 12, data_checksum(golden_seed(), input, sizeof(input)));
	return entry_decode(meta, golden_seed(), 5, 3, block_count, &after);
}

static uint64_t with_type(uint64_t type, block_t block)
{
	return block | type << 56;
}

static void test_entry_contradictions(void)
{
	unsigned misses = 0;

	for (uint64_t type = 0; type < 256; type++)
		if (type < ENTRY_DATA || type > ENTRY_FINGERPRINT)
			misses += decode_raw(with_type(type, 1), 0, 100) != -EINVAL;
	check("every unknown type is -EINVAL", misses == 0);
	check("data on the origin's last block is valid", decode_raw(with_type(1, 99), 7, 100) == 0);
	check("data beyond the origin's end is -EINVAL", decode_raw(with_type(1, 100), 7, 100) == -EINVAL);
	check("data at the largest block number is -EINVAL",
	      decode_raw(with_type(1, BLOCK_COUNT_ALL - 1), 7, UINT64_C(1) << 32) == -EINVAL);
	check("any entry of an origin without blocks is -EINVAL", decode_raw(with_type(1, 0), 7, 0) == -EINVAL);
	check("a zero run over all the origin is valid", decode_raw(with_type(2, 0), 100, 100) == 0);
	check("a zero run of the last block is valid", decode_raw(with_type(2, 99), 1, 100) == 0);
	check("a zero run of no blocks is -EINVAL", decode_raw(with_type(2, 5), 0, 100) == -EINVAL);
	check("a zero run past the origin's end is -EINVAL", decode_raw(with_type(2, 1), 100, 100) == -EINVAL);
	check("a zero run from beyond the origin's end is -EINVAL", decode_raw(with_type(2, 100), 1, 100) == -EINVAL);
	check("a zero run whose end would wrap is -EINVAL",
	      decode_raw(with_type(2, BLOCK_COUNT_ALL - 1), UINT32_MAX, 100) == -EINVAL);
	check("the longest zero run is valid", decode_raw(with_type(2, 1), UINT32_MAX, UINT64_C(1) << 32) == 0);
	check("a lost block on the origin is valid", decode_raw(with_type(3, 99), 0, 100) == 0);
	check("a lost block beyond the origin's end is -EINVAL", decode_raw(with_type(3, 100), 0, 100) == -EINVAL);
	check("a lost block with a value is -EINVAL", decode_raw(with_type(3, 5), 1, 100) == -EINVAL);
	check("a void slot with a block is -EINVAL", decode_raw(with_type(4, 5), 0, 100) == -EINVAL);
	check("a void slot with a value is -EINVAL", decode_raw(with_type(4, 0), 1, 100) == -EINVAL);
	check("a fingerprint with a block is -EINVAL", decode_raw(with_type(5, 5), 1, 100) == -EINVAL);
	check("a fingerprint with checksum 0 is valid", decode_raw(with_type(5, 0), 0, 100) == 0);
	check("data with checksum 0 is valid", decode_raw(with_type(1, 0), 0, 100) == 0);
}

static void test_random_bytes(void)
{
	uint64_t state = 4;
	unsigned headers = 0, entries = 0, wild = 0;

	for (unsigned round = 0; round < 500; round++) {
		uint8_t meta[AREA_META_BYTES];
		struct area_header header;
		struct entry entry;

		for (size_t i = 0; i < sizeof(meta); i++)
			meta[i] = (uint8_t)(random_next(&state) & 0xff);
		headers += area_header_decode(meta, golden_seed(), 0, AREA_SLOTS_MAX, &header) == 0;
		memcpy(meta, "RSar\0\0\0\0", 8);
		headers += area_header_decode(meta, golden_seed(), 0, AREA_SLOTS_MAX, &header) == 0;
		for (uint32_t i = 0; i < AREA_SLOTS_MAX; i++)
			entries += entry_decode(meta, golden_seed(), 0, i, BLOCK_COUNT_ALL, &entry) == 0;
	}
	check("random bytes are no headers", headers == 0);
	check("random bytes are no entries", entries == 0);

	for (unsigned round = 0; round < 20000; round++) {
		uint64_t type = random_below(&state, 8);
		block_t block_count = 1 + random_below(&state, 1000), block = random_below(&state, 1100);
		uint32_t value = (uint32_t)random_below(&state, 1100);
		bool valid = (type == 1 && block < block_count) ||
			     (type == 2 && value > 0 && block + value <= block_count) ||
			     (type == 3 && value == 0 && block < block_count) ||
			     (type == 4 && value == 0 && block == 0) || (type == 5 && block == 0);

		wild += decode_raw(with_type(type, block), value, block_count) != (valid ? 0 : -EINVAL);
	}
	check("random fields under a good checksum are valid exactly where the rules say so", wild == 0);
}

/*
 * A metadata write is torn: any of its eight sectors may be new. Every entry that was in the old version must hold, and
 * every entry must be the old or the new one.
 */
static void test_torn(void)
{
	uint8_t old[AREA_META_BYTES] = { 0 }, new[AREA_META_BYTES], torn[AREA_META_BYTES];
	struct area_header header = { .area = 3, .write_count = 10, .entry_count = 100 };
	unsigned lost = 0, wrong = 0, headers = 0;

	for (uint32_t i = 0; i < 100; i++)
		entry_encode(old, golden_seed(), 3, i, &(struct entry){ ENTRY_DATA, i, 1, i });
	area_header_encode(old, golden_seed(), &header);
	memcpy(new, old, sizeof(new));
	for (uint32_t i = 100; i < 254; i++)
		entry_encode(new, golden_seed(), 3, i, &(struct entry){ ENTRY_DATA, i, 1, i });
	header.write_count = 11;
	header.entry_count = 254;
	area_header_encode(new, golden_seed(), &header);

	for (unsigned mask = 0; mask < 256; mask++) {
		for (unsigned sector = 0; sector < 8; sector++)
			memcpy(torn + (size_t)sector * 512,
			       ((mask >> sector & 1) ? new : old) + (size_t)sector * 512, 512);
		headers += area_header_decode(torn, golden_seed(), 3, 254, &header) != 0 ||
			   header.write_count != 10 + (mask & 1);
		for (uint32_t i = 0; i < 254; i++) {
			struct entry entry;
			int error = entry_decode(torn, golden_seed(), 3, i, 1000, &entry);

			lost += error != 0 && (i < 100 || error != -ENODATA);
			wrong += error == 0 && (entry.block != i || entry.data_checksum != i);
		}
	}
	check("a torn metadata write loses no entry that was there before, and invents none", lost == 0 && wrong == 0);
	check("a torn metadata write leaves the old header or the new one", headers == 0);
}

static void test_geometry_places(void)
{
	const struct geometry common = { 4096, 254, FIRST_AREA_OFFSET };
	const struct geometry large = { 65536, 3, FIRST_AREA_OFFSET };
	const struct geometry largest = { 65536, 254, FIRST_AREA_OFFSET };

	check("an area of 254 blocks of 4 KiB is 1 MiB", geometry_area_bytes(&common) == 1 << 20);
	check("area 0 is at 1 MiB, area 5 at 6 MiB", geometry_area_offset(&common, 0) == 1 << 20 &&
							     geometry_area_offset(&common, 5) == 6 << 20);
	check("metadata opens and closes an area", geometry_meta_offset(&common, 5, 0) == 6 << 20 &&
							   geometry_meta_offset(&common, 5, 1) == (7 << 20) - 4096);
	check("slot 0 follows the first metadata copy", geometry_slot_offset(&common, SLOT(0)) == (1 << 20) + 4096);
	check("slot 253 ends where the second metadata copy begins",
	      geometry_slot_offset(&common, SLOT(253)) + 4096 == geometry_meta_offset(&common, 0, 1));
	check("slot 254 is the next area's first", geometry_slot_offset(&common, SLOT(254)) == (2 << 20) + 4096 &&
							   geometry_slot_area(&common, SLOT(254)) == 1 &&
							   geometry_slot_in_area(&common, SLOT(254)) == 0 &&
							   geometry_slot_in_area(&common, SLOT(253)) == 253);
	check("with 64 KiB blocks, places are where the arithmetic of the manual puts them",
	      geometry_area_bytes(&large) == 8192 + 3 * 65536 &&
		      geometry_slot_offset(&large, SLOT(7)) == 1048576 + 2 * 204800 + 4096 + 65536 &&
		      geometry_meta_offset(&large, 2, 1) == 1048576 + 3 * 204800 - 4096);
	check("the last slot of the largest store is where 64-bit arithmetic puts it",
	      geometry_slot_offset(&largest, SLOT(SLOT_INDEX_MAX - 1)) ==
		      UINT64_C(1048576) + UINT64_C(16909319) * 16654336 + 4096 + UINT64_C(253) * 65536);
}

static void test_geometry_validity(void)
{
	static const struct {
		struct geometry geometry;
		bool valid;
		const char *text;
	} cases[] = {
		{ { 4096, 254, FIRST_AREA_OFFSET }, true, "geometry: 4 KiB, 254 slots" },
		{ { 65536, 1, FIRST_AREA_OFFSET }, true, "geometry: 64 KiB, 1 slot" },
		{ { 16384, 100, FIRST_AREA_OFFSET }, true, "geometry: 16 KiB, 100 slots" },
		{ { 2048, 254, FIRST_AREA_OFFSET }, false, "no geometry: 2 KiB" },
		{ { 131072, 254, FIRST_AREA_OFFSET }, false, "no geometry: 128 KiB" },
		{ { 12288, 254, FIRST_AREA_OFFSET }, false, "no geometry: not a power of two" },
		{ { 0, 254, FIRST_AREA_OFFSET }, false, "no geometry: blocks of 0 bytes" },
		{ { 4096, 0, FIRST_AREA_OFFSET }, false, "no geometry: 0 slots" },
		{ { 4096, 255, FIRST_AREA_OFFSET }, false, "no geometry: 255 slots" },
		{ { 4096, 254, 0 }, false, "no geometry: areas from 0" },
		{ { 4096, 254, FIRST_AREA_OFFSET + 4096 }, false, "no geometry: areas from elsewhere" },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		check(cases[i].text, geometry_is_valid(&cases[i].geometry) == cases[i].valid);
}

static void test_geometry_slots(void)
{
	const struct geometry common = { 4096, 254, FIRST_AREA_OFFSET };
	struct geometry any = { 65536, 1, FIRST_AREA_OFFSET };
	uint64_t state = 5;
	unsigned misses = 0;

	check("a store of 0 bytes has no slots", geometry_slots(&common, 0) == 0);
	check("a store that ends before its first area has none",
	      geometry_slots(&common, 1) == 0 && geometry_slots(&common, (1 << 20) - 1) == 0 &&
		      geometry_slots(&common, 1 << 20) == 0);
	check("a partial area counts for nothing", geometry_slots(&common, (2 << 20) - 1) == 0 &&
							   geometry_slots(&common, (3 << 20) - 1) == 254);
	check("a whole area counts", geometry_slots(&common, 2 << 20) == 254);
	check("a store of 1 GiB has 1,023 areas", geometry_slots(&common, 1 << 30) == UINT64_C(1023) * 254);
	check("a store can hold an origin of 16 TiB at 4 KiB blocks, but for 16 blocks",
	      geometry_slots(&common, UINT64_C(17) << 40) == SLOT_INDEX_MAX &&
		      ORIGIN_BYTES_MAX / 4096 - SLOT_INDEX_MAX == 16);
	check("the largest store size does not overflow", geometry_slots(&common, UINT64_MAX) == SLOT_INDEX_MAX &&
								  geometry_slots(&any, UINT64_MAX) == SLOT_INDEX_MAX);
	for (unsigned round = 0; round < 20000; round++) {
		uint64_t bytes = random_next(&state) >> random_below(&state, 45), slots;
		slot_t last;

		any.block_bytes = BLOCK_BYTES_MIN << random_below(&state, 5);
		any.slots_per_area = (uint32_t)(1 + random_below(&state, AREA_SLOTS_MAX));
		slots = geometry_slots(&any, bytes);
		misses += slots > SLOT_INDEX_MAX || slots % any.slots_per_area != 0;
		if (slots == 0)
			continue;
		last = SLOT(slots - 1);
		misses += geometry_area_offset(&any, geometry_slot_area(&any, last)) >
			  bytes - geometry_area_bytes(&any);
	}
	check("whatever the geometry and size, slots come in whole areas that end within the store", misses == 0);
}

static void test_texts(void)
{
	static const char *const texts[] = { "data", "zero", "lost", "void", "fingerprint" };
	unsigned misses = 0;

	for (unsigned i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		misses += strcmp(entry_type_text((enum entry_type)(i + 1)), texts[i]) != 0;
	check("types have the documented numbers and words", misses == 0);
	check("what is no type is called unknown", strcmp(entry_type_text((enum entry_type)(ENTRY_FINGERPRINT + 1)), "unknown") == 0);
}

int main(void)
{
	test_checksums();
	test_header_bytes();
	test_header_round_trip();
	test_header_damage();
	test_entry_bytes();
	test_entry_round_trip();
	test_entry_damage();
	test_entry_place();
	test_entry_contradictions();
	test_random_bytes();
	test_torn();
	test_geometry_places();
	test_geometry_validity();
	test_geometry_slots();
	test_texts();
	return unit_done();
}
