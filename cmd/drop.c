/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rowsnap drop: drops a snapshot of a served volume, or, offline, the oldest store of one that is not served. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/cmd.h"
#include "core/store.h"
#include "io/cleanup.h"
#include "io/probe.h"

struct arguments {
	const char *first, *second;
	bool background, force, forget_older, json;
	enum cmd_progress progress;
};

/* ---- offline ---- */

static int open_for_drop(struct disk_host *host, const char *path, struct store **store)
{
	char text[PROBE_TEXT_BYTES];
	const char *why = NULL;
	int error = store_open(host, path, DISK_OPEN_LOCK, store);

	if (error == -EBUSY && probe_busy(path, text) == 1)
		return cmd_fail("drop", path, "is in use: %s", text);
	if (error == -EBUSY)
		return cmd_fail("drop", path, "is in use, or was given twice");
	if (error == -ENOTBLK)
		return cmd_fail("drop", path, "is neither a block device nor a regular file");
	if (error != 0)
		return cmd_fail("drop", path, "%s", strerror(-error));
	error = store_load_wait(*store, &why);
	if (error == 0 && (*store)->superblock.state != STATE_EMPTY)
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
	error = store_wipe_wait(store);
	if (error != 0)
		return cmd_fail("drop", store->path, "cannot be wiped: %s", strerror(-error));
	(void)printf("%s: snapshot %s is dropped, the store is free\n", store->path, store->superblock.name);
	return EXIT_DONE;
}

static int drop_offline(const struct arguments *arguments)
{
	struct disk_host *host;
	struct store *store = NULL, *next = NULL;
	int code, error = disk_host_create(8, &host);

	if (error != 0)
		return cmd_fail("drop", arguments->first, "%s", strerror(-error));
	code = open_for_drop(host, arguments->first, &store);
	if (code == EXIT_DONE && arguments->second != NULL)
		code = open_for_drop(host, arguments->second, &next);
	if (code == EXIT_DONE)
		code = drop_stores(arguments, store, next);
	store_close(next);
	store_close(store);
	disk_host_destroy(host);
	return code;
}

/* ---- by the server ---- */

static void show_progress(struct json_object *progress, void *context)
{
	const struct arguments *arguments = context;

	if (!cmd_shows_progress(arguments->progress))
		return;
	(void)fprintf(stderr, "\r%s: %llu of %llu blocks folded", arguments->second,
		      (unsigned long long)cmd_json_number(progress, "done"),
		      (unsigned long long)cmd_json_number(progress, "total"));
	if (cmd_json_number(progress, "done") == cmd_json_number(progress, "total"))
		(void)fputc('\n', stderr);
}

static void print_dropped(const struct arguments *arguments, struct json_object *result)
{
	struct json_object *parts = cmd_json_get(result, "parts");
	size_t count = parts == NULL ? 0 : json_object_array_length(parts);

	(void)printf("%s: %s, %s %s", arguments->second, arguments->background ? "being dropped" : "dropped",
		     count > 1 ? "stores" : "store", cmd_json_text(result, "store"));
	for (size_t i = 1; i < count; i++)
		(void)printf("%s %s", i + 1 < count ? "," : " and", json_object_get_string(json_object_array_get_idx(parts, i)));
	(void)puts(arguments->background ? "" : count > 1 ? " are free" : " is free");
}

static int drop_served(struct arguments *arguments)
{
	struct json_object *request = cmd_request("drop"), *result = NULL;
	int code;

	json_object_object_add(request, "name", json_object_new_string(arguments->second));
	json_object_object_add(request, "background", json_object_new_boolean(arguments->background));
	json_object_object_add(request, "forget_older", json_object_new_boolean(arguments->forget_older));
	code = cmd_call("drop", arguments->first, request, show_progress, arguments, NULL, &result);
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
		if (arguments->first == NULL)
			arguments->first = argument;
		else if (arguments->second == NULL)
			arguments->second = argument;
		else
			argp_error(state, "too many arguments: '%s'", argument);
		return 0;
	case ARGP_KEY_END:
		if (arguments->first == NULL)
			argp_error(state, "VOLUME and NAME, or a STORE, are needed");
		else if (arguments->second == NULL && !cmd_is_store_path(arguments->first))
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
	static const struct argp argp = { options, parse, "VOLUME NAME\nSTORE [NEXT]",
					  "Drops a snapshot. The oldest goes at once, whatever its size; any other is folded "
					  "into the next older store first. With a STORE: offline, the oldest of a volume that "
					  "is not served; NEXT is told that it is the oldest then.",
					  NULL, NULL, NULL };
	struct arguments arguments = { 0 };
	int code;

	if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
		return EXIT_USAGE;
	code = cmd_is_store_path(arguments.first) ? drop_offline(&arguments) : drop_served(&arguments);
	return cmd_finish_output("drop", code);
}
