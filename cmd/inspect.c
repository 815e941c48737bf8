/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rowsnap inspect: what is in a store. Offline, read-only. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/cmd.h"
#include "core/survey.h"
#include "io/probe.h"

struct arguments {
	char **stores;
	size_t count;
	bool areas, exceptions, json;
};

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

static void add_boolean(struct json_object *object, const char *key, bool value)
{
	json_object_object_add(object, key, json_object_new_boolean(value));
}

/* Both copies, as they were found. */
static struct json_object *copies_json(const struct store *store)
{
	static const uint64_t offsets[SUPERBLOCK_COPIES] = { SUPERBLOCK_OFFSET_0, SUPERBLOCK_OFFSET_1 };
	struct json_object *array = json_object_new_array();

	for (unsigned i = 0; i < SUPERBLOCK_COPIES; i++) {
		struct json_object *one = json_object_new_object();
		int error = store->copy_error[i];

		add_number(one, "offset", offsets[i]);
		add_boolean(one, "good", error == 0);
		if (error == 0)
			add_number(one, "generation", store->copy_generation[i]);
		else
			json_object_object_add(one, "generation", NULL);
		add_text(one, "why", error == 0	       ? NULL :
				     error == -ENODATA ? "no superblock" :
				     error == -EBADMSG ? "its checksum does not hold" :
				     error == -EINVAL  ? "a field is out of its range" :
							 strerror(-error));
		json_object_array_add(array, one);
	}
	return array;
}

static struct json_object *fingerprint_json(const struct fingerprint *fingerprint)
{
	struct json_object *array = json_object_new_array();
	char text[24];

	for (unsigned i = 0; i < FINGERPRINT_SECTORS; i++) {
		(void)snprintf(text, sizeof(text), "%016" PRIx64, fingerprint->sector[i]);
		json_object_array_add(array, json_object_new_string(text));
	}
	return array;
}

static void add_mark(struct json_object *json, const char *reason_key, const char *since_key,
		     const struct broken_mark *mark)
{
	add_text(json, reason_key, mark->reason == BROKEN_NOT ? NULL : broken_reason_text(mark->reason));
	add_time(json, since_key, mark->time_ns);
}

static const char *role_text(enum store_role role)
{
	switch (role) {
	case ROLE_SNAPSHOT:
		return "snapshot";
	case ROLE_FORK:
		return "fork";
	case ROLE_PART:
		return "part";
	}
	return "unknown";
}

/* What is joined to it; or, of a part, what it is joined to. */
static void add_parts(struct json_object *json, const struct store *store)
{
	const struct superblock *superblock = &store->superblock;
	struct json_object *array = json_object_new_array();

	if (superblock->role == ROLE_PART) {
		add_uuid(json, "main_uuid", &superblock->main_uuid);
		add_number(json, "part_index", superblock->part_index);
	}
	for (uint32_t i = 0; i < superblock->part_count; i++) {
		const struct part *part = &superblock->parts[i];
		struct json_object *one = json_object_new_object();

		add_uuid(one, "uuid", &part->uuid);
		add_text(one, "store", store_part(store, i + 1) == NULL ? NULL : store_part(store, i + 1)->path);
		if (part->first_area == PART_AREA_NONE)
			json_object_object_add(one, "first_area", NULL);
		else
			add_number(one, "first_area", part->first_area);
		add_number(one, "skipped_slots", part->skipped_slots);
		json_object_array_add(array, one);
	}
	json_object_object_add(json, "parts", array);
}

static struct json_object *superblock_json(const struct store *store)
{
	const struct superblock *superblock = &store->superblock;
	struct json_object *json = json_object_new_object();

	add_text(json, "store", store->path);
	json_object_object_add(json, "superblocks", copies_json(store));
	add_uuid(json, "uuid", &superblock->store_uuid);
	add_uuid(json, "volume_uuid", &superblock->volume_uuid);
	add_uuid(json, "predecessor_uuid", &superblock->predecessor_uuid);
	add_uuid(json, "successor_uuid", &superblock->successor_uuid);
	add_number(json, "sequence", superblock->sequence);
	add_text(json, "role", role_text(superblock->role));
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
	add_boolean(json, "clean", superblock->clean);
	add_number(json, "durable_slots", superblock->durable_slots);
	if (superblock->clean)
		add_number(json, "clean_log_slots", superblock->log_slots);
	else
		json_object_object_add(json, "clean_log_slots", NULL);
	add_uuid(json, "fold_source_uuid", &superblock->fold_source_uuid);
	add_uuid(json, "merge_target_uuid", &superblock->merge_target_uuid);
	add_number(json, "fold_base_slots", superblock->fold_base_slots);
	add_mark(json, "broken_reason", "broken_since", &superblock->broken);
	add_uuid(json, "witness_uuid", &superblock->witness_uuid);
	add_mark(json, "witness_reason", "witness_since", &superblock->witness);
	json_object_object_add(json, "fingerprint", fingerprint_json(&superblock->fingerprint));
	add_parts(json, store);
	return json;
}

/* ---- the log ---- */

static void add_counts(struct json_object *json, const struct survey_counts *counts)
{
	add_number(json, "data_entries", counts->data);
	add_number(json, "zero_runs", counts->zero_runs);
	add_number(json, "zero_blocks", counts->zero_blocks);
	add_number(json, "lost_blocks", counts->lost);
	add_number(json, "void_slots", counts->voids);
	add_number(json, "fingerprints", counts->fingerprints);
	add_number(json, "missing_entries", counts->missing);
}

static struct json_object *extents_json(const struct store *store)
{
	struct json_object *json = json_object_new_object(), *array = json_object_new_array();
	struct survey_extents extents;

	survey_extents(store, &extents);
	add_number(json, "extents", extents.extents);
	add_number(json, "blocks", extents.blocks);
	add_number(json, "longest", extents.longest);
	for (unsigned i = 0; i < SURVEY_LENGTHS; i++) {
		struct json_object *one;

		if (extents.of_length[i] == 0)
			continue;
		one = json_object_new_object();
		add_number(one, "from", UINT64_C(1) << i);
		add_number(one, "to", (UINT64_C(2) << i) - 1);
		add_number(one, "extents", extents.of_length[i]);
		json_object_array_add(array, one);
	}
	json_object_object_add(json, "lengths", array);
	return json;
}

static void add_survey(struct json_object *json, const struct store *store, const struct survey *survey,
		       const struct recovery *recovery)
{
	add_number(json, "log_slots", store->end.index);
	add_number(json, "slots_cut", recovery->slots_cut);
	add_boolean(json, "metadata_lost", recovery->lost_metadata);
	add_number(json, "areas", survey->areas);
	add_number(json, "used_bytes", store_used_bytes(store));
	add_number(json, "blocks", store->map == NULL ? 0 : map_block_count(store->map));
	add_counts(json, &survey->total);
	json_object_object_add(json, "extent_lengths", extents_json(store));
}

/* ---- lists: lines, or objects ---- */

struct lists {
	const struct store *store;
	bool print;                                  /* lines */
	struct json_object *exceptions, *area_list;  /* or objects; NULL: not asked for */
};

static void show_entry(slot_t slot, const struct entry *entry, void *context)
{
	const struct lists *lists = context;
	struct json_object *one;

	if (lists->print) {
		(void)printf("  slot %" PRIu32 " %s block %" PRIu64 " count %" PRIu32 " checksum %08" PRIx32 "\n", slot.index,
			     entry_type_text(entry->type), entry->block, entry->count, entry->data_checksum);
		return;
	}
	one = json_object_new_object();
	add_number(one, "slot", slot.index);
	add_text(one, "type", entry_type_text(entry->type));
	add_number(one, "block", entry->block);
	add_number(one, "count", entry->count);
	add_number(one, "checksum", entry->data_checksum);
	json_object_array_add(lists->exceptions, one);
}

static struct json_object *header_json(const struct survey_area *area, unsigned copy)
{
	struct json_object *one;

	if (!area->header_valid[copy])
		return NULL;
	one = json_object_new_object();
	add_number(one, "write_count", area->headers[copy].write_count);
	add_number(one, "durable_slots", area->headers[copy].durable_slots);
	add_number(one, "entries", area->headers[copy].entry_count);
	return one;
}

static void print_area(const struct survey_area *area, uint64_t offset, uint32_t part)
{
	const struct survey_counts *counts = &area->counts;

	(void)printf("  area %" PRIu32, area->area);
	if (part != 0)
		(void)printf(" part %" PRIu32, part);
	(void)printf(" offset %" PRIu64 " data %" PRIu64 " zero runs %" PRIu64 " lost %" PRIu64
		     " void %" PRIu64 " fingerprints %" PRIu64 " missing %" PRIu64 " writes",
		     offset, counts->data, counts->zero_runs, counts->lost, counts->voids,
		     counts->fingerprints, counts->missing);
	for (unsigned c = 0; c < 2; c++) {
		if (area->header_valid[c])
			(void)printf(" %" PRIu64, area->headers[c].write_count);
		else
			(void)printf(" -");
	}
	(void)putchar('\n');
}

static void show_area(const struct survey_area *area, void *context)
{
	const struct lists *lists = context;
	uint64_t offset = store_area_place(lists->store, area->area).offset;
	uint32_t part = store_area_part(lists->store, area->area);
	struct json_object *one, *copies;

	if (lists->print) {
		print_area(area, offset, part);
		return;
	}
	one = json_object_new_object();
	copies = json_object_new_array();
	add_number(one, "area", area->area);
	add_number(one, "part", part);
	add_number(one, "offset", offset);
	add_counts(one, &area->counts);
	for (unsigned c = 0; c < 2; c++)
		json_object_array_add(copies, header_json(area, c));
	json_object_object_add(one, "copies", copies);
	json_object_array_add(lists->area_list, one);
}

/* ---- text ---- */

static void print_copies(struct json_object *copies)
{
	for (size_t i = 0; i < json_object_array_length(copies); i++) {
		struct json_object *one = json_object_array_get_idx(copies, i);

		(void)printf("  superblock at %-8" PRIu64 " ", cmd_json_number(one, "offset"));
		if (cmd_json_get(one, "generation") != NULL)
			(void)printf("generation %" PRIu64 "\n", cmd_json_number(one, "generation"));
		else
			(void)printf("not good: %s\n", cmd_json_text(one, "why"));
	}
}

static void print_extents(struct json_object *extents)
{
	struct json_object *lengths = cmd_json_get(extents, "lengths");

	(void)printf("  %-22s %" PRIu64 " of %" PRIu64 " blocks, the longest has %" PRIu64 "\n", "extents",
		     cmd_json_number(extents, "extents"), cmd_json_number(extents, "blocks"),
		     cmd_json_number(extents, "longest"));
	for (size_t i = 0; i < json_object_array_length(lengths); i++) {
		struct json_object *one = json_object_array_get_idx(lengths, i);

		(void)printf("    %10" PRIu64 " to %10" PRIu64 " blocks: %" PRIu64 "\n", cmd_json_number(one, "from"),
			     cmd_json_number(one, "to"), cmd_json_number(one, "extents"));
	}
}

static void print_fields(struct json_object *json)
{
	json_object_object_foreach(json, key, value)
	{
		if (json_object_is_type(value, json_type_object))
			print_extents(value);
		else if (strcmp(key, "superblocks") == 0)
			print_copies(value);
		else if (json_object_is_type(value, json_type_array))
			(void)printf("  %-22s %s\n", key,
				     json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN));
		else
			(void)printf("  %-22s %s\n", key, value == NULL ? "-" : json_object_get_string(value));
	}
}

/* ---- the command ---- */

static int survey(struct store *store, struct survey *survey)
{
	int error = survey_store(store, survey);

	if (error == 0)
		return EXIT_DONE;
	return cmd_fail("inspect", store->path, "area %" PRIu32 " cannot be read: %s", survey->failed_area,
			strerror(-error));
}

/* Lines come after the summary, so the store is gone through once more for them. */
static int inspect_store(const struct arguments *arguments, struct store *store, struct json_object **out)
{
	struct lists lists = { .store = store };
	struct survey counting = { .context = &lists }, listing = { .context = &lists };
	struct survey *lister = arguments->json ? &counting : &listing;
	struct recovery recovery = { .writable = false };
	int error = 0, code;

	lists.exceptions = arguments->exceptions && arguments->json ? json_object_new_array() : NULL;
	lists.area_list = arguments->areas && arguments->json ? json_object_new_array() : NULL;
	lists.print = !arguments->json;
	lister->entry = arguments->exceptions ? show_entry : NULL;
	lister->area = arguments->areas ? show_area : NULL;
	*out = superblock_json(store);
	if (store->superblock.state != STATE_EMPTY && store->superblock.role != ROLE_PART)
		error = store_recover(store, &recovery);
	if (error != 0)
		code = cmd_fail("inspect", store->path, "its log cannot be read back: %s", strerror(-error));
	else
		code = survey(store, &counting);
	add_survey(*out, store, &counting, &recovery);
	map_destroy(store->map);
	store->map = NULL;
	if (lists.area_list != NULL)
		json_object_object_add(*out, "area_list", lists.area_list);
	if (lists.exceptions != NULL)
		json_object_object_add(*out, "exceptions", lists.exceptions);
	if (code != EXIT_DONE || arguments->json)
		return code;
	(void)printf("%s\n", store->path);
	print_fields(*out);
	return arguments->areas || arguments->exceptions ? survey(store, &listing) : EXIT_DONE;
}

static int open_store(struct disk_host *host, const char *path, struct store **store)
{
	char text[PROBE_TEXT_BYTES];
	const char *why = NULL;
	int error = store_open(host, path, DISK_OPEN_READ_ONLY | DISK_OPEN_LOCK, store);

	if (error == -EBUSY && probe_busy(path, text) == 1)
		return cmd_fail("inspect", path, "is in use: %s", text);
	if (error == -ENOTBLK)
		return cmd_fail("inspect", path, "is neither a block device nor a regular file");
	if (error != 0)
		return cmd_fail("inspect", path, "%s", strerror(-error));
	error = store_load_wait(*store, &why);
	if (error == 0)
		return EXIT_DONE;
	store_close(*store);
	*store = NULL;
	return cmd_fail("inspect", path, "%s", store_load_text(error, why));
}

/* `own` has those that no other has as a part; `all`, all that could be opened. NULL: not, or not ours. */
static int inspect_all(const struct arguments *arguments, struct disk_host *host, struct store **own, struct store **all,
		       struct json_object *array)
{
	struct store *main = NULL;
	uint32_t part = 0;
	char text[STORE_TEXT_BYTES];
	int code = EXIT_DONE, error;

	for (size_t i = 0; i < arguments->count; i++) {
		if (open_store(host, arguments->stores[i], &own[i]) != EXIT_DONE)
			code = EXIT_FAILED;
		all[i] = own[i];
	}
	error = stores_join(own, arguments->count, &main, &part);
	for (size_t i = 0; i < arguments->count; i++) {
		struct json_object *json = NULL;

		if (all[i] == NULL)
			continue;
		if (store_missing_part(all[i]) != 0 || (error != 0 && all[i] == main)) {
			part = all[i] == main ? part : store_missing_part(all[i]);
			stores_join_text(all[i] == main ? error : -ENOENT, all[i], part, text);
			code = cmd_fail("inspect", all[i]->path, "%s", text);
		} else if (inspect_store(arguments, all[i], &json) != EXIT_DONE) {
			code = EXIT_FAILED;
		}
		if (json != NULL)
			json_object_array_add(array, json);
	}
	return code;
}

static int inspect(const struct arguments *arguments)
{
	struct json_object *all = json_object_new_object(), *array = json_object_new_array();
	struct store **stores = calloc(arguments->count * 2, sizeof(struct store *));
	struct disk_host *host = NULL;
	int code, error = disk_host_create(64, &host);

	json_object_object_add(all, "stores", array);
	if (error == 0 && stores == NULL)
		error = -ENOMEM;
	if (error == 0)
		code = inspect_all(arguments, host, stores, stores + arguments->count, array);
	else
		code = cmd_fail("inspect", "", "%s", strerror(-error));
	for (size_t i = 0; stores != NULL && i < arguments->count; i++)
		store_close(stores[i]);
	free(stores);
	if (host != NULL)
		disk_host_destroy(host);
	if (arguments->json && error == 0)
		cmd_print_json(all);
	else
		json_object_put(all);
	return code;
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct arguments *arguments = state->input;

	switch (key) {
	case LONG_ONLY('a'):
		arguments->areas = true;
		return 0;
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
		{ "areas", LONG_ONLY('a'), NULL, 0, "also a line for each area", 0 },
		{ "exceptions", LONG_ONLY('e'), NULL, 0, "also a line for each exception", 0 },
		{ "json", LONG_ONLY('j'), NULL, 0, "print one JSON object", 0 },
		{ 0 },
	};
	static const struct argp argp = { options, parse, "STORE...",
					  "Shows what is in stores that are not being served: both superblock copies, "
					  "links, the log, how long its extents are.",
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
