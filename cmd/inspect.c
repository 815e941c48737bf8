/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rowsnap inspect: what is in a store. Offline, read-only. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/cmd.h"
#include "core/store.h"
#include "format/area.h"
#include "io/probe.h"

struct arguments {
	char **stores;
	size_t count;
	bool exceptions, json;
};

/* ---- one store's entries, from its metadata as it is on disk ---- */

struct census {
	uint64_t areas, data, zero_runs, zero_blocks, lost, voids, fingerprints;
};

struct walk {
	struct store *store;
	struct census census;
	bool print;                /* a line for each exception */
	struct json_object *array; /* or an object; NULL: not asked for */
	uint8_t meta[2][AREA_META_BYTES] __attribute__((aligned(4096)));
};

static void count_entry(struct census *census, const struct entry *entry)
{
	switch (entry->type) {
	case ENTRY_DATA:
		census->data++;
		return;
	case ENTRY_ZERO:
		census->zero_runs++;
		census->zero_blocks += entry->count;
		return;
	case ENTRY_LOST:
		census->lost++;
		return;
	case ENTRY_VOID:
		census->voids++;
		return;
	case ENTRY_FINGERPRINT:
		census->fingerprints++;
		return;
	}
}

static void show_entry(const struct walk *walk, slot_t slot, const struct entry *entry)
{
	struct json_object *one;

	if (walk->print && walk->array == NULL)
		(void)printf("  slot %" PRIu32 " %s block %" PRIu64 " count %" PRIu32 " checksum %08" PRIx32 "\n", slot.index,
			     entry_type_text(entry->type), entry->block, entry->count, entry->data_checksum);
	if (walk->array == NULL)
		return;
	one = json_object_new_object();
	json_object_object_add(one, "slot", json_object_new_uint64(slot.index));
	json_object_object_add(one, "type", json_object_new_string(entry_type_text(entry->type)));
	json_object_object_add(one, "block", json_object_new_uint64(entry->block));
	json_object_object_add(one, "count", json_object_new_uint64(entry->count));
	json_object_object_add(one, "checksum", json_object_new_uint64(entry->data_checksum));
	json_object_array_add(walk->array, one);
}

/* The entry from the newer copy where it holds there, else from the other. */
static bool read_entry(const struct walk *walk, uint32_t area, uint32_t index, struct entry *entry)
{
	const struct superblock *superblock = &walk->store->superblock;
	struct area_header headers[2];
	unsigned newer = 0;
	bool valid[2];

	for (unsigned c = 0; c < 2; c++)
		valid[c] = area_header_decode(walk->meta[c], walk->store->seed, area, superblock->geometry.slots_per_area,
					      &headers[c]) == 0;
	if (valid[1] && (!valid[0] || headers[1].write_count > headers[0].write_count))
		newer = 1;
	for (unsigned c = 0; c < 2; c++)
		if (entry_decode(walk->meta[c == 0 ? newer : 1 - newer], walk->store->seed, area, index,
				 superblock_block_count(superblock), entry) == 0)
			return true;
	return false;
}

static int walk_entries(struct walk *walk, struct disk_host *host)
{
	const struct geometry *geometry = &walk->store->superblock.geometry;
	uint32_t end = walk->store->end.index, per_area = geometry->slots_per_area;

	for (uint32_t slot = 0; slot < end; slot++) {
		uint32_t area = slot / per_area;
		struct entry entry;

		for (unsigned c = 0; c < 2 && slot % per_area == 0; c++) {
			int error = disk_read_wait(host, walk->store->disk, walk->meta[c], AREA_META_BYTES,
						   geometry_meta_offset(geometry, area, c));

			if (error != 0)
				return cmd_fail("inspect", walk->store->path, "area %" PRIu32 " cannot be read: %s", area,
						strerror(-error));
		}
		walk->census.areas = (uint64_t)area + 1;
		if (!read_entry(walk, area, slot % per_area, &entry))
			continue;
		count_entry(&walk->census, &entry);
		show_entry(walk, SLOT(slot), &entry);
	}
	return EXIT_DONE;
}

/* ---- the superblock ---- */

static void add_text(struct json_object *object, const char *key, const char *text)
{
	json_object_object_add(object, key, text == NULL ? NULL : json_object_new_string(text));
}

static void add_number(struct json_object *object, const char *key, uint64_t number)
{
	json_object_object_add(object, key, json_object_new_uint64(number));
}

static void add_uuid(struct json_object *object, const char *key, const uuid128_t *uuid)
{
	char text[UUID_TEXT_BYTES];

	uuid_text(uuid, text);
	add_text(object, key, uuid_is_nil(uuid) ? NULL : text);
}

static void add_time(struct json_object *object, const char *key, uint64_t time_ns)
{
	char text[TIME_TEXT_BYTES];

	cmd_time_text(time_ns, text);
	add_text(object, key, time_ns == 0 ? NULL : text);
}

static struct json_object *superblock_json(const struct store *store)
{
	const struct superblock *superblock = &store->superblock;
	struct json_object *json = json_object_new_object();

	add_text(json, "store", store->path);
	add_uuid(json, "uuid", &superblock->store_uuid);
	add_uuid(json, "volume_uuid", &superblock->volume_uuid);
	add_uuid(json, "predecessor_uuid", &superblock->predecessor_uuid);
	add_uuid(json, "successor_uuid", &superblock->successor_uuid);
	add_number(json, "sequence", superblock->sequence);
	add_text(json, "role", superblock->role == ROLE_FORK ? "fork" : "snapshot");
	add_text(json, "state", store_state_text(superblock->state));
	add_text(json, "name", superblock->name);
	add_time(json, "created", superblock->created_ns);
	add_time(json, "sealed", superblock->sealed_ns);
	add_number(json, "generation", superblock->generation);
	add_number(json, "superblock_copies_good", store->degraded ? 1 : 2);
	add_number(json, "compat", superblock->compat);
	add_number(json, "ro_compat", superblock->ro_compat);
	add_number(json, "incompat", superblock->incompat);
	add_number(json, "origin_bytes", superblock->origin_bytes);
	add_number(json, "block_bytes", superblock->geometry.block_bytes);
	add_number(json, "slots_per_area", superblock->geometry.slots_per_area);
	add_number(json, "first_area_offset", superblock->geometry.first_area_offset);
	add_number(json, "area_bytes", geometry_area_bytes(&superblock->geometry));
	if (superblock->limit_bytes == 0)
		json_object_object_add(json, "limit_bytes", NULL);
	else
		add_number(json, "limit_bytes", superblock->limit_bytes);
	json_object_object_add(json, "clean", json_object_new_boolean(superblock->clean));
	add_number(json, "durable_slots", superblock->durable_slots);
	add_uuid(json, "fold_source_uuid", &superblock->fold_source_uuid);
	add_uuid(json, "merge_target_uuid", &superblock->merge_target_uuid);
	add_text(json, "broken_reason",
		 superblock->broken.reason == BROKEN_NOT ? NULL : broken_reason_text(superblock->broken.reason));
	add_time(json, "broken_since", superblock->broken.time_ns);
	add_uuid(json, "witness_uuid", &superblock->witness_uuid);
	return json;
}

static void add_census(struct json_object *json, const struct store *store, const struct walk *walk,
		       const struct recovery *recovery)
{
	const struct census *census = &walk->census;

	add_number(json, "log_slots", store->end.index);
	add_number(json, "slots_cut", recovery->slots_cut);
	json_object_object_add(json, "metadata_lost", json_object_new_boolean(recovery->lost_metadata));
	add_number(json, "areas", census->areas);
	add_number(json, "used_bytes", store_used_bytes(store));
	add_number(json, "blocks", store->map == NULL ? 0 : map_block_count(store->map));
	add_number(json, "data_entries", census->data);
	add_number(json, "zero_runs", census->zero_runs);
	add_number(json, "zero_blocks", census->zero_blocks);
	add_number(json, "lost_blocks", census->lost);
	add_number(json, "void_slots", census->voids);
	add_number(json, "fingerprints", census->fingerprints);
}

static void print_fields(struct json_object *json)
{
	json_object_object_foreach(json, key, value)
	{
		if (json_object_is_type(value, json_type_array))
			continue;
		(void)printf("  %-22s %s\n", key, value == NULL ? "-" : json_object_get_string(value));
	}
}

/* ---- the command ---- */

static int inspect_store(const struct arguments *arguments, struct disk_host *host, struct store *store,
			 struct json_object **out)
{
	struct walk *walk = aligned_alloc(AREA_META_BYTES, (sizeof(*walk) + AREA_META_BYTES - 1) / AREA_META_BYTES *
								  AREA_META_BYTES);
	struct recovery recovery = { .writable = false };
	int error, code = EXIT_DONE;

	if (walk == NULL)
		return cmd_fail("inspect", store->path, "out of memory");
	memset(walk, 0, sizeof(*walk));
	walk->store = store;
	walk->array = arguments->exceptions && arguments->json ? json_object_new_array() : NULL;
	*out = superblock_json(store);
	if (store->superblock.state != STATE_EMPTY) {
		error = store_recover(store, &recovery);
		if (error != 0)
			code = cmd_fail("inspect", store->path, "its log cannot be read back: %s", strerror(-error));
	}
	if (code == EXIT_DONE)
		code = walk_entries(walk, host);
	add_census(*out, store, walk, &recovery);
	if (walk->array != NULL)
		json_object_object_add(*out, "exceptions", walk->array);
	if (code == EXIT_DONE && !arguments->json) {
		(void)printf("%s\n", store->path);
		print_fields(*out);
	}
	walk->print = arguments->exceptions && !arguments->json;
	walk->array = NULL;
	if (code == EXIT_DONE && walk->print)
		code = walk_entries(walk, host);
	free(walk);
	return code;
}

static int open_and_inspect(const struct arguments *arguments, struct disk_host *host, const char *path,
			    struct json_object **json)
{
	char text[PROBE_TEXT_BYTES];
	struct store *store;
	const char *why = NULL;
	int code, error = store_open(host, path, DISK_OPEN_READ_ONLY | DISK_OPEN_LOCK, &store);

	if (error == -EBUSY && probe_busy(path, text) == 1)
		return cmd_fail("inspect", path, "is in use: %s", text);
	if (error == -ENOTBLK)
		return cmd_fail("inspect", path, "is neither a block device nor a regular file");
	if (error != 0)
		return cmd_fail("inspect", path, "%s", strerror(-error));
	error = store_load_wait(store, &why);
	if (error == 0)
		code = inspect_store(arguments, host, store, json);
	else
		code = cmd_fail("inspect", path, "%s", store_load_text(error, why));
	store_close(store);
	return code;
}

static int inspect(const struct arguments *arguments)
{
	struct json_object *all = json_object_new_object(), *array = json_object_new_array();
	struct disk_host *host;
	int code = EXIT_DONE, error = disk_host_create(64, &host);

	json_object_object_add(all, "stores", array);
	if (error != 0) {
		json_object_put(all);
		return cmd_fail("inspect", "", "%s", strerror(-error));
	}
	for (size_t i = 0; i < arguments->count; i++) {
		struct json_object *json = NULL;

		if (open_and_inspect(arguments, host, arguments->stores[i], &json) != EXIT_DONE)
			code = EXIT_FAILED;
		if (json != NULL)
			json_object_array_add(array, json);
	}
	disk_host_destroy(host);
	if (arguments->json)
		cmd_print_json(all);
	else
		json_object_put(all);
	return code;
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct arguments *arguments = state->input;

	switch (key) {
	case LONG_ONLY('e'):
		arguments->exceptions = true;
		return 0;
	case LONG_ONLY('j'):
		arguments->json = true;
		return 0;
	case ARGP_KEY_ARG:
		arguments->stores[arguments->count++] = argument;
		return 0;
	case ARGP_KEY_END:
		if (arguments->count == 0)
			argp_error(state, "no STORE given");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int cmd_inspect(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "exceptions", LONG_ONLY('e'), NULL, 0, "also a line for each exception", 0 },
		{ "json", LONG_ONLY('j'), NULL, 0, "print one JSON object", 0 },
		{ 0 },
	};
	static const struct argp argp = { options, parse, "STORE...",
					  "Shows what is in stores that are not being served: superblock, links, areas, counts.",
					  NULL, NULL, NULL };
	struct arguments arguments = { .stores = calloc((size_t)argc, sizeof(char *)) };
	int code;

	if (arguments.stores == NULL)
		return cmd_fail("inspect", "", "out of memory");
	if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0 || arguments.count == 0)
		code = EXIT_USAGE;
	else
		code = inspect(&arguments);
	free(arguments.stores);
	return cmd_finish_output("inspect", code);
}
