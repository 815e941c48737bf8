/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the commands that work on an origin and its stores without a server share: opening them, signals, progress. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/cmd.h"
#include "core/offline.h"
#include "io/log.h"

#define DISK_IN_FLIGHT_MAX 256u
#define PROGRESS_EVERY_NS (UINT64_C(200) * 1000 * 1000)

int cmd_offline_begin(const char *command, const char *origin, bool make_directory, struct cmd_offline *opened)
{
	int code, error;

	*opened = (struct cmd_offline){ .host = NULL };
	log_silence();
	code = cmd_state_directory(command, make_directory, &opened->state_directory);
	if (code != EXIT_DONE)
		return code;
	opened->origin = cmd_absolute_path(origin); /* as the record knows it */
	error = opened->origin == NULL ? -ENOMEM : disk_host_create(DISK_IN_FLIGHT_MAX, &opened->host);
	return error == 0 ? EXIT_DONE : cmd_fail(command, origin, "%s", strerror(-error));
}

int cmd_offline_open(const char *command, char *const *paths, size_t count, bool accept_origin,
		     struct cmd_offline *opened)
{
	struct offline_options options = { .accept_origin = accept_origin };
	struct complaint complaint;
	int error, code = cmd_offline_begin(command, paths[0], false, opened);

	if (code != EXIT_DONE)
		return code;
	options.state_directory = opened->state_directory;
	error = offline_open(opened->host, opened->origin, (const char *const *)(paths + 1), count - 1, &options,
			     &opened->offline, &complaint);
	return error == 0 ? EXIT_DONE : cmd_fail(command, complaint.what, "%s", complaint.why);
}

void cmd_offline_close(struct cmd_offline *opened)
{
	offline_close(opened->offline);
	if (opened->host != NULL)
		disk_host_destroy(opened->host);
	free(opened->origin);
	free(opened->state_directory);
}

/* ---- signals ---- */

static volatile sig_atomic_t cancelled;

static void note_signal(int number)
{
	(void)number;
	cancelled = 1;
}

void cmd_watch_signals(void)
{
	struct sigaction action = { .sa_handler = note_signal };

	(void)sigemptyset(&action.sa_mask);
	(void)sigaction(SIGINT, &action, NULL);
	(void)sigaction(SIGTERM, &action, NULL);
	(void)sigaction(SIGHUP, &action, NULL);
}

bool cmd_is_cancelled(void *context)
{
	(void)context;
	return cancelled != 0;
}

/* ---- progress ---- */

void cmd_progress_show(struct cmd_progress_line *line, const char *what, uint64_t done_bytes, uint64_t total_bytes)
{
	uint64_t now_ns = disk_host_monotonic_ns(line->host);
	char done_text[SIZE_TEXT_BYTES], total_text[SIZE_TEXT_BYTES];

	if (!cmd_shows_progress(line->progress) || total_bytes == 0 ||
	    (done_bytes < total_bytes && line->shown && now_ns - line->shown_ns < PROGRESS_EVERY_NS))
		return;
	line->shown = true;
	line->shown_ns = now_ns;
	cmd_size_text(done_bytes, done_text);
	cmd_size_text(total_bytes, total_text);
	(void)fprintf(stderr, "\r%s: %s of %s (%u %%) ", what, done_text, total_text,
		      (unsigned)((double)done_bytes * 100 / (double)total_bytes));
}

void cmd_progress_end(struct cmd_progress_line *line)
{
	if (line->shown)
		(void)fputc('\n', stderr);
	line->shown = false;
}
