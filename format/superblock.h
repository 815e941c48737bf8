/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A store's superblock. See superblock.c for the bytes and the rules, and rowsnap-format(5).
 *
 * Pure functions: no I/O, no allocation, no globals. Errors are negative errno values.
 */
#ifndef FORMAT_SUPERBLOCK_H
#define FORMAT_SUPERBLOCK_H

#include "format/area.h"
#include "format/types.h"

#define SUPERBLOCK_BYTES 4096u
#define SUPERBLOCK_COPIES 2u

/* Byte offsets of the two copies in a store, and of the first area. */
#define SUPERBLOCK_OFFSET_0 UINT64_C(0)
#define SUPERBLOCK_OFFSET_1 (UINT64_C(512) << 10)
#define FIRST_AREA_OFFSET (UINT64_C(1) << 20)

#define FORMAT_VERSION 1u

/* Feature bits this code knows. FEATURE_JOINED: a store that has parts, or a part; superblock_encode() sees to it. */
#define FEATURE_JOINED UINT32_C(1)
#define FEATURES_COMPAT UINT32_C(0)
#define FEATURES_RO_COMPAT UINT32_C(0)
#define FEATURES_INCOMPAT FEATURE_JOINED

/* ROLE_PART: more room for another store's log; it is nothing by itself. */
enum store_role { ROLE_SNAPSHOT = 1, ROLE_FORK = 2, ROLE_PART = 3 };

enum store_state {
	STATE_EMPTY = 0,    /* formatted; belongs to no volume */
	STATE_PREPARED = 1, /* written for a snapshot whose creation may not have been committed */
	STATE_ACTIVE = 2,   /* the newest: receives exceptions */
	STATE_SEALED = 3,   /* closed: a newer store took over */
	STATE_MERGING = 4,  /* the origin is being put back to this snapshot or an older one: see core/merge.c */
	STATE_JOINED = 5,   /* a part, and only that */
};

/* The stores that one log lies in: its own, number 0, and those joined to it. */
#define STORE_PARTS_MAX 16u
#define PART_AREA_NONE UINT32_C(0xffffffff)

/* A store that is joined to this one. */
struct part {
	uuid128_t uuid;
	uint32_t first_area; /* the first area of the log that lies in it; PART_AREA_NONE: it stands by */
	uint32_t skipped_slots; /* how many slots before that area are not used */
};

enum broken_reason {
	BROKEN_NOT = 0,
	BROKEN_FULL = 1,           /* no room for an exception */
	BROKEN_STORE_ERROR = 2,    /* the store could not be written */
	BROKEN_BARRIER = 3,        /* a flush of the store failed */
	BROKEN_METADATA = 4,       /* entries before the durable mark could not be read back */
	BROKEN_ORIGIN_CHANGED = 5, /* the origin was written without this store, and that was accepted */
};

struct broken_mark {
	enum broken_reason reason;
	uint64_t time_ns; /* since the epoch; 0 when not broken */
};

/*
 * The origin's fingerprint: a checksum for each 512-byte sector of its file-system superblock area, which is the
 * origin's first 4 KiB and the 4 KiB at 64 KiB. Sectors beyond the origin's end have checksum 0.
 */
#define FINGERPRINT_SECTORS 16u
#define FINGERPRINT_SECTOR_BYTES 512u

struct fingerprint {
	uint64_t sector[FINGERPRINT_SECTORS];
};

struct superblock {
	uint32_t compat, ro_compat, incompat;
	uint64_t generation;

	uuid128_t store_uuid;
	uuid128_t volume_uuid;      /* nil: empty */
	uuid128_t predecessor_uuid; /* nil: the oldest */
	uuid128_t successor_uuid;   /* nil: the newest */
	uint64_t sequence;          /* 1 for a volume's first snapshot; grows along the chain */

	enum store_role role;
	enum store_state state;
	char name[NAME_LENGTH_MAX + 1]; /* the snapshot's; empty in an empty store */

	uint64_t created_ns; /* when the snapshot was taken; since the epoch */
	uint64_t sealed_ns;  /* when a newer one took over; 0: not */

	uint64_t origin_bytes; /* 0 in an empty store */
	struct geometry geometry;
	uint64_t limit_bytes; /* the store's largest size; 0: none but the disk's */

	uint64_t durable_slots; /* slots [0, n) were known durable when this was written */
	bool clean;             /* clean stop, or sealed: the log ends at log_slots exactly */
	uint64_t log_slots;     /* valid when clean */

	/* A fold into this store: where from (nil: none), and this store's log end before it began. */
	uuid128_t fold_source_uuid;
	uint64_t fold_base_slots;

	uuid128_t merge_target_uuid; /* merging: the store of the snapshot the origin is put back to; else nil */

	struct broken_mark broken; /* this store */

	/* Another store of the chain that could not carry its own mark (nil: none). */
	uuid128_t witness_uuid;
	struct broken_mark witness;

	struct fingerprint fingerprint;

	uint32_t part_count; /* of parts[] */
	struct part parts[STORE_PARTS_MAX - 1];
	uuid128_t main_uuid; /* a part: the store it is joined to; else nil */
	uint32_t part_index; /* a part: its number there, 1 or more; else 0 */
};

/* Encodes all SUPERBLOCK_BYTES of one copy; both copies are the same bytes. */
void superblock_encode(uint8_t out[static SUPERBLOCK_BYTES], const struct superblock *superblock);

/*
 * Decodes and validates one copy. Returns 0, or
 *   -ENODATA        no rowsnap superblock here (the magic is not there)
 *   -EPROTONOSUPPORT a version, or an incompat feature, that this code does not know
 *   -EBADMSG        the checksum does not hold
 *   -EINVAL         the checksum holds, but a field is out of its range or contradicts another
 * and, for -EPROTONOSUPPORT and -EINVAL, *why is set to a static text that names the field (why may be NULL).
 * Unknown ro_compat bits are not an error here: the caller must refuse to write.
 */
__attribute__((warn_unused_result)) int superblock_decode(const uint8_t in[static SUPERBLOCK_BYTES],
							  struct superblock *superblock, const char **why);

/*
 * Whether a copy that superblock_decode() finds damaged is what is left when the power fails while one version is written
 * over another, the store's other copy `good` being one of the two: everything is of one of them, but for the checksum.
 */
bool superblock_looks_torn(const uint8_t damaged[static SUPERBLOCK_BYTES], const uint8_t good[static SUPERBLOCK_BYTES]);

/* Whether `name` may name a snapshot or a volume: 1 to 63 of A-Za-z0-9._-, no leading '-' or '.', not "origin". */
bool name_is_valid(const char *name);

/* The words used in messages and JSON: "active", "full", ... Total over the enums. */
const char *store_state_text(enum store_state state);
const char *broken_reason_text(enum broken_reason reason);

/*
 * The checksum of one fingerprint sector. `sector` holds FINGERPRINT_SECTOR_BYTES bytes. Never returns 0, which
 * stands for a sector beyond the origin's end.
 */
uint64_t fingerprint_checksum(const uint8_t sector[static FINGERPRINT_SECTOR_BYTES]);

/* The byte offset on the origin of fingerprint sector `index` (below FINGERPRINT_SECTORS). */
uint64_t fingerprint_offset(unsigned index);

/* A fingerprint as the first bytes of an ENTRY_FINGERPRINT slot: 16 little-endian u64; the rest of the block is 0. */
#define FINGERPRINT_BYTES 128u
void fingerprint_encode(uint8_t out[static FINGERPRINT_BYTES], const struct fingerprint *fingerprint);
void fingerprint_decode(const uint8_t in[static FINGERPRINT_BYTES], struct fingerprint *fingerprint);

#endif
