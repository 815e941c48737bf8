/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the commands share: messages, exit codes, sizes, paths, and the way to a running server. Arguments, messages and exit
 * codes are made here and in the commands; the work is done in core/.
 */
#ifndef CMD_CMD_H
#define CMD_CMD_H

#include <argp.h>
#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/volume.h"

#define EXIT_DONE 0
#define EXIT_FAILED 1
#define EXIT_USAGE 64 /* argp's own */

/* An option's key that is no short option: all options have long names only. */
#define LONG_ONLY(letter) (0x100 + (letter))

/* One for each command: argv[0] is "rowsnap COMMAND". Returns the exit code. */
int cmd_format(int argc, char **argv);
int cmd_serve(int argc, char **argv);
int cmd_snapshot(int argc, char **argv);
int cmd_extend(int argc, char **argv);
int cmd_drop(int argc, char **argv);
int cmd_list(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_stop(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_replay(int argc, char **argv);
int cmd_diff(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_repair(int argc, char **argv);
int cmd_merge(int argc, char **argv);

/* "rowsnap COMMAND: what: why" on stderr, a line, control characters made harmless. Returns EXIT_FAILED. */
__attribute__((format(printf, 3, 4))) int cmd_fail(const char *command, const char *what, const char *format, ...);

/* The exit codes of check and repair, as fsck has them: OR of these, 0 when all is well. */
#define EXIT_CHECK_MENDED 1
#define EXIT_CHECK_FAULTS 4
#define EXIT_CHECK_UNREADABLE 8
#define EXIT_CHECK_USAGE 16

/* A size with an optional K, M, G or T (powers of 1024). Returns 0 or -EINVAL. */
__attribute__((warn_unused_result)) int cmd_parse_size(const char *text, uint64_t *bytes);

/* For argp parsers: a size, or a usage error that names the option. */
uint64_t cmd_size_argument(const char *option, const char *text, struct argp_state *state);

/* For argp parsers: the WHEN of --progress, or a usage error. */
enum cmd_progress { PROGRESS_AUTO, PROGRESS_ALWAYS, PROGRESS_NEVER };
enum cmd_progress cmd_progress_argument(const char *text, struct argp_state *state);
/* Whether progress is to be shown on stderr; auto: on a terminal. */
bool cmd_shows_progress(enum cmd_progress progress);

/* "1.5 GiB" */
#define SIZE_TEXT_BYTES 32u
void cmd_size_text(uint64_t bytes, char text[static SIZE_TEXT_BYTES]);

/* RFC 3339, UTC, with nanoseconds cut to milliseconds. */
#define TIME_TEXT_BYTES 40u
void cmd_time_text(uint64_t time_ns, char text[static TIME_TEXT_BYTES]);

/* The folder of the sockets, made (0700) if `make`. The caller frees. Returns 0, or prints an error and returns EXIT_FAILED. */
__attribute__((warn_unused_result)) int cmd_run_directory(const char *command, bool make, char **directory);
/* Likewise for the folder of the volumes' records. */
__attribute__((warn_unused_result)) int cmd_state_directory(const char *command, bool make, char **directory);
/* The control socket of a volume: its name, or a path to the socket. */
__attribute__((warn_unused_result)) int cmd_socket_path(const char *command, const char *volume, char **path);

/* An absolute path for a file that need not exist. The caller frees; NULL: no memory. */
char *cmd_absolute_path(const char *path);
/* Whether an argument is a path (it has a slash) to something that is not a socket: a store, not a volume. */
bool cmd_is_store_path(const char *argument);

/*
 * Asks the server of `volume` and waits for its answer. `progress` (may be NULL) is called with what comes before the
 * answer. Returns 0 with the "result" object in *result (the caller's reference), or prints the error and returns EXIT_FAILED.
 * *lost (may be NULL) is set when the request was sent and no answer came: it may have been carried out, or may be yet.
 */
__attribute__((warn_unused_result)) int cmd_call(const char *command, const char *volume, struct json_object *request,
						 void (*progress)(struct json_object *progress, void *context),
						 void *context, bool *lost, struct json_object **result);
struct json_object *cmd_request(const char *name); /* {"command": name} */

/* Fields of a reply, with a default for what is not there or of another type. */
const char *cmd_json_text(struct json_object *object, const char *key);
uint64_t cmd_json_number(struct json_object *object, const char *key);
struct json_object *cmd_json_get(struct json_object *object, const char *key);

/* Whether a store lies on what the server itself serves, as its "list" answer tells: EXIT_DONE, or prints so. */
__attribute__((warn_unused_result)) int cmd_check_own_export(const char *command, const char *store,
							     struct json_object *list);
/* Whether it is there and says that it is empty. */
bool cmd_is_empty_store(const char *path);

/* Prints one object on a line of its own and releases it. */
void cmd_print_json(struct json_object *object);
/* Output that could not be written is a failure too. */
__attribute__((warn_unused_result)) int cmd_finish_output(const char *command, int exit_code);

/* A missing or empty store file is made and formatted. Prints errors. *created tells whether the file is new. */
struct format_options {
	uint64_t size_bytes; /* 0: no limit */
	uint32_t block_bytes;
	bool force, dry_run;
};
__attribute__((warn_unused_result)) int cmd_format_store(const char *command, const char *path,
							 const struct format_options *options, bool *created);

/*
 * Whether what lies at `path` may be overwritten: EXIT_DONE; or prints what stands in the way: a use (never overwritten),
 * or, without `force`, content that libblkid or we know.
 */
__attribute__((warn_unused_result)) int cmd_check_content(const char *command, struct disk_host *host, const char *path,
							  bool force);

/* An origin and its stores, opened by an offline command; see core/offline.h. */
struct offline;
struct cmd_offline {
	struct disk_host *host;
	char *origin, *state_directory;
	struct offline *offline;
};

/*
 * What comes before opening them: the host, the origin's absolute path, the folder of the records. Prints errors;
 * notices and warnings of the core are not shown from here on. cmd_offline_close() in any case.
 */
__attribute__((warn_unused_result)) int cmd_offline_begin(const char *command, const char *origin, bool make_directory,
							  struct cmd_offline *opened);

/*
 * Begins, and opens them: the first path is the origin, the others are its stores. Prints errors. cmd_offline_close()
 * in any case.
 */
__attribute__((warn_unused_result)) int cmd_offline_open(const char *command, char *const *paths, size_t count,
							 bool accept_origin, struct cmd_offline *opened);
void cmd_offline_close(struct cmd_offline *opened);

/* From here on SIGINT, SIGTERM and SIGHUP only make cmd_is_cancelled() true. */
void cmd_watch_signals(void);
bool cmd_is_cancelled(void *context); /* the context is not looked at */

/* How far long work is, on one line of stderr. */
struct cmd_progress_line {
	enum cmd_progress progress;
	struct disk_host *host; /* for the time */
	uint64_t shown_ns;
	bool shown;
};

/* `what` is said before the numbers. Shown a few times a second, and when it is done. */
void cmd_progress_show(struct cmd_progress_line *line, const char *what, uint64_t done_bytes, uint64_t total_bytes);
void cmd_progress_end(struct cmd_progress_line *line); /* the line is left, if there is one */

/* The reports as JSON: the same from a server and offline. */
struct json_object *cmd_list_json(const struct volume_report *volume, const struct snapshot_report *snapshots,
				  size_t count);
void cmd_print_list(struct json_object *list);

#endif
