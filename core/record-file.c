/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The volume's record on disk. Its file is read with bounds (size, number of stores) and every field is checked; it is
 * replaced by write, fsync, rename, fsync of the directory, so that a crash leaves the old one or the new one.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/chain.h"
#include "core/record.h"
#include "io/cleanup.h"
#include "io/log.h"

#define RECORD_BYTES_MAX ((off_t)8 << 20)

static const char *text_of(struct json_object *object, const char *key)
{
	struct json_object *value;

	if (!json_object_object_get_ex(object, key, &value) || !json_object_is_type(value, json_type_string))
		return NULL;
	return json_object_get_string(value);
}

static uint64_t number_of(struct json_object *object, const char *key)
{
	struct json_object *value;

	if (!json_object_object_get_ex(object, key, &value) || !json_object_is_type(value, json_type_int))
		return 0;
	return json_object_get_uint64(value);
}

static int parse_store(struct record *record, struct json_object *object)
{
	const char *uuid = text_of(object, "uuid"), *name = text_of(object, "name"), *path = text_of(object, "path");
	uint64_t reason = number_of(object, "broken_reason");
	uuid128_t id;
	int error;

	if (uuid == NULL || name == NULL || path == NULL || uuid_parse_text(uuid, &id) != 0 || !name_is_valid(name) ||
	    reason > BROKEN_ORIGIN_CHANGED)
		return -EINVAL;
	error = record_add(record, &id, name, path, number_of(object, "created_ns"));
	if (error == 0) {
		struct record_store *store = record_store_find(record, &id);

		store->broken.reason = (enum broken_reason)reason;
		store->broken.time_ns = number_of(object, "broken_ns");
	}
	return error;
}

static int parse_part(struct record *record, struct json_object *object)
{
	const char *uuid = text_of(object, "uuid"), *main = text_of(object, "store"), *path = text_of(object, "path");
	uuid128_t id, main_id;

	if (uuid == NULL || main == NULL || path == NULL || uuid_parse_text(uuid, &id) != 0 ||
	    uuid_parse_text(main, &main_id) != 0 || record_store_find(record, &main_id) == NULL)
		return -EINVAL;
	return record_add_part(record, &main_id, &id, path);
}

static int parse_parts(struct record *record, struct json_object *object)
{
	struct json_object *parts;
	int error = 0;

	if (!json_object_object_get_ex(object, "parts", &parts))
		return 0;
	if (!json_object_is_type(parts, json_type_array) || json_object_array_length(parts) > RECORD_PARTS_MAX)
		return -EINVAL;
	for (size_t i = 0; i < json_object_array_length(parts) && error == 0; i++)
		error = parse_part(record, json_object_array_get_idx(parts, i));
	return error;
}

static int parse(struct json_object *object, const char *directory, struct record **out)
{
	const char *uuid = text_of(object, "uuid"), *origin = text_of(object, "origin");
	const char *merging = text_of(object, "merging");
	struct json_object *stores;
	struct record *record;
	uuid128_t id;
	int error;

	if (uuid == NULL || origin == NULL || uuid_parse_text(uuid, &id) != 0 ||
	    !json_object_object_get_ex(object, "stores", &stores) || !json_object_is_type(stores, json_type_array) ||
	    json_object_array_length(stores) > RECORD_STORES_MAX)
		return -EINVAL;
	error = record_create(directory, origin, &id, &record);
	if (error != 0)
		return error;
	if (json_object_object_get_ex(object, "merging", NULL))
		error = merging == NULL ? -EINVAL : uuid_parse_text(merging, &record->merging_uuid);
	for (size_t i = 0; i < json_object_array_length(stores) && error == 0; i++)
		error = parse_store(record, json_object_array_get_idx(stores, i));
	if (error == 0)
		error = parse_parts(record, object);
	if (error != 0)
		record_destroy(record);
	else
		*out = record;
	return error;
}

static int load(const char *directory, const char *file, struct record **out)
{
	auto_free char *text = NULL;
	auto_close int fd = -1;
	char path[PATH_MAX];
	struct json_object *object;
	struct stat status;
	ssize_t length;
	int error;

	if (snprintf(path, sizeof(path), "%s/%s", directory, file) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
	if (fd < 0 || fstat(fd, &status) != 0)
		return -errno;
	if (!S_ISREG(status.st_mode) || status.st_size > RECORD_BYTES_MAX)
		return -EINVAL;
	text = calloc(1, (size_t)status.st_size + 1);
	if (text == NULL)
		return -ENOMEM;
	length = read(fd, text, (size_t)status.st_size);
	if (length < 0)
		return -errno;
	object = json_tokener_parse(text);
	if (!json_object_is_type(object, json_type_object)) {
		json_object_put(object);
		return -EINVAL;
	}
	error = parse(object, directory, out);
	json_object_put(object);
	return error;
}

static int is_record(const struct dirent *entry)
{
	size_t length = strlen(entry->d_name);

	return length == UUID_TEXT_BYTES - 1 + 5 && strcmp(entry->d_name + length - 5, ".json") == 0;
}

static bool is_wanted(const struct record *record, const char *origin_path, const uuid128_t *volume_uuid)
{
	if (!uuid_is_nil(volume_uuid))
		return uuid_equal(&record->volume_uuid, volume_uuid);
	return strcmp(record->origin_path, origin_path) == 0;
}

int record_find(const char *directory, const char *origin_path, const uuid128_t *volume_uuid, struct record **out)
{
	struct dirent **entries = NULL;
	int count = scandir(directory, &entries, is_record, alphasort), error = -ENOENT;
	bool damaged = false;

	if (count < 0)
		return -errno;
	for (int i = 0; i < count; i++) {
		struct record *record = NULL;
		int bad = error == 0 ? 0 : load(directory, entries[i]->d_name, &record);

		damaged = damaged || bad != 0;
		if (bad != 0)
			log_warning("record %s/%s cannot be read (%s): passed over", directory, entries[i]->d_name,
				    strerror(-bad));
		if (record != NULL && is_wanted(record, origin_path, volume_uuid)) {
			*out = record;
			error = 0;
		} else {
			record_destroy(record);
		}
		free(entries[i]);
	}
	free(entries);
	return error == -ENOENT && damaged ? -EUCLEAN : error;
}

static void add_text(struct json_object *object, const char *key, const char *text)
{
	json_object_object_add(object, key, json_object_new_string(text));
}

static struct json_object *parts_json(const struct record *record)
{
	struct json_object *parts = json_object_new_array();
	char uuid[UUID_TEXT_BYTES];

	for (size_t i = 0; i < record->part_count; i++) {
		struct json_object *one = json_object_new_object();

		uuid_text(&record->parts[i].uuid, uuid);
		add_text(one, "uuid", uuid);
		uuid_text(&record->parts[i].main_uuid, uuid);
		add_text(one, "store", uuid);
		add_text(one, "path", record->parts[i].path);
		json_object_array_add(parts, one);
	}
	return parts;
}

static struct json_object *to_json(const struct record *record)
{
	struct json_object *object = json_object_new_object(), *stores = json_object_new_array();
	char uuid[UUID_TEXT_BYTES];

	uuid_text(&record->volume_uuid, uuid);
	add_text(object, "uuid", uuid);
	add_text(object, "origin", record->origin_path);
	if (!uuid_is_nil(&record->merging_uuid)) {
		uuid_text(&record->merging_uuid, uuid);
		add_text(object, "merging", uuid);
	}
	for (size_t i = 0; i < record->store_count; i++) {
		const struct record_store *store = &record->stores[i];
		struct json_object *one = json_object_new_object();

		uuid_text(&store->uuid, uuid);
		add_text(one, "uuid", uuid);
		add_text(one, "name", store->name);
		add_text(one, "path", store->path);
		json_object_object_add(one, "created_ns", json_object_new_uint64(store->created_ns));
		if (store->broken.reason != BROKEN_NOT) {
			json_object_object_add(one, "broken_reason", json_object_new_int((int)store->broken.reason));
			json_object_object_add(one, "broken_ns", json_object_new_uint64(store->broken.time_ns));
		}
		json_object_array_add(stores, one);
	}
	json_object_object_add(object, "stores", stores);
	if (record->part_count > 0)
		json_object_object_add(object, "parts", parts_json(record));
	return object;
}

static int write_file(const char *path, const char *text)
{
	auto_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	size_t length = strlen(text), written = 0;

	if (fd < 0)
		return -errno;
	while (written < length) {
		ssize_t count = write(fd, text + written, length - written);

		if (count < 0 && errno != EINTR)
			return -errno;
		if (count > 0)
			written += (size_t)count;
	}
	return fsync(fd) != 0 ? -errno : 0;
}

static int sync_directory(const char *directory)
{
	auto_close int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	return fsync(fd) != 0 ? -errno : 0;
}

int record_save(const struct record *record)
{
	char path[PATH_MAX], new_path[PATH_MAX];
	char uuid[UUID_TEXT_BYTES];
	struct json_object *object;
	int error;

	uuid_text(&record->volume_uuid, uuid);
	if (snprintf(path, sizeof(path), "%s/%s.json", record->directory, uuid) >= (int)sizeof(path) ||
	    snprintf(new_path, sizeof(new_path), "%s/%s.json.new", record->directory, uuid) >= (int)sizeof(new_path))
		return -ENAMETOOLONG;
	object = to_json(record);
	error = write_file(new_path, json_object_to_json_string_ext(object, JSON_C_TO_STRING_PRETTY));
	json_object_put(object);
	if (error == 0 && rename(new_path, path) != 0)
		error = -errno;
	if (error == 0)
		error = sync_directory(record->directory);
	return error;
}

void record_disown(const struct record *record)
{
	struct dirent **entries = NULL;
	int count = scandir(record->directory, &entries, is_record, alphasort);

	for (int i = 0; i < count; i++) {
		struct record *other = NULL;

		if (load(record->directory, entries[i]->d_name, &other) == 0 && other != NULL &&
		    strcmp(other->origin_path, record->origin_path) == 0 &&
		    !uuid_equal(&other->volume_uuid, &record->volume_uuid)) {
			other->origin_path[0] = '\0';
			if (record_save(other) != 0)
				log_warning("record %s/%s cannot be written", record->directory, entries[i]->d_name);
		}
		record_destroy(other);
		free(entries[i]);
	}
	free(entries);
}
