/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The volume's record: a small JSON file, UUID.json, in the state directory. It remembers where the stores were seen last,
 * so that `serve ORIGIN` alone finds them; it is the last place for a broken mark; and it tells a half-merged origin
 * without its stores. The stores never need it.
 */
#ifndef CORE_RECORD_H
#define CORE_RECORD_H

#include <limits.h>
#include <stddef.h>

#include "format/superblock.h"

struct record_store {
	uuid128_t uuid;
	char name[NAME_LENGTH_MAX + 1];
	char path[PATH_MAX];
	uint64_t created_ns;
	struct broken_mark broken; /* as far as the store itself could not carry it */
};

#define RECORD_STORES_MAX 1024u

/* A store that is joined to another. */
struct record_part {
	uuid128_t uuid, main_uuid;
	char path[PATH_MAX];
};

#define RECORD_PARTS_MAX ((size_t)RECORD_STORES_MAX * (STORE_PARTS_MAX - 1))

struct record {
	uuid128_t volume_uuid;
	char *origin_path;
	uuid128_t merging_uuid; /* the target's store, while a merge is under way; else nil */
	struct record_store *stores; /* oldest first */
	size_t store_count, store_size;
	struct record_part *parts;
	size_t part_count, part_size;
	char *directory;
};

/* A new record without stores. Returns 0 or -ENOMEM. */
__attribute__((warn_unused_result)) int record_create(const char *directory, const char *origin_path,
						      const uuid128_t *volume_uuid, struct record **record);
/* Other volumes' records of the same origin path are of former images there: they give the path up. */
void record_disown(const struct record *record);

/*
 * Finds the record of an origin by its path (canonical), or, with `volume_uuid` not nil, of a volume. Returns 0, -ENOENT, or an
 * error of reading. Records that cannot be read or parsed are passed over with a warning; when none of the others is it, that
 * gives -EUCLEAN.
 */
__attribute__((warn_unused_result)) int record_find(const char *directory, const char *origin_path,
						    const uuid128_t *volume_uuid, struct record **record);
void record_destroy(struct record *record);

/* Changes in memory. -ENOMEM, -E2BIG (too many stores) and -ENAMETOOLONG are possible. */
__attribute__((warn_unused_result)) int record_add(struct record *record, const uuid128_t *uuid, const char *name,
						   const char *path, uint64_t created_ns);
__attribute__((warn_unused_result)) int record_set_origin(struct record *record, const char *path);
/* Of a store of the record. */
__attribute__((warn_unused_result)) int record_add_part(struct record *record, const uuid128_t *main_uuid,
							const uuid128_t *uuid, const char *path);
struct record_part *record_part_find(const struct record *record, const uuid128_t *uuid);
void record_remove(struct record *record, const uuid128_t *uuid); /* and its parts */
void record_remove_part(struct record *record, const uuid128_t *uuid);
struct record_store *record_store_find(const struct record *record, const uuid128_t *uuid);

/* Writes it, durably: a new file renamed over the old one. 0 or a negative errno. Blocks. */
__attribute__((warn_unused_result)) int record_save(const struct record *record);

#endif
