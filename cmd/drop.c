/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rowsnap drop: drops a snapshot of a served volume, or, offline, the oldest store of one that is not served. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/cmd.h"
#include "core/store.h"
#include "io/cleanup.h"
#include "io/probe.h"

struct arguments {
	char **names;
	size_t count;
	bool background, force, forget_older, json;
	enum cmd_progress progress;
};

/* ---- offline ---- */

static int open_for_drop(struct disk_host *host, const char *path, struct store **opened)
{
	char text[PROBE_TEXT_BYTES];
	const char *why = NULL;
	struct store *store = NULL;
	int error = store_open(host, path, DISK_OPEN_LOCK, &store);

	if (error == -EBUSY && probe_busy(path, text) == 1)
		return cmd_fail("drop", path, "is in use: %s", text);
	if (error == -EBUSY)
		return cmd_fail("drop", path, "is in use, or was given twice");
	if (error == -ENOTBLK)
		return cmd_fail("drop", path, "is neither a block device nor a regular file");
	if (error != 0)
		return cmd_fail("drop", path, "%s", strerror(-error));
	*opened = store;
	error = store_load_wait(store, &why);
	if (error == 0 && store->superblock.state != STATE_EMPTY)
		return EXIT_DONE;
	if (error == 0)
		return cmd_fail("drop", path, "is an empty store: there is nothing to drop");
	return cmd_fail("drop", path, "%s", store_load_text(error, why));
}

static void apply_oldest(struct superblock *superblock, void *context)
{
	superblock_inherit_witness(superblock, context);
	memset(&superblock->predecessor_uuid, 0, sizeof(superblock->predecessor_uuid));
}

static int check_next(const struct store *store, const struct store *next)
{
	if (!uuid_equal(&store->superblock.successor_uuid, &next->superblock.store_uuid))
		return cmd_fail("drop", next->path, "is not the next newer store after %s", store->path);
	return EXIT_DONE;
}

static int check_oldest(const struct arguments *arguments, const struct store *store)
{
	const struct superblock *superblock = &store->superblock;

	if (superblock->state == STATE_MERGING && !arguments->force)
		return cmd_fail("drop", store->path,
				"is needed by a merge, or left over from one: finish it with 'rowsnap merge' (--force wipes it all the same)");
	if (superblock->state != STATE_SEALED && !arguments->force)
		return cmd_fail("drop", store->path,
				"is the newest snapshot's store: serve the volume and drop it there (--force wipes it, and the origin is unprotected)");
	if (!uuid_is_nil(&superblock->predecessor_uuid) && !arguments->force)
		return cmd_fail("drop", store->path,
				"is not the oldest by its links: older snapshots need it (--force when they are gone)");
	if (!uuid_is_nil(&superblock->fold_source_uuid) && !arguments->force)
		return cmd_fail("drop", store->path, "another snapshot is being folded into it: serve the volume to finish that");
	return EXIT_DONE;
}

static int wipe(struct store *store)
{
	int error = store_wipe_wait(store);

	if (error != 0)
		return cmd_fail("drop", store->path, "cannot be wiped: %s", strerror(-error));
	(void)printf("%s: snapshot %s is dropped, the store is free\n", store->path, store->superblock.name);
	if (store->part_error != 0)
		return cmd_fail("drop", store->path, "a part of it could not be wiped: %s (format that anew)",
				strerror(-store->part_error));
	for (uint32_t i = 1; i < store_part_count(store); i++)
		if (store_part(store, i) != NULL)
			(void)printf("%s: part %u of it is free, too\n", store_part(store, i)->path, i);
	return EXIT_DONE;
}

static int drop_stores(const struct arguments *arguments, struct store *store, struct store *next)
{
	int error, code = check_oldest(arguments, store);

	if (code == EXIT_DONE && next != NULL)
		code = check_next(store, next);
	if (code != EXIT_DONE)
		return code;
	if (next != NULL) {
		error = store_update_wait(next, apply_oldest, &store->superblock);
		if (error != 0)
			return cmd_fail("drop", next->path, "cannot be written: %s", strerror(-error));
	}
	return wipe(store);
}

/* A part by itself is of use to nobody but its store. */
static int drop_part(const struct arguments *arguments, struct store *part)
{
	int error;

	if (!arguments->force)
		return cmd_fail("drop", part->path,
				"is a part of the store of snapshot %s: name that first (--force wipes the part when that one is gone)",
				part->superblock.name);
	error = store_wipe_wait(part);
	if (error != 0)
		return cmd_fail("drop", part->path, "cannot be wiped: %s", strerror(-error));
	(void)printf("%s: the part is free\n", part->path);
	return EXIT_DONE;
}

/* The first is to go, with its parts; one of the others may be the next newer store. All are opened. */
static int drop_opened(const struct arguments *arguments, struct store **stores)
{
	struct store *store = stores[0], *next = NULL, *main = NULL;
	uint32_t part = 0;
	char text[STORE_TEXT_BYTES];
	int error = stores_join(stores, arguments->count, &main, &part);

	assert(store != NULL);
	if (stores[0] == NULL || (store->superblock.role == ROLE_PART && arguments->count > 1))
		return cmd_fail("drop", store->path, "is a part of a store: name the store first");
	if (store->superblock.role == ROLE_PART)
		return drop_part(arguments, store);
	for (size_t i = 1; i < arguments->count; i++) {
		if (stores[i] == NULL)
			continue;
		if (next != NULL || stores[i]->superblock.role == ROLE_PART)
			return cmd_fail("drop", stores[i]->path, "is neither a part of %s nor the next newer store",
					store->path);
		next = stores[i];
	}
	if (error != 0 && main == store && error != -EFBIG && !arguments->force) {
		stores_join_text(error, store, part, text);
		return cmd_fail("drop", store->path, "%s (--force when it is gone)", text);
	}
	return drop_stores(arguments, store, next);
}

static int drop_offline(const struct arguments *arguments)
{
	struct store **stores = calloc(arguments->count, sizeof(struct store *));
	struct disk_host *host = NULL;
	int code = EXIT_DONE, error = disk_host_create(8, &host);

	if (error != 0 || stores == NULL) {
		free(stores);
		if (error == 0)
			disk_host_destroy(host);
		return cmd_fail("drop", arguments->names[0], "%s", strerror(error != 0 ? -error : ENOMEM));
	}
	for (size_t i = 0; i < arguments->count && code == EXIT_DONE; i++)
		code = open_for_drop(host, arguments->names[i], &stores[i]);
	if (code == EXIT_DONE)
		code = drop_opened(arguments, stores);
	for (size_t i = arguments->count; i-- > 0;)
		store_close(stores[i]);
	free(stores);
	disk_host_destroy(host);
	return code;
}

/* ---- by the server ---- */

static void show_progress(struct json_object *progress, void *context)
{
	const struct arguments *arguments = context;

	if (!cmd_shows_progress(arguments->progress))
		return;
	(void)fprintf(stderr, "\r%s: %llu of %llu blocks folded", arguments->names[1],
		      (unsigned long long)cmd_json_number(progress, "done"),
		      (unsigned long long)cmd_json_number(progress, "total"));
	if (cmd_json_number(progress, "done") == cmd_json_number(progress, "total"))
		(void)fputc('\n', stderr);
}

static void print_dropped(const struct arguments *arguments, struct json_object *result)
{
	struct json_object *parts = cmd_json_get(result, "parts");
	size_t count = parts == NULL ? 0 : json_object_array_length(parts);

	(void)printf("%s: %s, %s %s", arguments->names[1], arguments->background ? "being dropped" : "dropped",
		     count > 1 ? "stores" : "store", cmd_json_text(result, "store"));
	for (size_t i = 1; i < count; i++)
		(void)printf("%s %s", i + 1 < count ? "," : " and", json_object_get_string(json_object_array_get_idx(parts, i)));
	(void)puts(arguments->background ? "" : count > 1 ? " are free" : " is free");
}

static int drop_served(struct arguments *arguments)
{
	struct json_object *request = cmd_request("drop"), *result = NULL;
	int code;

	json_object_object_add(request, "name", json_object_new_string(arguments->names[1]));
	json_object_object_add(request, "background", json_object_new_boolean(arguments->background));
	json_object_object_add(request, "forget_older", json_object_new_boolean(arguments->forget_older));
	code = cmd_call("drop", arguments->names[0], request, show_progress, arguments, NULL, &result);
	if (code == EXIT_DONE && arguments->json)
		cmd_print_json(json_object_get(result));
	else if (code == EXIT_DONE)
		print_dropped(arguments, result);
	json_object_put(result);
	return code;
}

/* ---- the command ---- */

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct arguments *arguments = state->input;

	switch (key) {
	case LONG_ONLY('b'):
		arguments->background = true;
		return 0;
	case LONG_ONLY('f'):
		arguments->force = true;
		return 0;
	case LONG_ONLY('o'):
		arguments->forget_older = true;
		return 0;
	case LONG_ONLY('j'):
		arguments->json = true;
		return 0;
	case LONG_ONLY('p'):
		arguments->progress = cmd_progress_argument(argument, state);
		return 0;
	case ARGP_KEY_ARG:
		if (arguments->count == (arguments->count > 0 && cmd_is_store_path(arguments->names[0]) ? STORE_PARTS_MAX + 1u : 2u))
			argp_error(state, "too many arguments: '%s'", argument);
		arguments->names[arguments->count++] = argument;
		return 0;
	case ARGP_KEY_END:
		if (arguments->count == 0)
			argp_error(state, "VOLUME and NAME, or a STORE, are needed");
		else if (arguments->count < 2 && !cmd_is_store_path(arguments->names[0]))
			argp_error(state, "no snapshot NAME given (a store is named by a path with a slash)");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int cmd_drop(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "background", LONG_ONLY('b'), NULL, 0, "return at once; the server goes on", 0 },
		{ "forget-older", LONG_ONLY('o'), NULL, 0, "drop it although an older snapshot, whose store is not here, needs it", 0 },
		{ "force", LONG_ONLY('f'), NULL, 0, "offline: wipe the store although its links say that older ones need it", 0 },
		{ "json", LONG_ONLY('j'), NULL, 0, "print the outcome as a JSON object", 0 },
		{ "progress", LONG_ONLY('p'), "WHEN", 0, "show progress: auto (on a terminal), always, never", 0 },
		{ 0 },
	};
	static const struct argp argp = { options, parse, "VOLUME NAME\nSTORE [PART...] [NEXT]",
					  "Drops a snapshot. The oldest goes at once, whatever its size; any other is folded "
					  "into the next older store first. With a STORE: offline, the oldest of a volume that "
					  "is not served; the PARTs that were joined to it go with it, and "
					  "NEXT is told that it is the oldest then.",
					  NULL, NULL, NULL };
	struct arguments arguments = { .names = calloc((size_t)argc + 1, sizeof(char *)) };
	int code = EXIT_USAGE;

	if (arguments.names == NULL)
		return cmd_fail("drop", "", "out of memory");
	if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) == 0 && arguments.count > 0)
		code = cmd_is_store_path(arguments.names[0]) ? drop_offline(&arguments) : drop_served(&arguments);
	free(arguments.names);
	return cmd_finish_output("drop", code);
}
