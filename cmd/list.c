/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rowsnap list: the chain of a served volume, or of stores. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/cmd.h"
#include "core/store.h"
#include "io/probe.h"

struct arguments {
	char **names;
	size_t count;
	bool json;
};

static int list_volume(const struct arguments *arguments)
{
	struct json_object *list = NULL;
	int code = cmd_call("list", arguments->names[0], cmd_request("list"), NULL, NULL, NULL, &list);

	if (code != EXIT_DONE)
		return code;
	json_object_object_del(list, "block_bytes");
	json_object_object_del(list, "fuse");
	if (arguments->json) {
		cmd_print_json(list);
		return EXIT_DONE;
	}
	cmd_print_list(list);
	json_object_put(list);
	return EXIT_DONE;
}

/* ---- offline ---- */

static const char *offline_state(const struct superblock *superblock)
{
	if (superblock->broken.reason != BROKEN_NOT)
		return "broken";
	return store_state_text(superblock->state);
}

static int compare_sequence(const void *a, const void *b)
{
	const struct store *const *left = a, *const *right = b;
	uint64_t first = (*left)->superblock.sequence, second = (*right)->superblock.sequence;

	return first == second ? 0 : first < second ? -1 : 1;
}

static int report_store(struct store *store, struct snapshot_report *report)
{
	const struct superblock *superblock = &store->superblock;
	struct recovery recovery = { .writable = false };

	*report = (struct snapshot_report){ 0 };
	memcpy(report->name, superblock->name, sizeof(report->name));
	report->uuid = superblock->store_uuid;
	report->created_ns = superblock->created_ns;
	report->state = offline_state(superblock);
	report->broken = superblock->broken.reason != BROKEN_NOT;
	report->broken_reason = broken_reason_text(superblock->broken.reason);
	report->broken_ns = superblock->broken.time_ns;
	if (superblock->state != STATE_EMPTY) {
		int error = store_recover(store, &recovery);

		if (error != 0)
			return cmd_fail("list", store->path, "its log cannot be read back: %s", strerror(-error));
		report->blocks = map_block_count(store->map);
	}
	snapshot_report_sizes(report, store);
	return EXIT_DONE;
}

/* Parts go to their stores, and out of the array. Returns how many stores are left, or 0 when it has printed why not. */
static size_t join_parts(struct store **stores, size_t count)
{
	struct store *main = NULL;
	uint32_t part = 0;
	size_t left = 0;
	char text[STORE_TEXT_BYTES];
	int error = stores_join(stores, count, &main, &part);

	if (error != 0) {
		stores_join_text(error, main, part, text);
		(void)cmd_fail("list", main->path, "%s", text);
		return 0;
	}
	for (size_t i = 0; i < count; i++) {
		struct store *store = stores[i];

		if (store == NULL)
			continue;
		stores[i] = NULL;
		stores[left++] = store;
	}
	for (size_t i = 0; i < left; i++) {
		if (stores[i]->superblock.role != ROLE_PART)
			continue;
		(void)cmd_fail("list", stores[i]->path, "is a part of the store of snapshot %s, which was not given",
			       stores[i]->superblock.name);
		return 0;
	}
	return left;
}

static int open_stores(const struct arguments *arguments, struct disk_host *host, struct store **stores)
{
	for (size_t i = 0; i < arguments->count; i++) {
		const char *path = arguments->names[i], *why = NULL;
		char text[PROBE_TEXT_BYTES];
		int error = store_open(host, path, DISK_OPEN_READ_ONLY | DISK_OPEN_LOCK, &stores[i]);

		if (error == -EBUSY && probe_busy(path, text) == 1)
			return cmd_fail("list", path, "is in use: %s (list its volume instead)", text);
		if (error == -ENOTBLK)
			return cmd_fail("list", path, "is neither a block device nor a regular file");
		if (error != 0)
			return cmd_fail("list", path, "%s", strerror(-error));
		error = store_load_wait(stores[i], &why);
		if (error != 0)
			return cmd_fail("list", path, "%s", store_load_text(error, why));
		if (!uuid_equal(&stores[i]->superblock.volume_uuid, &stores[0]->superblock.volume_uuid))
			return cmd_fail("list", path, "belongs to another volume than %s", arguments->names[0]);
	}
	return EXIT_DONE;
}

static int list_stores_with(const struct arguments *arguments, struct disk_host *host, struct store **stores,
			    struct snapshot_report *reports)
{
	struct volume_report volume = { 0 };
	struct json_object *list;
	int code = open_stores(arguments, host, stores);
	size_t count = code == EXIT_DONE ? join_parts(stores, arguments->count) : 0;

	if (count == 0)
		return EXIT_FAILED;
	qsort(stores, count, sizeof(struct store *), compare_sequence);
	for (size_t i = 0; i < count; i++) {
		code = report_store(stores[i], &reports[i]);
		if (code != EXIT_DONE)
			return code;
	}
	volume.uuid = stores[0]->superblock.volume_uuid;
	volume.origin_bytes = stores[0]->superblock.origin_bytes;
	list = cmd_list_json(&volume, reports, count);
	if (arguments->json) {
		cmd_print_json(list);
		return EXIT_DONE;
	}
	cmd_print_list(list);
	json_object_put(list);
	return EXIT_DONE;
}

static int list_stores(const struct arguments *arguments)
{
	struct store **stores = calloc(arguments->count, sizeof(struct store *));
	struct snapshot_report *reports = calloc(arguments->count, sizeof(*reports));
	struct disk_host *host = NULL;
	int code, error = disk_host_create(64, &host);

	if (stores == NULL || reports == NULL || error != 0)
		code = cmd_fail("list", "", "%s", strerror(error != 0 ? -error : ENOMEM));
	else
		code = list_stores_with(arguments, host, stores, reports);
	for (size_t i = 0; stores != NULL && i < arguments->count; i++)
		store_close(stores[i]);
	if (error == 0)
		disk_host_destroy(host);
	free(stores);
	free(reports);
	return code;
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct arguments *arguments = state->input;

	switch (key) {
	case LONG_ONLY('j'):
		arguments->json = true;
		return 0;
	case ARGP_KEY_ARG:
		arguments->names[arguments->count++] = argument;
		return 0;
	case ARGP_KEY_END:
		if (arguments->count == 0)
			argp_error(state, "a VOLUME, or STOREs, must be given");
		else if (arguments->count > 1 && !cmd_is_store_path(arguments->names[0]))
			argp_error(state, "one VOLUME only (a store is named by a path with a slash)");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int cmd_list(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "json", LONG_ONLY('j'), NULL, 0, "print one JSON object", 0 },
		{ 0 },
	};
	static const struct argp argp = { options, parse, "VOLUME\nSTORE...",
					  "Shows the snapshots of a served volume, or those that stores hold (a store is named by a "
					  "path with a slash), oldest first.",
					  NULL, NULL, NULL };
	struct arguments arguments = { .names = calloc((size_t)argc, sizeof(char *)) };
	int code;

	if (arguments.names == NULL)
		return cmd_fail("list", "", "out of memory");
	if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0 || arguments.count == 0)
		code = EXIT_USAGE;
	else
		code = cmd_is_store_path(arguments.names[0]) ? list_stores(&arguments) : list_volume(&arguments);
	free(arguments.names);
	return cmd_finish_output("list", code);
}
