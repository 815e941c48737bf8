/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The superblock and the fingerprint: the exact bytes, every field there and back, and the refusal of every damage and
 * of every contradiction. The expected bytes are written out here, not computed, so that no change of the code can move
 * the format unseen.
 */
#include "format/superblock.h"

#include <errno.h>
#include <xxhash.h>

#include "format/bytes.h"
#include "tests/unit/unit.h"

#define CHECKSUM_OFFSET 4088u
#define HEADER_BYTES_OFFSET 12u
#define DEFINED_BYTES 448u

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

static void random_fill(uint64_t *state, uint8_t *out, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++)
		out[i] = (uint8_t)(random_next(state) & 0xff);
}

static uuid128_t uuid_of(uint8_t first)
{
	uuid128_t uuid;

	for (size_t i = 0; i < sizeof(uuid.bytes); i++)
		uuid.bytes[i] = (uint8_t)(first + i);
	return uuid;
}

static void reseal(uint8_t *bytes)
{
	put_u64(bytes + CHECKSUM_OFFSET, XXH3_64bits(bytes, CHECKSUM_OFFSET));
}

/* Sealed, with a fold and a witness: all fields have values of their own. */
static struct superblock full_superblock(void)
{
	struct superblock superblock = {
		.compat = 0x01020304,
		.ro_compat = 0x05060708,
		.generation = UINT64_C(0x1112131415161718),
		.sequence = UINT64_C(0x2122232425262728),
		.store_uuid = uuid_of(0x10),
		.volume_uuid = uuid_of(0x30),
		.predecessor_uuid = uuid_of(0x50),
		.successor_uuid = uuid_of(0x70),
		.fold_source_uuid = uuid_of(0x70),
		.witness_uuid = uuid_of(0xb0),
		.role = ROLE_FORK,
		.state = STATE_SEALED,
		.name = "before-update_1.0",
		.created_ns = UINT64_C(0x3132333435363738),
		.sealed_ns = UINT64_C(0x4142434445464748),
		.origin_bytes = UINT64_C(0x51525354600),
		.geometry = { .block_bytes = 16384, .slots_per_area = 201, .first_area_offset = FIRST_AREA_OFFSET },
		.limit_bytes = UINT64_C(0x6162636465666768),
		.durable_slots = 0x71727374,
		.clean = true,
		.log_slots = 0x81828384,
		.fold_base_slots = 0x61626364,
		.broken = { .reason = BROKEN_METADATA, .time_ns = UINT64_C(0x9192939495969798) },
		.witness = { .reason = BROKEN_BARRIER, .time_ns = UINT64_C(0xa1a2a3a4a5a6a7a8) },
	};

	for (unsigned i = 0; i < FINGERPRINT_SECTORS; i++)
		superblock.fingerprint.sector[i] = UINT64_C(0xc0c1c2c3c4c5c600) + i;
	return superblock;
}

static struct superblock empty_superblock(void)
{
	return (struct superblock){
		.generation = 1,
		.store_uuid = uuid_of(0x10),
		.role = ROLE_SNAPSHOT,
		.state = STATE_EMPTY,
		.geometry = { .block_bytes = 4096, .slots_per_area = 254, .first_area_offset = FIRST_AREA_OFFSET },
	};
}

/* Of a chain of several, with nothing special going on. */
static struct superblock plain_superblock(enum store_state state)
{
	struct superblock superblock = empty_superblock();

	superblock.state = state;
	superblock.volume_uuid = uuid_of(0x30);
	superblock.predecessor_uuid = uuid_of(0x50);
	superblock.sequence = 2;
	superblock.origin_bytes = 1 << 20;
	(void)strcpy(superblock.name, "monday");
	if (state == STATE_SEALED) {
		superblock.successor_uuid = uuid_of(0x70);
		superblock.clean = true;
	}
	if (state == STATE_MERGING) {
		superblock.merge_target_uuid = superblock.predecessor_uuid;
		superblock.clean = true;
	}
	if (state != STATE_PREPARED) {
		superblock.durable_slots = 1000;
		superblock.log_slots = 1000;
	}
	return superblock;
}

/* An active one with three parts: two that the log has been in, the second skipping to it, and one that stands by. */
static struct superblock joined_superblock(void)
{
	struct superblock superblock = plain_superblock(STATE_ACTIVE);

	superblock.incompat = FEATURE_JOINED;
	superblock.part_count = 3;
	superblock.parts[0] = (struct part){ uuid_of(0x80), 0x01020304, 0 };
	superblock.parts[1] = (struct part){ uuid_of(0x90), 0x01020305, 0x00000a0b };
	superblock.parts[2] = (struct part){ uuid_of(0xa0), PART_AREA_NONE, 0 };
	superblock.geometry.slots_per_area = 100;
	return superblock;
}

static struct superblock part_superblock(void)
{
	struct superblock superblock = plain_superblock(STATE_PREPARED);

	superblock.incompat = FEATURE_JOINED;
	superblock.role = ROLE_PART;
	superblock.state = STATE_JOINED;
	superblock.clean = true;
	memset(&superblock.predecessor_uuid, 0, sizeof(superblock.predecessor_uuid));
	superblock.part_index = 2;
	superblock.main_uuid = uuid_of(0x90);
	return superblock;
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

static void test_exact_bytes(void)
{
	static const struct {
		unsigned offset;
		const char *hex, *text;
	} fields[] = {
		{ 0, "726f77736e617000", "bytes 0-7: magic" },
		{ 8, "01000000", "bytes 8-11: version" },
		{ 12, "c0010000", "bytes 12-15: header_bytes" },
		{ 16, "04030201", "bytes 16-19: compat" },
		{ 20, "08070605", "bytes 20-23: ro_compat" },
		{ 24, "00000000", "bytes 24-27: incompat" },
		{ 28, "00000000", "bytes 28-31: reserved" },
		{ 32, "1817161514131211", "bytes 32-39: generation" },
		{ 40, "2827262524232221", "bytes 40-47: sequence" },
		{ 48, "101112131415161718191a1b1c1d1e1f", "bytes 48-63: store UUID" },
		{ 64, "303132333435363738393a3b3c3d3e3f", "bytes 64-79: volume UUID" },
		{ 80, "505152535455565758595a5b5c5d5e5f", "bytes 80-95: predecessor UUID" },
		{ 96, "707172737475767778797a7b7c7d7e7f", "bytes 96-111: successor UUID" },
		{ 112, "707172737475767778797a7b7c7d7e7f", "bytes 112-127: fold source UUID" },
		{ 128, "b0b1b2b3b4b5b6b7b8b9babbbcbdbebf", "bytes 128-143: witness UUID" },
		{ 144, "02000000", "bytes 144-147: role" },
		{ 148, "03000000", "bytes 148-151: state" },
		{ 152, "00400000", "bytes 152-155: block_bytes" },
		{ 156, "c9000000", "bytes 156-159: slots_per_area" },
		{ 160, "0000100000000000", "bytes 160-167: first_area_offset" },
		{ 168, "6867666564636261", "bytes 168-175: limit_bytes" },
		{ 176, "0046352515050000", "bytes 176-183: origin_bytes" },
		{ 184, "3837363534333231", "bytes 184-191: created_ns" },
		{ 192, "4847464544434241", "bytes 192-199: sealed_ns" },
		{ 200, "7473727100000000", "bytes 200-207: durable_slots" },
		{ 208, "8483828100000000", "bytes 208-215: log_slots" },
		{ 216, "6463626100000000", "bytes 216-223: fold_base_slots" },
		{ 224, "01000000", "bytes 224-227: clean" },
		{ 228, "04000000", "bytes 228-231: broken reason" },
		{ 232, "9897969594939291", "bytes 232-239: broken time" },
		{ 240, "03000000", "bytes 240-243: witness reason" },
		{ 244, "00000000", "bytes 244-247: reserved" },
		{ 248, "a8a7a6a5a4a3a2a1", "bytes 248-255: witness time" },
		{ 256, "6265666f72652d7570646174655f312e3000000000000000", "bytes 256-319: name, and its padding" },
		{ 280, "00000000000000000000000000000000000000000000000000000000000000000000000000000000",
		  "bytes 280-319: name's padding" },
		{ 320, "00c6c5c4c3c2c1c001c6c5c4c3c2c1c0", "bytes 320-335: fingerprint, sectors 0 and 1" },
		{ 440, "0fc6c5c4c3c2c1c0", "bytes 440-447: fingerprint, sector 15" },
		{ 448, "0000000000000000", "bytes 448-: reserved" },
		{ 4088, "9481075f1fb5261f", "bytes 4088-4095: checksum" },
	};
	static const uint8_t zeroes[CHECKSUM_OFFSET - DEFINED_BYTES];
	struct superblock superblock = full_superblock();
	uint8_t bytes[SUPERBLOCK_BYTES];

	memset(bytes, 0xee, sizeof(bytes));
	superblock_encode(bytes, &superblock);
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		check(fields[i].text, bytes_are(bytes + fields[i].offset, fields[i].hex));
	check("all reserved bytes after the fields are 0", memcmp(bytes + DEFINED_BYTES, zeroes, sizeof(zeroes)) == 0);
	check("the whole superblock's XXH3-64 is the pinned one",
	      XXH3_64bits(bytes, sizeof(bytes)) == UINT64_C(0x727ba9832d9b68d4));

	superblock.incompat = 0x090a0b0c;
	superblock_encode(bytes, &superblock);
	check("bytes 24-27 are the incompat features", bytes_are(bytes + 24, "0c0b0a09"));

	superblock = empty_superblock();
	superblock_encode(bytes, &superblock);
	check("an empty store's superblock's XXH3-64 is the pinned one",
	      XXH3_64bits(bytes, sizeof(bytes)) == UINT64_C(0x792704d7b954452c));
}

static void test_exact_bytes_of_parts(void)
{
	static const uint8_t zeroes[SUPERBLOCK_BYTES];
	struct superblock superblock = joined_superblock();
	uint8_t bytes[SUPERBLOCK_BYTES];

	memset(bytes, 0xee, sizeof(bytes));
	superblock_encode(bytes, &superblock);
	check("joined: header_bytes is 832", bytes_are(bytes + 12, "40030000"));
	check("joined: incompat bit 0", bytes_are(bytes + 24, "01000000"));
	check("joined: bytes 448-451: part_count", bytes_are(bytes + 448, "03000000"));
	check("joined: part_index and main UUID are zeroes", memcmp(bytes + 452, zeroes, 20) == 0);
	check("joined: bytes 472-495: part 1", bytes_are(bytes + 472, "808182838485868788898a8b8c8d8e8f0403020100000000"));
	check("joined: bytes 496-519: part 2", bytes_are(bytes + 496, "909192939495969798999a9b9c9d9e9f050302010b0a0000"));
	check("joined: bytes 520-543: part 3", bytes_are(bytes + 520, "a0a1a2a3a4a5a6a7a8a9aaabacadaeafffffffff00000000"));
	check("joined: zeroes behind", memcmp(bytes + 544, zeroes, CHECKSUM_OFFSET - 544) == 0);
	superblock = part_superblock();
	superblock_encode(bytes, &superblock);
	check("part: role 3, state 5", bytes_are(bytes + 144, "0300000005000000"));
	check("part: part_count 0, part_index, main UUID",
	      bytes_are(bytes + 448, "0000000002000000909192939495969798999a9b9c9d9e9f"));
	superblock = plain_superblock(STATE_ACTIVE);
	superblock.incompat = FEATURE_JOINED;
	superblock_encode(bytes, &superblock);
	check("without parts there is no such feature", bytes_are(bytes + 24, "00000000") && bytes_are(bytes + 12, "c0010000"));
}

static void test_places(void)
{
	check("copy 0 is at 0, copy 1 at 512 KiB, the first area at 1 MiB",
	      SUPERBLOCK_OFFSET_0 == 0 && SUPERBLOCK_OFFSET_1 == 524288 && FIRST_AREA_OFFSET == 1048576);
	check("states have the documented numbers", STATE_EMPTY == 0 && STATE_PREPARED == 1 && STATE_ACTIVE == 2 &&
							    STATE_SEALED == 3 && STATE_MERGING == 4 &&
							    STATE_JOINED == 5);
	check("broken reasons have the documented numbers",
	      BROKEN_NOT == 0 && BROKEN_FULL == 1 && BROKEN_STORE_ERROR == 2 && BROKEN_BARRIER == 3 &&
		      BROKEN_METADATA == 4 && BROKEN_ORIGIN_CHANGED == 5);
	check("roles have the documented numbers", ROLE_SNAPSHOT == 1 && ROLE_FORK == 2 && ROLE_PART == 3);
}

static bool same_chain_fields(const struct superblock *a, const struct superblock *b)
{
	return a->compat == b->compat && a->ro_compat == b->ro_compat && a->incompat == b->incompat &&
	       a->generation == b->generation && a->sequence == b->sequence &&
	       uuid_equal(&a->store_uuid, &b->store_uuid) && uuid_equal(&a->volume_uuid, &b->volume_uuid) &&
	       uuid_equal(&a->predecessor_uuid, &b->predecessor_uuid) &&
	       uuid_equal(&a->successor_uuid, &b->successor_uuid) &&
	       uuid_equal(&a->fold_source_uuid, &b->fold_source_uuid) &&
	       uuid_equal(&a->merge_target_uuid, &b->merge_target_uuid) &&
	       uuid_equal(&a->witness_uuid, &b->witness_uuid) && a->role == b->role && a->state == b->state &&
	       memcmp(a->name, b->name, sizeof(a->name)) == 0;
}

static bool same_parts(const struct superblock *a, const struct superblock *b)
{
	for (uint32_t i = 0; i < a->part_count && i < b->part_count; i++)
		if (!uuid_equal(&a->parts[i].uuid, &b->parts[i].uuid) || a->parts[i].first_area != b->parts[i].first_area ||
		    a->parts[i].skipped_slots != b->parts[i].skipped_slots)
			return false;
	return a->part_count == b->part_count && a->part_index == b->part_index &&
	       uuid_equal(&a->main_uuid, &b->main_uuid);
}

static bool same_superblock(const struct superblock *a, const struct superblock *b)
{
	return same_chain_fields(a, b) && same_parts(a, b) && a->created_ns == b->created_ns && a->sealed_ns == b->sealed_ns &&
	       a->origin_bytes == b->origin_bytes && a->geometry.block_bytes == b->geometry.block_bytes &&
	       a->geometry.slots_per_area == b->geometry.slots_per_area &&
	       a->geometry.first_area_offset == b->geometry.first_area_offset && a->limit_bytes == b->limit_bytes &&
	       a->durable_slots == b->durable_slots && a->clean == b->clean && a->log_slots == b->log_slots &&
	       a->fold_base_slots == b->fold_base_slots && a->broken.reason == b->broken.reason &&
	       a->broken.time_ns == b->broken.time_ns && a->witness.reason == b->witness.reason &&
	       a->witness.time_ns == b->witness.time_ns &&
	       memcmp(&a->fingerprint, &b->fingerprint, sizeof(a->fingerprint)) == 0;
}

static void random_name(uint64_t *state, char name[static NAME_LENGTH_MAX + 1])
{
	static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-";
	size_t length = 1 + random_below(state, NAME_LENGTH_MAX);

	memset(name, 0, NAME_LENGTH_MAX + 1);
	name[0] = allowed[random_below(state, sizeof(allowed) - 3)];
	for (size_t i = 1; i < length; i++)
		name[i] = allowed[random_below(state, sizeof(allowed) - 1)];
}

static void random_marks(uint64_t *state, struct superblock *superblock)
{
	if (random_below(state, 3) == 0) {
		superblock->broken.reason = (enum broken_reason)(1 + random_below(state, 5));
		superblock->broken.time_ns = random_next(state);
	}
	if (random_below(state, 3) == 0) {
		random_fill(state, superblock->witness_uuid.bytes, sizeof(superblock->witness_uuid.bytes));
		superblock->witness.reason = (enum broken_reason)(1 + random_below(state, 5));
		superblock->witness.time_ns = random_next(state);
	}
}

static void random_log(uint64_t *state, struct superblock *superblock)
{
	enum store_state store_state = superblock->state;

	superblock->clean = random_below(state, 2) == 0;
	if (store_state == STATE_PREPARED)
		return;
	superblock->log_slots = random_below(state, (uint64_t)SLOT_INDEX_MAX + 1);
	superblock->durable_slots = random_below(state, superblock->log_slots + 1);
	superblock->fold_base_slots = random_below(state, superblock->log_slots + 1);
	if (store_state == STATE_MERGING || random_below(state, 2) == 0)
		random_fill(state, superblock->successor_uuid.bytes, sizeof(superblock->successor_uuid.bytes));
	if (random_below(state, 2) == 0 || (store_state == STATE_ACTIVE && !uuid_is_nil(&superblock->successor_uuid)))
		superblock->fold_source_uuid = superblock->successor_uuid;
	if (store_state == STATE_SEALED && uuid_is_nil(&superblock->fold_source_uuid))
		superblock->clean = true;
	if (store_state == STATE_MERGING) {
		memset(&superblock->fold_source_uuid, 0, sizeof(superblock->fold_source_uuid));
		random_fill(state, superblock->merge_target_uuid.bytes, sizeof(superblock->merge_target_uuid.bytes));
		superblock->clean = true;
	}
}

static struct superblock random_superblock(uint64_t *state)
{
	struct superblock superblock = empty_superblock();

	superblock.state = (enum store_state)random_below(state, 5);
	superblock.role = random_below(state, 2) == 0 ? ROLE_SNAPSHOT : ROLE_FORK;
	superblock.compat = (uint32_t)random_below(state, UINT32_MAX);
	superblock.ro_compat = (uint32_t)random_below(state, UINT32_MAX);
	superblock.generation = random_next(state);
	random_fill(state, superblock.store_uuid.bytes, sizeof(superblock.store_uuid.bytes));
	superblock.geometry.block_bytes = BLOCK_BYTES_MIN << random_below(state, 5);
	superblock.geometry.slots_per_area = (uint32_t)(1 + random_below(state, AREA_SLOTS_MAX));
	if (random_below(state, 2) == 0)
		superblock.limit_bytes = (UINT64_C(32) << 20) + random_below(state, UINT64_MAX / 2);
	superblock.created_ns = random_next(state);
	superblock.sealed_ns = random_next(state);
	if (superblock.state == STATE_EMPTY)
		return superblock;

	random_fill(state, superblock.volume_uuid.bytes, sizeof(superblock.volume_uuid.bytes));
	if (random_below(state, 2) == 0)
		random_fill(state, superblock.predecessor_uuid.bytes, sizeof(superblock.predecessor_uuid.bytes));
	superblock.sequence = 1 + random_below(state, UINT64_MAX);
	random_name(state, superblock.name);
	superblock.origin_bytes = 512 * (1 + random_below(state, ORIGIN_BYTES_MAX / 512));
	for (unsigned i = 0; i < FINGERPRINT_SECTORS; i++)
		if (fingerprint_offset(i) < superblock.origin_bytes)
			superblock.fingerprint.sector[i] = random_next(state);
	random_log(state, &superblock);
	random_marks(state, &superblock);
	return superblock;
}

static void add_random_parts(uint64_t *state, struct superblock *superblock)
{
	uint32_t first = 0, most = SLOT_INDEX_MAX / superblock->geometry.slots_per_area;

	if (superblock->state == STATE_EMPTY || superblock->state == STATE_PREPARED || random_below(state, 3) != 0)
		return;
	superblock->incompat = FEATURE_JOINED;
	superblock->part_count = (uint32_t)(1 + random_below(state, STORE_PARTS_MAX - 1));
	for (uint32_t i = 0; i < superblock->part_count; i++) {
		struct part *part = &superblock->parts[i];

		random_fill(state, part->uuid.bytes, sizeof(part->uuid.bytes));
		if (first != PART_AREA_NONE)
			first += (uint32_t)random_below(state, most - first + 1);
		if (random_below(state, 8) == 0)
			first = PART_AREA_NONE;
		part->first_area = first;
		if (first != PART_AREA_NONE)
			part->skipped_slots =
				(uint32_t)random_below(state, (uint64_t)first * superblock->geometry.slots_per_area + 1);
	}
}

static void test_round_trip(void)
{
	uint64_t state = 1;
	unsigned misses = 0;

	for (unsigned round = 0; round < 20000; round++) {
		struct superblock before = random_superblock(&state), after;
		uint8_t bytes[SUPERBLOCK_BYTES];
		const char *why = NULL;

		add_random_parts(&state, &before);
		superblock_encode(bytes, &before);
		if (superblock_decode(bytes, &after, &why) != 0 || why != NULL || !same_superblock(&before, &after))
			misses++;
	}
	check("20,000 random superblocks come back as they were, field by field", misses == 0);
}

static void test_name_is_cut_at_its_end(void)
{
	struct superblock superblock = plain_superblock(STATE_ACTIVE), after;
	uint8_t bytes[SUPERBLOCK_BYTES];

	memset(superblock.name, 'x', sizeof(superblock.name));
	memcpy(superblock.name, "short", 6);
	superblock_encode(bytes, &superblock);
	check("what lies after a name's end in memory does not get onto the disk",
	      superblock_decode(bytes, &after, NULL) == 0 && strcmp(after.name, "short") == 0 && bytes[256 + 6] == 0);
}

static void test_damage(void)
{
	struct superblock superblock = full_superblock(), after;
	uint8_t good[SUPERBLOCK_BYTES], bytes[SUPERBLOCK_BYTES];
	unsigned accepted = 0, magic_misses = 0, checksum_misses = 0;

	superblock_encode(good, &superblock);
	memcpy(bytes, good, sizeof(bytes));
	for (unsigned bit = 0; bit < SUPERBLOCK_BYTES * 8; bit++) {
		int error;

		bytes[bit / 8] ^= (uint8_t)(1u << (bit % 8));
		error = superblock_decode(bytes, &after, NULL);
		accepted += error == 0;
		magic_misses += bit < 64 && error != -ENODATA;
		checksum_misses += bit >= 64 && error != -EBADMSG;
		bytes[bit / 8] = good[bit / 8];
	}
	check("no bit can flip unseen", accepted == 0);
	check("a flipped bit of the magic is -ENODATA", magic_misses == 0);
	check("a flipped bit anywhere else is -EBADMSG", checksum_misses == 0);

	memset(bytes, 0, sizeof(bytes));
	check("a wiped superblock is -ENODATA", superblock_decode(bytes, &after, NULL) == -ENODATA);
}

/* A torn write: the first sectors are of one superblock, the rest of another. */
static void test_torn(void)
{
	struct superblock superblock = full_superblock(), after;
	uint8_t old[SUPERBLOCK_BYTES], torn[SUPERBLOCK_BYTES];
	unsigned accepted = 0;

	superblock_encode(old, &superblock);
	superblock.generation++;
	for (size_t cut = 512; cut < SUPERBLOCK_BYTES; cut += 512) {
		superblock_encode(torn, &superblock);
		memcpy(torn + cut, old + cut, SUPERBLOCK_BYTES - cut);
		accepted += superblock_decode(torn, &after, NULL) == 0;
		superblock_encode(torn, &superblock);
		memcpy(torn, old, cut);
		accepted += superblock_decode(torn, &after, NULL) == 0;
	}
	check("a torn write of the superblock is refused wherever it was torn", accepted == 0);
}

enum base { BASE_EMPTY, BASE_PREPARED, BASE_ACTIVE, BASE_SEALED, BASE_MERGING, BASE_FULL, BASE_JOINED, BASE_PART };

static void encode_base(uint8_t *bytes, enum base base)
{
	struct superblock superblock = base == BASE_EMPTY  ? empty_superblock() :
				       base == BASE_FULL   ? full_superblock() :
				       base == BASE_JOINED ? joined_superblock() :
				       base == BASE_PART   ? part_superblock() :
							     plain_superblock((enum store_state)base);

	superblock_encode(bytes, &superblock);
}

/* Bytes written over a valid superblock, which is then sealed again; `field` is what `why` must begin with. */
struct fault {
	enum base base;
	unsigned offset;
	const char *bytes;
	unsigned count;
	const char *field;
};

#define AT(base, offset, bytes, field) { base, offset, bytes, sizeof(bytes) - 1, field }
#define UUID_10 "\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f"
#define UUID_50 "\x50\x51\x52\x53\x54\x55\x56\x57\x58\x59\x5a\x5b\x5c\x5d\x5e\x5f"
#define UUID_70 "\x70\x71\x72\x73\x74\x75\x76\x77\x78\x79\x7a\x7b\x7c\x7d\x7e\x7f"
#define UUID_NIL "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"

static const struct fault bad_numbers[] = {
	AT(BASE_FULL, 12, "\xbf\x01\0\0", "header_bytes:"),
	AT(BASE_FULL, 12, "\0\0\0\0", "header_bytes:"),
	AT(BASE_FULL, 12, "\xf9\x0f\0\0", "header_bytes:"),
	AT(BASE_FULL, 12, "\xff\xff\xff\xff", "header_bytes:"),
	AT(BASE_FULL, 144, "\0\0\0\0", "role:"),
	AT(BASE_FULL, 144, "\3\0\0\0", "role:"),
	AT(BASE_FULL, 144, "\1\0\0\1", "role:"),
	AT(BASE_FULL, 148, "\5\0\0\0", "state:"),
	AT(BASE_FULL, 148, "\xff\xff\xff\xff", "state:"),
	AT(BASE_FULL, 152, "\0\0\0\0", "geometry"),
	AT(BASE_FULL, 152, "\0\x8\0\0", "geometry"),
	AT(BASE_FULL, 152, "\0\0\2\0", "geometry"),
	AT(BASE_FULL, 152, "\0\x30\0\0", "geometry"),
	AT(BASE_FULL, 156, "\0\0\0\0", "geometry"),
	AT(BASE_FULL, 156, "\xff\0\0\0", "geometry"),
	AT(BASE_FULL, 160, "\0\0\x20\0\0\0\0\0", "geometry"),
	AT(BASE_FULL, 160, "\0\0\0\0\0\0\0\0", "geometry"),
	AT(BASE_ACTIVE, 168, "\1\0\0\0\0\0\0\0", "limit_bytes:"),
	AT(BASE_ACTIVE, 168, "\xff\xff\x1f\0\0\0\0\0", "limit_bytes:"),
	AT(BASE_FULL, 176, "\0\0\0\0\0\0\0\0", "origin_bytes:"),
	AT(BASE_FULL, 176, "\1\2\0\0\0\0\0\0", "origin_bytes:"),
	AT(BASE_FULL, 176, "\0\2\0\0\0\x10\0\0", "origin_bytes:"),
	AT(BASE_FULL, 176, "\0\0\0\0\0\0\0\x80", "origin_bytes:"),
	AT(BASE_EMPTY, 176, "\0\2\0\0\0\0\0\0", "origin_bytes:"),
	AT(BASE_FULL, 200, "\xf1\xff\xff\xff\0\0\0\0", "durable_slots:"),
	AT(BASE_ACTIVE, 200, "\xf1\xff\xff\xff\0\0\0\0", "durable_slots:"),
	AT(BASE_FULL, 200, "\x85\x83\x82\x81\0\0\0\0", "durable_slots:"),
	AT(BASE_FULL, 204, "\1\0\0\0", "durable_slots:"),
	AT(BASE_FULL, 208, "\xf1\xff\xff\xff\0\0\0\0", "log_slots:"),
	AT(BASE_FULL, 212, "\1\0\0\0", "log_slots:"),
	AT(BASE_FULL, 216, "\xf1\xff\xff\xff\0\0\0\0", "fold_base_slots:"),
	AT(BASE_ACTIVE, 216, "\xf1\xff\xff\xff\0\0\0\0", "fold_base_slots:"),
	AT(BASE_FULL, 216, "\x85\x83\x82\x81\0\0\0\0", "fold_base_slots:"),
	AT(BASE_FULL, 220, "\1\0\0\0", "fold_base_slots:"),
	AT(BASE_FULL, 224, "\2\0\0\0", "clean:"),
	AT(BASE_FULL, 224, "\1\0\0\1", "clean:"),
	AT(BASE_SEALED, 224, "\0\0\0\0", "clean:"),
	AT(BASE_FULL, 228, "\6\0\0\0", "broken reason:"),
	AT(BASE_FULL, 228, "\0\0\0\x80", "broken reason:"),
	AT(BASE_FULL, 228, "\0\0\0\0", "broken time:"),
	AT(BASE_ACTIVE, 232, "\1\0\0\0\0\0\0\0", "broken time:"),
	AT(BASE_FULL, 240, "\6\0\0\0", "witness broken reason:"),
	AT(BASE_FULL, 240, "\0\0\0\0", "witness broken reason:"),
	AT(BASE_ACTIVE, 240, "\1\0\0\0", "witness broken reason:"),
	AT(BASE_ACTIVE, 248, "\1\0\0\0\0\0\0\0", "witness broken time:"),
	AT(BASE_ACTIVE, 176, "\0\0\1\0\0\0\0\0", "fingerprint:"),
	AT(BASE_ACTIVE, 176, "\0\2\0\0\0\0\0\0", "fingerprint:"),
	AT(BASE_ACTIVE, 176, "\0\x0e\1\0\0\0\0\0", "fingerprint:"),
	AT(BASE_EMPTY, 320, "\1", "fingerprint:"),
	AT(BASE_EMPTY, 200, "\1", "durable_slots:"),
	AT(BASE_EMPTY, 208, "\1", "log_slots:"),
	AT(BASE_PREPARED, 200, "\1", "durable_slots:"),
	AT(BASE_PREPARED, 208, "\1", "log_slots:"),
	AT(BASE_EMPTY, 228, "\1\0\0\0", "broken reason:"),
};

static const struct fault bad_identities[] = {
	AT(BASE_FULL, 40, "\0\0\0\0\0\0\0\0", "sequence:"),
	AT(BASE_EMPTY, 40, "\1", "sequence:"),
	AT(BASE_FULL, 48, UUID_NIL, "store UUID:"),
	AT(BASE_EMPTY, 48, UUID_NIL, "store UUID:"),
	AT(BASE_FULL, 64, UUID_NIL, "volume UUID:"),
	AT(BASE_EMPTY, 64, "\1", "volume UUID:"),
	AT(BASE_FULL, 80, UUID_10, "predecessor UUID:"),
	AT(BASE_EMPTY, 80, "\1", "predecessor UUID:"),
	AT(BASE_FULL, 96, UUID_10, "successor UUID:"),
	AT(BASE_FULL, 96, UUID_50, "successor UUID:"),
	AT(BASE_EMPTY, 96, "\1", "successor UUID:"),
	AT(BASE_ACTIVE, 96, "\1", "successor UUID:"),
	AT(BASE_PREPARED, 96, "\1", "successor UUID:"),
	AT(BASE_FULL, 112, UUID_10, "fold source UUID:"),
	AT(BASE_FULL, 112, UUID_50, "fold source UUID:"),
	AT(BASE_MERGING, 112, UUID_NIL, "merge target UUID: nil"),
	AT(BASE_MERGING, 224, "\0\0\0\0", "clean: 0 in a merging"),
	AT(BASE_FULL, 112, "\1", "fold source UUID:"),
	AT(BASE_EMPTY, 112, "\1", "fold source UUID:"),
	AT(BASE_PREPARED, 112, "\1", "fold source UUID:"),
	AT(BASE_FULL, 128, UUID_10, "witness UUID:"),
	AT(BASE_FULL, 128, UUID_NIL, "witness broken reason:"),
	AT(BASE_ACTIVE, 128, "\1", "witness broken reason:"),
	AT(BASE_EMPTY, 128, "\1", "witness UUID:"),
	AT(BASE_FULL, 256, "\0", "name:"),
	AT(BASE_ACTIVE, 256, "\0\0\0\0\0\0", "name:"),
	AT(BASE_EMPTY, 256, "a", "name:"),
	AT(BASE_ACTIVE, 256, ".onday", "name:"),
	AT(BASE_ACTIVE, 256, "-onday", "name:"),
	AT(BASE_ACTIVE, 256, "mo day", "name:"),
	AT(BASE_ACTIVE, 256, "mo/day", "name:"),
	AT(BASE_ACTIVE, 256, "mo\x1b" "day", "name:"),
	AT(BASE_ACTIVE, 256, "mo\xc3\xa4" "ay", "name:"),
	AT(BASE_ACTIVE, 256, "origin", "name:"),
	AT(BASE_ACTIVE, 263, "x", "name:"),
	AT(BASE_ACTIVE, 319, "x", "name:"),
	AT(BASE_ACTIVE, 256, "0123456789012345678901234567890123456789012345678901234567890123",
	   "name: not terminated"),
};

static const struct fault bad_parts[] = {
	AT(BASE_JOINED, 12, "\x3f\x03\0\0", "header_bytes:"),
	AT(BASE_PART, 12, "\xc0\x01\0\0", "header_bytes:"),
	AT(BASE_ACTIVE, 12, "\x40\x03\0\0\0\0\0\0\0\0\0\0\1", "incompat features:"),
	AT(BASE_PART, 24, "\0", "role:"),
	AT(BASE_ACTIVE, 144, "\3", "role:"),
	AT(BASE_ACTIVE, 148, "\5", "state:"),
	AT(BASE_PART, 148, "\2", "state:"),
	AT(BASE_PART, 148, "\0", "state:"),
	AT(BASE_PART, 148, "\6", "state:"),
	AT(BASE_PART, 144, "\4", "role:"),
	AT(BASE_JOINED, 144, "\3", "state:"),
	AT(BASE_JOINED, 448, "\x10", "part_count:"),
	AT(BASE_JOINED, 448, "\xff\xff\xff\xff", "part_count:"),
	AT(BASE_JOINED, 448, "\0", "incompat features:"),
	AT(BASE_JOINED, 452, "\1", "part_index"),
	AT(BASE_JOINED, 456, "\1", "part_index"),
	AT(BASE_PART, 448, "\1", "part_count:"),
	AT(BASE_PART, 452, "\0", "part_index:"),
	AT(BASE_PART, 452, "\x10", "part_index:"),
	AT(BASE_PART, 456, UUID_NIL, "main UUID:"),
	AT(BASE_PART, 456, UUID_10, "main UUID:"),
	AT(BASE_PART, 80, "\1", "predecessor or successor UUID:"),
	AT(BASE_PART, 96, "\1", "predecessor or successor UUID:"),
	AT(BASE_PART, 112, "\1", "fold source UUID:"),
	AT(BASE_PART, 128, "\1", "broken reason or witness:"),
	AT(BASE_PART, 228, "\1", "broken reason or witness:"),
	AT(BASE_PART, 200, "\1", "durable_slots:"),
	AT(BASE_PART, 208, "\1", "log_slots:"),
	AT(BASE_PART, 224, "\0", "clean:"),
	AT(BASE_PART, 256, "\0\0\0\0\0\0", "name:"),
	AT(BASE_PART, 64, UUID_NIL, "volume UUID:"),
	AT(BASE_JOINED, 148, "\1", ""),
	AT(BASE_JOINED, 472, UUID_NIL, "part UUID:"),
	AT(BASE_JOINED, 472, UUID_10, "part UUID:"),
	AT(BASE_JOINED, 496, "\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f", "part UUID:"),
	AT(BASE_JOINED, 488, "\6", "first_area:"),
	AT(BASE_JOINED, 488, "\xff\xff\xff\xff", "first_area:"),
	AT(BASE_JOINED, 512, "\xff\xff\xff\x7f", "first_area:"),
	AT(BASE_JOINED, 516, "\xff\xff\xff\xff", "skipped_slots:"),
	AT(BASE_JOINED, 540, "\1", "skipped_slots:"),
};

/* Each must be valid before, refused after, and named. For a fingerprint fault, sector 15 is set as well. */
static void test_faults(const char *text, const struct fault *faults, size_t count)
{
	unsigned misses = 0;

	for (size_t i = 0; i < count; i++) {
		const struct fault *fault = &faults[i];
		uint8_t bytes[SUPERBLOCK_BYTES];
		struct superblock after;
		const char *why = NULL;
		int before, error;

		encode_base(bytes, fault->base);
		before = superblock_decode(bytes, &after, NULL);
		memcpy(bytes + fault->offset, fault->bytes, fault->count);
		if (strcmp(fault->field, "fingerprint:") == 0)
			bytes[447] = 1;
		reseal(bytes);
		error = superblock_decode(bytes, &after, &why);
		if (before == 0 && error == -EINVAL && superblock_decode(bytes, &after, NULL) == -EINVAL &&
		    why != NULL && strncmp(why, fault->field, strlen(fault->field)) == 0)
			continue;
		misses++;
		printf("# fault %zu at %u: before %d, error %d, why: %s\n", i, fault->offset, before, error,
		       why != NULL ? why : "(none)");
	}
	check(text, misses == 0);
}

static int decode_changed(enum base base, unsigned offset, const char *change, size_t count, const char **why)
{
	uint8_t bytes[SUPERBLOCK_BYTES];
	struct superblock after;

	encode_base(bytes, base);
	memcpy(bytes + offset, change, count);
	reseal(bytes);
	return superblock_decode(bytes, &after, why);
}

static void test_features(void)
{
	const char *why = NULL;

	check("another version is -EPROTONOSUPPORT, and named",
	      decode_changed(BASE_FULL, 8, "\2\0\0\0", 4, &why) == -EPROTONOSUPPORT && strncmp(why, "version", 7) == 0);
	check("version 0 too", decode_changed(BASE_FULL, 8, "\0\0\0\0", 4, NULL) == -EPROTONOSUPPORT);
	why = NULL;
	check("an unknown incompat feature is -EPROTONOSUPPORT, and named",
	      decode_changed(BASE_FULL, 27, "\x80", 1, &why) == -EPROTONOSUPPORT && strncmp(why, "incompat", 8) == 0);
	check("a version that is not known comes before fields that are not",
	      decode_changed(BASE_FULL, 8, "\2\0\0\0\0\0\0\0", 8, NULL) == -EPROTONOSUPPORT);
	check("unknown compat and ro_compat features are for the caller to see",
	      decode_changed(BASE_FULL, 16, "\xff\xff\xff\xff\xff\xff\xff\xff", 8, NULL) == 0);
	check("a larger header, of a later compatible version, is accepted",
	      decode_changed(BASE_FULL, HEADER_BYTES_OFFSET, "\xc8\x01\0\0", 4, NULL) == 0 &&
		      decode_changed(BASE_FULL, HEADER_BYTES_OFFSET, "\xf8\x0f\0\0", 4, NULL) == 0);
	check("reserved bytes that are not 0 are accepted",
	      decode_changed(BASE_FULL, 28, "\1", 1, NULL) == 0 && decode_changed(BASE_FULL, 244, "\1", 1, NULL) == 0 &&
		      decode_changed(BASE_FULL, 448, "\1", 1, NULL) == 0 &&
		      decode_changed(BASE_FULL, 4087, "\1", 1, NULL) == 0);
}

static int decode_of(const struct superblock *superblock)
{
	uint8_t bytes[SUPERBLOCK_BYTES];
	struct superblock after;

	superblock_encode(bytes, superblock);
	return superblock_decode(bytes, &after, NULL);
}

/* What a chain goes through must all be valid. */
static void test_valid_states(void)
{
	struct superblock superblock = empty_superblock();

	check("an empty store is valid", decode_of(&superblock) == 0);
	superblock = plain_superblock(STATE_PREPARED);
	check("a prepared store is valid", decode_of(&superblock) == 0);
	memset(&superblock.predecessor_uuid, 0, sizeof(superblock.predecessor_uuid));
	superblock.sequence = 1;
	check("a prepared store without predecessor is valid", decode_of(&superblock) == 0);
	superblock = plain_superblock(STATE_ACTIVE);
	superblock.durable_slots = 2000;
	check("an unclean active store may be durable past an old log end", decode_of(&superblock) == 0);
	superblock.fold_base_slots = SLOT_INDEX_MAX;
	superblock.durable_slots = superblock.log_slots = SLOT_INDEX_MAX;
	superblock.clean = true;
	check("the largest slot counts are valid", decode_of(&superblock) == 0);
	superblock = plain_superblock(STATE_SEALED);
	check("a sealed store is valid", decode_of(&superblock) == 0);
	superblock.fold_source_uuid = superblock.successor_uuid;
	superblock.fold_base_slots = 1000;
	check("a fold may begin at the log's end", decode_of(&superblock) == 0);
	superblock.clean = false;
	check("a sealed store need not be clean while its successor is folded into it", decode_of(&superblock) == 0);
	superblock.state = STATE_ACTIVE;
	check("an active store may have the successor that is folded into it", decode_of(&superblock) == 0);
	superblock = plain_superblock(STATE_SEALED);
	memset(&superblock.successor_uuid, 0, sizeof(superblock.successor_uuid));
	check("a newest store that is being dropped is sealed without successor", decode_of(&superblock) == 0);
	superblock = plain_superblock(STATE_MERGING);
	superblock.successor_uuid = uuid_of(0x70);
	check("a merging store may have both links, and its predecessor as the target", decode_of(&superblock) == 0);
	superblock.merge_target_uuid = superblock.store_uuid;
	check("a merging store may be the target itself", decode_of(&superblock) == 0);
	superblock.origin_bytes = ORIGIN_BYTES_MAX;
	check("an origin of 16 TiB is valid", decode_of(&superblock) == 0);
	superblock.origin_bytes = 512;
	check("an origin of 512 bytes is valid", decode_of(&superblock) == 0);
	superblock.limit_bytes = 2 << 20;
	check("a limit with room for exactly one area is valid", decode_of(&superblock) == 0);
}

static void test_random_bytes(void)
{
	uint64_t state = 2;
	unsigned accepted = 0, magic_accepted = 0, sealed_accepted = 0;

	for (unsigned round = 0; round < 2000; round++) {
		uint8_t bytes[SUPERBLOCK_BYTES];
		struct superblock after;

		random_fill(&state, bytes, sizeof(bytes));
		accepted += superblock_decode(bytes, &after, NULL) != -ENODATA;
		memcpy(bytes, "rowsnap", 8);
		magic_accepted += superblock_decode(bytes, &after, NULL) != -EBADMSG;
		put_u32(bytes + 8, 1);
		put_u32(bytes + 24, 0);
		reseal(bytes);
		sealed_accepted += superblock_decode(bytes, &after, NULL) != -EINVAL;
	}
	check("random bytes are -ENODATA", accepted == 0);
	check("random bytes after the magic are -EBADMSG", magic_accepted == 0);
	check("random fields under a good checksum are -EINVAL", sealed_accepted == 0);
}

/* A hostile store has good checksums: whatever is accepted must be what its bytes say, byte for byte. */
static void test_random_changes(void)
{
	uint64_t state = 3;
	unsigned accepted = 0, refused = 0, misses = 0;

	for (unsigned round = 0; round < 50000; round++) {
		uint8_t bytes[SUPERBLOCK_BYTES], again[SUPERBLOCK_BYTES];
		struct superblock superblock = random_superblock(&state);
		const char *why = NULL;
		int error;

		superblock_encode(bytes, &superblock);
		for (uint64_t changes = 1 + random_below(&state, 3); changes > 0; changes--)
			bytes[8 + random_below(&state, DEFINED_BYTES - 8)] = (uint8_t)random_below(&state, 256);
		memset(bytes + 28, 0, 4);
		memset(bytes + 244, 0, 4);
		put_u32(bytes + HEADER_BYTES_OFFSET, DEFINED_BYTES);
		reseal(bytes);
		error = superblock_decode(bytes, &superblock, &why);
		if (error != 0) {
			refused++;
			misses += (error != -EINVAL && error != -EPROTONOSUPPORT) || why == NULL;
			continue;
		}
		accepted++;
		superblock_encode(again, &superblock);
		misses += memcmp(bytes, again, sizeof(bytes)) != 0;
	}
	check("changed fields under a good checksum are refused by name or read as they are", misses == 0);
	check("and both happen", accepted > 1000 && refused > 1000);
}

static void test_refusal_leaves_result_alone(void)
{
	struct superblock superblock = full_superblock(), before = empty_superblock(), after = before;
	uint8_t bytes[SUPERBLOCK_BYTES];
	int bad_field, bad_checksum;

	superblock_encode(bytes, &superblock);
	bytes[144] = 9;
	bad_checksum = superblock_decode(bytes, &after, NULL);
	reseal(bytes);
	bad_field = superblock_decode(bytes, &after, NULL);
	check("a refused superblock leaves the caller's structure as it was",
	      bad_checksum == -EBADMSG && bad_field == -EINVAL && same_superblock(&before, &after));
}

static void test_names(void)
{
	static const struct {
		const char *name;
		bool valid;
		const char *text;
	} names[] = {
		{ "a", true, "name: one character" },
		{ "before-update", true, "name: with a hyphen" },
		{ "2024.10.31_daily", true, "name: with digits, dots, underscore" },
		{ "_", true, "name: an underscore" },
		{ "a-", true, "name: ending in a hyphen" },
		{ "a..b", true, "name: with two dots" },
		{ "Origin", true, "name: Origin, another case" },
		{ "origin2", true, "name: origin2" },
		{ "origi", true, "name: origi" },
		{ "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_", true, "name: 63 characters" },
		{ "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.", false, "no name: 64 characters" },
		{ "", false, "no name: empty" },
		{ "origin", false, "no name: origin" },
		{ ".", false, "no name: a dot" },
		{ "..", false, "no name: two dots" },
		{ ".hidden", false, "no name: a dot first" },
		{ "-x", false, "no name: a hyphen first" },
		{ "a b", false, "no name: with a space" },
		{ "a/b", false, "no name: with a slash" },
		{ "a\nb", false, "no name: with a newline" },
		{ "a\x7f", false, "no name: with a control character" },
		{ "\xc3\xa4", false, "no name: not ASCII" },
		{ "a:b", false, "no name: with a colon" },
		{ "a@b", false, "no name: with an at sign" },
	};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		check(names[i].text, name_is_valid(names[i].name) == names[i].valid);
}

/* A copy, and one of the next generation half written over it: what of it is from which does not show but in its checksum. */
static void test_looks_torn(void)
{
	struct superblock old = full_superblock(), new = old;
	uint8_t good[SUPERBLOCK_BYTES], next[SUPERBLOCK_BYTES], torn[SUPERBLOCK_BYTES];

	new.generation++;
	new.durable_slots--;
	superblock_encode(good, &old);
	superblock_encode(next, &new);
	memcpy(torn, next, sizeof(torn));
	memcpy(torn + 512, good + 512, sizeof(torn) - 512);
	check("a new version with the old one's checksum looks torn", superblock_looks_torn(torn, good));
	check("and so it does beside the new one", superblock_looks_torn(torn, next));
	memcpy(torn, good, sizeof(torn));
	torn[SUPERBLOCK_BYTES - 1] ^= 1;
	check("a good version with another checksum looks torn", superblock_looks_torn(torn, good));

	memcpy(torn, next, 512);
	check("a checksum of neither does not", !superblock_looks_torn(torn, good));
	memcpy(torn + 512, good + 512, sizeof(torn) - 512);
	torn[1000] ^= 1;
	check("what is in no version does not look torn", !superblock_looks_torn(torn, good));
	memcpy(torn, good, sizeof(torn));
	torn[150] = 77;
	check("nor does what is no superblock", !superblock_looks_torn(torn, good));
	memcpy(torn, good, sizeof(torn));
	torn[201] ^= 1;
	check("nor does another content of the same generation", !superblock_looks_torn(torn, good));
	memcpy(torn, next, sizeof(torn));
	torn[48] ^= 1;
	check("nor does another store", !superblock_looks_torn(torn, good));
	memcpy(torn, next, sizeof(torn));
	good[100] ^= 1;
	check("beside what is not good nothing looks torn", !superblock_looks_torn(torn, good));
}

static void test_texts(void)
{
	unsigned misses = 0;

	for (unsigned a = 0; a <= STATE_JOINED; a++)
		for (unsigned b = 0; b < a; b++)
			misses += strcmp(store_state_text((enum store_state)a),
					 store_state_text((enum store_state)b)) == 0;
	for (unsigned a = 0; a < 6; a++)
		for (unsigned b = 0; b < a; b++)
			misses += strcmp(broken_reason_text((enum broken_reason)a),
					 broken_reason_text((enum broken_reason)b)) == 0;
	check("every state and reason has a word of its own", misses == 0);
	check("states are called as in the list", strcmp(store_state_text(STATE_ACTIVE), "active") == 0 &&
							   strcmp(store_state_text(STATE_SEALED), "sealed") == 0 &&
							   strcmp(store_state_text(STATE_MERGING), "merging") == 0);
	check("a full store is called full", strcmp(broken_reason_text(BROKEN_FULL), "full") == 0);
	check("what is no state, and no reason, is called unknown",
	      strcmp(store_state_text((enum store_state)(STATE_JOINED + 1)), "unknown") == 0 &&
		      strcmp(broken_reason_text((enum broken_reason)(BROKEN_ORIGIN_CHANGED + 1)), "unknown") == 0);
}

static void test_fingerprint(void)
{
	static const uint64_t offsets[FINGERPRINT_SECTORS] = {
		0,     512,   1024,  1536,  2048,  2560,  3072,	 3584,
		65536, 66048, 66560, 67072, 67584, 68096, 68608, 69120,
	};
	struct fingerprint before, after;
	uint8_t bytes[FINGERPRINT_BYTES], sector[FINGERPRINT_SECTOR_BYTES];
	unsigned misses = 0;

	for (unsigned i = 0; i < FINGERPRINT_SECTORS; i++) {
		misses += fingerprint_offset(i) != offsets[i];
		before.sector[i] = UINT64_C(0x0102030405060700) + i;
	}
	check("fingerprint sectors are at 0-4095 and 65536-69631", misses == 0);
	fingerprint_encode(bytes, &before);
	check("a fingerprint is 16 little-endian numbers",
	      bytes_are(bytes, "00070605040302010107060504030201") && bytes_are(bytes + 120, "0f07060504030201"));
	fingerprint_decode(bytes, &after);
	check("a fingerprint comes back as it was", memcmp(&before, &after, sizeof(after)) == 0);

	memset(sector, 0, sizeof(sector));
	check("the checksum of a sector of zeroes is the pinned one",
	      fingerprint_checksum(sector) == UINT64_C(0xb2987a9d949e807c));
	for (unsigned i = 0; i < sizeof(sector); i++)
		sector[i] = (uint8_t)(i & 0xff);
	check("the checksum of a sector of 0, 1, ... 255, 0, 1, ... is the pinned one",
	      fingerprint_checksum(sector) == UINT64_C(0x1059105ad19bfa09));
}

int main(void)
{
	test_exact_bytes();
	test_exact_bytes_of_parts();
	test_places();
	test_round_trip();
	test_name_is_cut_at_its_end();
	test_damage();
	test_torn();
	test_looks_torn();
	test_faults("each bad number is -EINVAL, and named", bad_numbers, sizeof(bad_numbers) / sizeof(bad_numbers[0]));
	test_faults("each thing that is wrong with parts is -EINVAL, and named", bad_parts,
		    sizeof(bad_parts) / sizeof(bad_parts[0]));

	test_faults("each contradiction of names and links is -EINVAL, and named", bad_identities,
		    sizeof(bad_identities) / sizeof(bad_identities[0]));
	test_features();
	test_valid_states();
	test_random_bytes();
	test_random_changes();
	test_refusal_leaves_result_alone();
	test_names();
	test_texts();
	test_fingerprint();
	return unit_done();
}
