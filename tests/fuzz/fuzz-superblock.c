/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A superblock. The input is one copy as it is on disk, padded with zeroes; it is looked at as it is, and once more with
 * its checksum put right, so that what lies behind the checksum is reached.
 *
 *   1. What is refused names the field at fault; what is accepted is within the format's ranges.
 *   2. Encoding what was decoded gives the same bytes, but for the reserved ones.
 *   3. Of two versions of a superblock, whatever sectors of one are written over the other: the result is one of them,
 *      or looks torn.
 */
#include <errno.h>
#include <xxhash.h>

#include "format/bytes.h"
#include "format/superblock.h"
#include "tests/fuzz/fuzz.h"

#define CHECKSUM_AT (SUPERBLOCK_BYTES - 8)
#define FIELDS_END 448u
#define SECTOR_BYTES 512u

static void put_checksum(uint8_t copy[static SUPERBLOCK_BYTES])
{
	put_u64(copy + CHECKSUM_AT, XXH3_64bits(copy, CHECKSUM_AT));
}

/* What a decoder does not look at is as an encoder writes it. */
static void clear_reserved(uint8_t copy[static SUPERBLOCK_BYTES])
{
	put_u32(copy + 12, FIELDS_END);
	memset(copy + 28, 0, 4);
	memset(copy + 244, 0, 4);
	memset(copy + FIELDS_END, 0, CHECKSUM_AT - FIELDS_END);
	put_checksum(copy);
}

static void check_ranges(const struct superblock *superblock)
{
	bool empty = superblock->state == STATE_EMPTY;

	fuzz_check("the geometry is valid", geometry_is_valid(&superblock->geometry));
	fuzz_check("the log is bounded", superblock->log_slots <= SLOT_INDEX_MAX &&
						 superblock->durable_slots <= SLOT_INDEX_MAX &&
						 superblock->fold_base_slots <= SLOT_INDEX_MAX);
	fuzz_check("the origin is bounded", superblock->origin_bytes <= ORIGIN_BYTES_MAX);
	fuzz_check("the name is one", empty ? superblock->name[0] == '\0' : name_is_valid(superblock->name));
	fuzz_check("an empty store is of no volume", uuid_is_nil(&superblock->volume_uuid) == empty);
	fuzz_check("a state has a word", strcmp(store_state_text(superblock->state), "unknown") != 0);
	fuzz_check("a reason has a word", strcmp(broken_reason_text(superblock->broken.reason), "unknown") != 0);
}

/* `versions` are two valid encodings. Each bit of `mask` takes one sector from the second. */
static void check_torn(uint8_t versions[2][SUPERBLOCK_BYTES], unsigned mask)
{
	uint8_t mixed[SUPERBLOCK_BYTES];
	struct superblock found;
	bool ok;

	for (unsigned sector = 0; sector < SUPERBLOCK_BYTES / SECTOR_BYTES; sector++)
		memcpy(mixed + sector * SECTOR_BYTES, versions[mask >> sector & 1] + sector * SECTOR_BYTES, SECTOR_BYTES);
	ok = superblock_decode(mixed, &found, NULL) == 0;
	for (unsigned good = 0; good < 2; good++)
		fuzz_check("a mixture of two versions is one of them, or looks torn beside either",
			   ok || superblock_looks_torn(mixed, versions[good]));
}

static void check_versions(const struct superblock *superblock, const uint8_t *rest)
{
	struct superblock next = *superblock;
	uint8_t versions[2][SUPERBLOCK_BYTES];

	next.generation ^= 1;
	next.created_ns ^= get_u64(rest);
	superblock_encode(versions[0], superblock);
	superblock_encode(versions[1], &next);
	check_torn(versions, rest[8]);
}

static void look_at(const uint8_t copy[static SUPERBLOCK_BYTES])
{
	uint8_t expected[SUPERBLOCK_BYTES], encoded[SUPERBLOCK_BYTES];
	struct superblock superblock;
	const char *why = NULL;
	int error = superblock_decode(copy, &superblock, &why);

	fuzz_check("an error is one of those promised", error == 0 || error == -ENODATA || error == -EBADMSG ||
								 error == -EINVAL || error == -EPROTONOSUPPORT);
	fuzz_check("the field at fault is named", (error == -EINVAL || error == -EPROTONOSUPPORT) == (why != NULL));
	if (error != 0)
		return;
	check_ranges(&superblock);
	superblock_encode(encoded, &superblock);
	memcpy(expected, copy, sizeof(expected));
	clear_reserved(expected);
	fuzz_check("encoding undoes decoding", memcmp(encoded, expected, sizeof(encoded)) == 0);
	check_versions(&superblock, copy + 512);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input input = { data, size };
	uint8_t copy[SUPERBLOCK_BYTES];

	fuzz_take(&input, copy, sizeof(copy));
	look_at(copy);
	put_checksum(copy);
	look_at(copy);
	return 0;
}
