/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * --on-warn: a shell command is run when a store gets full. One at a time, and never waited for: what happens meanwhile is
 * queued, the oldest left out when there is too much. It leads a process group of its own; the end of the service ends it
 * with SIGTERM, and what is queued is not run any more. The end of the server by a crash leaves it alone.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cmd/server.h"
#include "io/log.h"
#include "io/memory.h"

static const char *event_text(enum volume_event_kind kind)
{
	switch (kind) {
	case VOLUME_EVENT_THRESHOLD:
		return "threshold";
	case VOLUME_EVENT_FULL:
		return "full";
	case VOLUME_EVENT_BROKEN:
		return "broken";
	}
	return "unknown";
}

static bool set_number(const char *name, uint64_t number)
{
	char text[24];

	(void)snprintf(text, sizeof(text), "%llu", (unsigned long long)number);
	return setenv(name, text, 1) == 0;
}

static bool set_facts(const struct server *server, const struct warning *warning)
{
	struct volume_report report;

	volume_report(server->volume, &report);
	return setenv("ROWSNAP_VOLUME", report.name, 1) == 0 &&
	       setenv("ROWSNAP_CONTROL", server->control_path == NULL ? "" : server->control_path, 1) == 0 &&
	       setenv("ROWSNAP_EVENT", event_text(warning->kind), 1) == 0 &&
	       setenv("ROWSNAP_SNAPSHOT", warning->snapshot, 1) == 0 && setenv("ROWSNAP_STORE", warning->store, 1) == 0 &&
	       set_number("ROWSNAP_USED_BYTES", warning->used_bytes) &&
	       (warning->size_bytes == 0 ? setenv("ROWSNAP_SIZE_BYTES", "", 1) == 0 :
					   set_number("ROWSNAP_SIZE_BYTES", warning->size_bytes)) &&
	       set_number("ROWSNAP_PERCENT", warning->percent) && set_number("ROWSNAP_THRESHOLD", warning->threshold);
}

/* The child: its output goes where our messages go. */
__attribute__((noreturn)) static void run_command(const struct server *server, const struct warning *warning)
{
	int null = open("/dev/null", O_RDONLY);
	sigset_t none;

	(void)sigemptyset(&none);
	(void)setpgid(0, 0);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	(void)signal(SIGPIPE, SIG_DFL);
	(void)signal(SIGXFSZ, SIG_DFL);
	memory_serve_no_io();
	if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(STDERR_FILENO, STDOUT_FILENO) < 0 || !set_facts(server, warning))
		_exit(127);
	(void)execl("/bin/sh", "sh", "-c", server->warn_command, (char *)NULL);
	_exit(127);
}

static void start_next(struct server *server)
{
	struct warning *warning = &server->warnings[0];

	if (server->warn_child > 0 || server->warning_count == 0 || server->stopping)
		return;
	server->warn_child = fork();
	if (server->warn_child == 0)
		run_command(server, warning);
	if (server->warn_child < 0) {
		log_warning("--on-warn: the command cannot be run: %s", strerror(errno));
		server->warn_child = 0;
	} else {
		(void)setpgid(server->warn_child, server->warn_child); /* whoever is first */
	}
	server->warning_count--;
	free(warning->store);
	memmove(&server->warnings[0], &server->warnings[1], server->warning_count * sizeof(*warning));
}

void server_warn(const struct volume_event *event, void *context)
{
	struct server *server = context;
	struct warning warning = { .kind = event->kind,
				   .store = strdup(event->store),
				   .used_bytes = event->used_bytes,
				   .size_bytes = event->size_bytes,
				   .percent = event->percent,
				   .threshold = event->threshold };

	if (server->warn_command == NULL || warning.store == NULL || server->stopping) {
		free(warning.store);
		return;
	}
	(void)snprintf(warning.snapshot, sizeof(warning.snapshot), "%s", event->snapshot);
	if (server->warning_count == SERVER_WARNINGS_MAX) {
		log_warning("--on-warn: the command takes too long: what happened before is left out");
		free(server->warnings[0].store);
		memmove(&server->warnings[0], &server->warnings[1], --server->warning_count * sizeof(warning));
	}
	server->warnings[server->warning_count++] = warning;
}

void server_run_warnings(struct server *server)
{
	start_next(server);
}

void server_warn_ended(struct server *server)
{
	int status;

	if (server->warn_child <= 0 || waitpid(server->warn_child, &status, WNOHANG) != server->warn_child)
		return;
	server->warn_child = 0;
	if (WIFSIGNALED(status))
		log_warning("--on-warn: the command was ended by signal %d", WTERMSIG(status));
	else if (WEXITSTATUS(status) != 0)
		log_warning("--on-warn: the command failed with status %d", WEXITSTATUS(status));
}

void server_end_warnings(struct server *server)
{
	if (server->warn_child > 0)
		(void)kill(-server->warn_child, SIGTERM);
	while (server->warning_count > 0)
		free(server->warnings[--server->warning_count].store);
}
