/* SPDX-License-Identifier: GPL-2.0-or-later */
/* rowsnap status: what a server does. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cmd/cmd.h"

struct arguments {
	const char *volume;
	bool watch, json;
};

static void print_number(struct json_object *object, const char *label, const char *key)
{
	(void)printf("  %-28s %llu\n", label, (unsigned long long)cmd_json_number(object, key));
}

static void print_bytes(struct json_object *object, const char *label, const char *key)
{
	char text[SIZE_TEXT_BYTES];

	cmd_size_text(cmd_json_number(object, key), text);
	(void)printf("  %-28s %s\n", label, text);
}

static void print_latency(struct json_object *status, const char *label, const char *key)
{
	struct json_object *latency = cmd_json_get(status, key);

	(void)printf("  %-28s %llu / %llu / %llu us\n", label, (unsigned long long)cmd_json_number(latency, "p50_us"),
		     (unsigned long long)cmd_json_number(latency, "p99_us"),
		     (unsigned long long)cmd_json_number(latency, "p999_us"));
}

static void print_snapshots(struct json_object *status)
{
	struct json_object *snapshots = cmd_json_get(status, "snapshots");

	for (size_t i = 0; i < json_object_array_length(snapshots); i++) {
		struct json_object *one = json_object_array_get_idx(snapshots, i);
		char used[SIZE_TEXT_BYTES];

		cmd_size_text(cmd_json_number(one, "used_bytes"), used);
		(void)printf("  %-28s %s, %s used", cmd_json_text(one, "name"), cmd_json_text(one, "state"), used);
		if (cmd_json_get(one, "full_percent") != NULL)
			(void)printf(" (%llu %%)", (unsigned long long)cmd_json_number(one, "full_percent"));
		if (cmd_json_get(one, "warned_percent") != NULL)
			(void)printf(", over %llu %%", (unsigned long long)cmd_json_number(one, "warned_percent"));
		if (cmd_json_get(one, "broken_reason") != NULL)
			(void)printf(", %s since %s: only the blocks preserved by then can be read",
				     cmd_json_text(one, "broken_reason"), cmd_json_text(one, "broken_since"));
		if (cmd_json_get(one, "fold_total_blocks") != NULL)
			(void)printf(", %llu of %llu blocks folded",
				     (unsigned long long)cmd_json_number(one, "fold_done_blocks"),
				     (unsigned long long)cmd_json_number(one, "fold_total_blocks"));
		(void)putchar('\n');
	}
}

static void print_status(struct json_object *status)
{
	struct json_object *requests = cmd_json_get(status, "requests"), *copies = cmd_json_get(status, "copies");
	struct json_object *store = cmd_json_get(status, "store_io"), *memory = cmd_json_get(status, "memory");
	struct json_object *write_back = cmd_json_get(status, "write_back");
	struct json_object *clients = cmd_json_get(status, "nbd"), *origin = cmd_json_get(status, "origin");

	(void)printf("volume %s, origin %s", cmd_json_text(status, "volume"), cmd_json_text(origin, "path"));
	if (cmd_json_get(origin, "device") != NULL)
		(void)printf(" (%s)", cmd_json_text(origin, "device"));
	(void)printf(": %s\n", cmd_json_text(status, "health"));
	(void)puts("snapshots:");
	print_snapshots(status);
	(void)puts("requests:");
	print_number(requests, "reads", "reads");
	print_number(requests, "writes", "writes");
	print_number(requests, "flushes", "flushes");
	print_number(requests, "discards", "discards");
	print_number(requests, "write-zeroes", "zeroes");
	print_number(requests, "snapshot reads", "snapshot_reads");
	print_bytes(requests, "read", "read_bytes");
	print_bytes(requests, "written", "write_bytes");
	print_number(requests, "under way", "now");
	(void)puts("copies:");
	print_number(copies, "copies", "copies");
	print_number(copies, "blocks preserved", "blocks");
	print_number(copies, "of them zero", "zero_blocks");
	print_number(copies, "lost", "lost_blocks");
	print_number(copies, "copied ahead", "ahead_blocks");
	print_number(copies, "commits", "commits");
	print_number(copies, "barriers", "barriers");
	print_latency(status, "copy latency p50/p99/p99.9", "copy_latency");
	print_latency(status, "commit latency p50/p99/p99.9", "commit_latency");
	print_latency(status, "snapshot pause p50/p99/p99.9", "pause");
	(void)puts("stores:");
	print_bytes(store, "data written", "data_bytes");
	print_bytes(store, "metadata written", "metadata_bytes");
	print_bytes(store, "zeroes written ahead", "zeroed_bytes");
	print_number(store, "checksum errors", "checksum_errors");
	if (write_back != NULL) {
		(void)puts("write-back buffer:");
		print_bytes(write_back, "size", "size_bytes");
		print_bytes(write_back, "not written yet", "dirty_bytes");
		print_number(write_back, "writes answered from it", "writes");
		print_number(write_back, "of them failed later", "late_errors");
	}
	(void)puts("other:");
	print_number(clients, "NBD connections", "connections");
	print_bytes(memory, "exception maps", "map_bytes");
	print_bytes(memory, "buffers", "buffer_bytes");
}

static error_t parse(int key, char *argument, struct argp_state *state)
{
	struct arguments *arguments = state->input;

	switch (key) {
	case LONG_ONLY('w'):
		arguments->watch = true;
		return 0;
	case LONG_ONLY('j'):
		arguments->json = true;
		return 0;
	case ARGP_KEY_ARG:
		if (arguments->volume != NULL)
			argp_error(state, "too many arguments: '%s'", argument);
		arguments->volume = argument;
		return 0;
	case ARGP_KEY_END:
		if (arguments->volume == NULL)
			argp_error(state, "no VOLUME given");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int cmd_status(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "watch", LONG_ONLY('w'), NULL, 0, "print it again every second until interrupted", 0 },
		{ "json", LONG_ONLY('j'), NULL, 0, "print one JSON object (with --watch: one a line)", 0 },
		{ 0 },
	};
	static const struct argp argp = { options, parse, "VOLUME",
					  "Shows what the server of VOLUME does: requests, copies, commits, latencies, memory.",
					  NULL, NULL, NULL };
	struct arguments arguments = { 0 };
	const struct timespec second = { .tv_sec = 1 };
	int code;

	if (argp_parse(&argp, argc, argv, 0, NULL, &arguments) != 0)
		return EXIT_USAGE;
	do {
		struct json_object *status = NULL;

		code = cmd_call("status", arguments.volume, cmd_request("status"), NULL, NULL, NULL, &status);
		if (code != EXIT_DONE)
			return code;
		if (arguments.json) {
			cmd_print_json(status);
		} else {
			print_status(status);
			json_object_put(status);
		}
		code = cmd_finish_output("status", code);
	} while (arguments.watch && code == EXIT_DONE && nanosleep(&second, NULL) == 0);
	return code;
}
