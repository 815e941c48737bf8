/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The volume's record in memory. The file it is kept in: record-file.c. */
#include "core/record.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

int record_create(const char *directory, const char *origin_path, const uuid128_t *volume_uuid, struct record **out)
{
	struct record *record = calloc(1, sizeof(*record));

	if (record == NULL)
		return -ENOMEM;
	record->volume_uuid = *volume_uuid;
	record->directory = strdup(directory);
	record->origin_path = strdup(origin_path);
	if (record->directory == NULL || record->origin_path == NULL) {
		record_destroy(record);
		return -ENOMEM;
	}
	*out = record;
	return 0;
}

void record_destroy(struct record *record)
{
	if (record == NULL)
		return;
	free(record->parts);
	free(record->stores);
	free(record->origin_path);
	free(record->directory);
	free(record);
}

struct record_store *record_store_find(const struct record *record, const uuid128_t *uuid)
{
	for (size_t i = 0; i < record->store_count; i++)
		if (uuid_equal(&record->stores[i].uuid, uuid))
			return &record->stores[i];
	return NULL;
}

static int compare_created(const void *a, const void *b)
{
	const struct record_store *left = a, *right = b;

	return left->created_ns == right->created_ns ? 0 : left->created_ns < right->created_ns ? -1 : 1;
}

int record_add(struct record *record, const uuid128_t *uuid, const char *name, const char *path, uint64_t created_ns)
{
	struct record_store *store = record_store_find(record, uuid);

	if (strlen(path) >= sizeof(store->path))
		return -ENAMETOOLONG;
	if (store == NULL && record->store_count == RECORD_STORES_MAX)
		return -E2BIG;
	if (store == NULL && record->store_count == record->store_size) {
		size_t size = record->store_size == 0 ? 8 : record->store_size * 2;
		struct record_store *stores = reallocarray(record->stores, size, sizeof(*stores));

		if (stores == NULL)
			return -ENOMEM;
		record->stores = stores;
		record->store_size = size;
	}
	if (store == NULL) {
		store = &record->stores[record->store_count++];
		memset(store, 0, sizeof(*store));
		store->uuid = *uuid;
	}
	(void)snprintf(store->path, sizeof(store->path), "%s", path);
	store->created_ns = created_ns;
	(void)snprintf(store->name, sizeof(store->name), "%s", name);
	/* oldest first, also when an old one comes back */
	qsort(record->stores, record->store_count, sizeof(*record->stores), compare_created);
	return 0;
}

struct record_part *record_part_find(const struct record *record, const uuid128_t *uuid)
{
	for (size_t i = 0; i < record->part_count; i++)
		if (uuid_equal(&record->parts[i].uuid, uuid))
			return &record->parts[i];
	return NULL;
}

static void remove_part(struct record *record, size_t at)
{
	record->part_count--;
	memmove(&record->parts[at], &record->parts[at + 1], (record->part_count - at) * sizeof(*record->parts));
}

void record_remove_part(struct record *record, const uuid128_t *uuid)
{
	const struct record_part *part = record_part_find(record, uuid);

	if (part != NULL)
		remove_part(record, (size_t)(part - record->parts));
}

int record_add_part(struct record *record, const uuid128_t *main_uuid, const uuid128_t *uuid, const char *path)
{
	struct record_part *part;

	if (strlen(path) >= sizeof(part->path))
		return -ENAMETOOLONG;
	record_remove_part(record, uuid);
	if (record->part_count == RECORD_PARTS_MAX)
		return -E2BIG;
	if (record->part_count == record->part_size) {
		size_t size = record->part_size == 0 ? 8 : record->part_size * 2;
		struct record_part *parts = reallocarray(record->parts, size, sizeof(*parts));

		if (parts == NULL)
			return -ENOMEM;
		record->parts = parts;
		record->part_size = size;
	}
	part = &record->parts[record->part_count++];
	part->uuid = *uuid;
	part->main_uuid = *main_uuid;
	(void)snprintf(part->path, sizeof(part->path), "%s", path);
	return 0;
}

int record_set_origin(struct record *record, const char *path)
{
	char *copy = strdup(path);

	if (copy == NULL)
		return -ENOMEM;
	free(record->origin_path);
	record->origin_path = copy;
	return 0;
}

void record_remove(struct record *record, const uuid128_t *uuid)
{
	struct record_store *store = record_store_find(record, uuid);
	size_t at;

	for (size_t i = record->part_count; i-- > 0;)
		if (uuid_equal(&record->parts[i].main_uuid, uuid))
			remove_part(record, i);
	if (store == NULL)
		return;
	at = (size_t)(store - record->stores);
	memmove(store, store + 1, (record->store_count - at - 1) * sizeof(*store));
	record->store_count--;
}
