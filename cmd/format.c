/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rowsnap format: makes a file or a block device an empty store. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmd/cmd.h"
#include "core/store.h"
#include "io/cleanup.h"
#include "io/probe.h"

/* A rowsnap store that is in use by a volume counts as content, an empty one does not. */
int cmd_check_content(const char *command, struct disk_host *host, const char *path, bool force)
{
	char text[PROBE_TEXT_BYTES];
	struct store *store;
	const char *why = NULL;
	int found, error;

	found = probe_busy(path, text);
	if (found == 1)
		return cmd_fail(command, path, "is in use: %s", text);
	if (force)
		return 0;
	found = probe_signature(path, text);
	if (found == 1)
		return cmd_fail(command, path, "holds %s (--force overwrites it)", text);
	if (found == -ENOTBLK)
		return cmd_fail(command, path, "is neither a block device nor a regular file");
	if (found < 0)
		return cmd_fail(command, path, "cannot be looked into: %s", strerror(-found));
	if (store_open(host, path, DISK_OPEN_READ_ONLY, &store) != 0)
		return 0;
	error = store_load_wait(store, &why);
	found = EXIT_DONE;
	if (error == 0 && store->superblock.state != STATE_EMPTY)
		found = cmd_fail(command, path, "is %s snapshot %s (--force overwrites it)",
				 store->superblock.role == ROLE_PART ? "a part of the store of" : "the store of",
				 store->superblock.name);
	else if (error == -EPROTONOSUPPORT)
		found = cmd_fail(command, path, "is a store made by a newer rowsnap (--force overwrites it)");
	store_close(store);
	return found;
}

static int check_size(const char *command, const char *path, const struct disk_info *info,
		      const struct format_options *options, uint64_t *limit)
{
	struct geometry geometry = { options->block_bytes, AREA_SLOTS_MAX, FIRST_AREA_OFFSET };
	uint64_t least = FIRST_AREA_OFFSET + geometry_area_bytes(&geometry);
	char text[SIZE_TEXT_BYTES];

	*limit = options->size_bytes;
	cmd_size_text(least, text);
	if (info->read_only)
		return cmd_fail(command, path, "is read-only");
	if (info->is_device && info->size_bytes < least)
		return cmd_fail(command, path, "is too small: a store needs %s at least", text);
	if (options->size_bytes != 0 && options->size_bytes < least)
		return cmd_fail(command, path, "--size is too small: a store needs %s at least", text);
	if (info->is_device && options->size_bytes > info->size_bytes)
		return cmd_fail(command, path, "the device has %llu bytes, less than --size",
				(unsigned long long)info->size_bytes);
	return EXIT_DONE;
}

static int format_disk(const char *command, struct disk_host *host, struct disk *disk, const char *path,
		       const struct format_options *options)
{
	struct disk_info info;
	uint64_t limit;
	uuid128_t uuid;
	int error;

	disk_get_info(disk, &info);
	error = check_size(command, path, &info, options, &limit);
	if (error != 0 || options->dry_run)
		return error;
	error = probe_wipe(path);
	if (error == 0)
		error = store_format_wait(host, disk, options->block_bytes, limit, AREA_SLOTS_MAX, &uuid);
	if (error != 0)
		return cmd_fail(command, path, "cannot be written: %s", strerror(-error));
	return EXIT_DONE;
}

static int open_and_format(const char *command, struct disk_host *host, const char *path,
			   const struct format_options *options, bool *created)
{
	struct stat status;
	struct disk *disk;
	char text[PROBE_TEXT_BYTES];
	int error, result;

	*created = stat(path, &status) != 0 && errno == ENOENT;
	if (*created && options->dry_run) {
		struct disk_info info = { .sector_bytes = 512 };
		uint64_t limit;

		return check_size(command, path, &info, options, &limit);
	}
	if (!*created) {
		result = cmd_check_content(command, host, path, options->force);
		if (result != EXIT_DONE)
			return result;
	}
	error = disk_open(host, path, DISK_OPEN_LOCK | (*created ? DISK_OPEN_CREATE : 0), &disk);
	if (error == -EBUSY && probe_busy(path, text) == 1)
		return cmd_fail(command, path, "is in use: %s", text);
	if (error == -ENOTBLK)
		return cmd_fail(command, path, "is neither a block device nor a regular file");
	if (error != 0)
		return cmd_fail(command, path, "%s", strerror(-error));
	result = format_disk(command, host, disk, path, options);
	disk_close(disk);
	if (result != EXIT_DONE && *created)
		(void)unlink(path);
	return result;
}

int cmd_format_store(const char *command, const char *path, const struct format_options *options, bool *created)
{
	struct disk_host *host;
	int result, error = disk_host_create(8, &host);

	if (error != 0)
		return cmd_fail(command, path, "%s", strerror(-error));
	result = open_and_format(command, host, path, options, created);
	disk_host_destroy(host);
	return result;
}

/* ---- the command ---- */

enum { OPTION_SIZE = 256, OPTION_BLOCK_SIZE, OPTION_FORCE, OPTION_DRY_RUN };

struct arguments {
	const char *store;
	struct format_options options;
};

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct arguments *arguments = state->input;
	uint64_t size;

	switch (key) {
	case OPTION_SIZE:
		arguments->options.size_bytes = cmd_size_argument("size", argument, state);
		if (arguments->options.size_bytes == 0)
			argp_error(state, "--size: must be above 0");
		return 0;
	case OPTION_BLOCK_SIZE:
		size = cmd_size_argument("block-size", argument, state);
		if (size < BLOCK_BYTES_MIN || size > BLOCK_BYTES_MAX || (size & (size - 1)) != 0)
			argp_error(state, "--block-size: '%s' is not a power of two from 4K to 64K", argument);
		arguments->options.block_bytes = (uint32_t)size;
		return 0;
	case OPTION_FORCE:
		arguments->options.force = true;
		return 0;
	case OPTION_DRY_RUN:
		arguments->options.dry_run = true;
		return 0;
	case ARGP_KEY_ARG:
		if (arguments->store != NULL)
			argp_error(state, "too many arguments: '%s'", argument);
		arguments->store = argument;
		return 0;
	case ARGP_KEY_END:
		if (arguments->store == NULL)
			argp_error(state, "no STORE given");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int cmd_format(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "size", OPTION_SIZE, "SIZE", 0, "let the store grow to SIZE at most (K, M, G, T; default: no limit)", 0 },
		{ "block-size", OPTION_BLOCK_SIZE, "SIZE", 0, "copy in blocks of SIZE: 4K (default) to 64K, a power of two", 0 },
		{ "force", OPTION_FORCE, NULL, 0, "overwrite what the file or device holds (never what is in use)", 0 },
		{ "dry-run", OPTION_DRY_RUN, NULL, 0, "check everything, write nothing", 0 },
		{ 0 },
	};
	static const struct argp argp = { options, parse, "STORE",
					  "Makes STORE, a block device or a file, an empty store for one snapshot. A missing "
					  "file is created; it grows as it is filled.",
					  NULL, NULL, NULL };
	struct arguments arguments = { .options = { .block_bytes = BLOCK_BYTES_MIN } };
	bool created;
	int result;

	if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
		return EXIT_USAGE;
	result = cmd_format_store("format", arguments.store, &arguments.options, &created);
	if (result == EXIT_DONE)
		(void)printf("%s: %s\n", arguments.store,
			     arguments.options.dry_run ? "can be made an empty store" : "is an empty store now");
	return cmd_finish_output("format", result);
}
