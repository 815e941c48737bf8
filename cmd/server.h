/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The server's own structure, shared by serve.c (its life) and serve-control.c (what it answers on the control socket). */
#ifndef CMD_SERVER_H
#define CMD_SERVER_H

#include "cmd/cmd.h"
#include "io/arena.h"
#include "io/control.h"
#include "io/loop.h"
#include "io/loopdev.h"
#include "io/transport.h"

#define SERVER_TRANSPORTS_MAX 4u
#define SERVER_WARNINGS_MAX 32u

/* What --on-warn's command is to be told. */
struct warning {
	enum volume_event_kind kind;
	char snapshot[NAME_LENGTH_MAX + 1];
	char *store; /* its own */
	uint64_t used_bytes, size_bytes;
	unsigned percent, threshold;
};

struct server {
	struct loop *loop;
	struct disk_host *host;
	struct arena *arena;
	struct export_table exports;
	struct volume *volume;
	/* NULL: not asked for. `transports` are those there are, in the order in which they end. */
	struct transport *nbd, *fuse, *loopdev, *dm_user;
	struct transport *transports[SERVER_TRANSPORTS_MAX];
	size_t transport_count;
	struct keeper keeper;        /* with loop devices; pid 0: none */
	char *private_path;          /* the FUSE folder that is only for the loop devices; NULL: none was made */
	struct control *control;
	char *nbd_path, *fuse_path, *control_path;

	struct loop_source disk_source, signal_source;
	struct loop_hook hook;
	struct loop_timer tick;

	bool stopping;           /* asked to end: what the system was given is being taken away */
	bool forced;             /* whoever uses it */
	bool quiescing;          /* that is done: no more requests are taken */
	char waiting_text[TRANSPORT_TEXT_BYTES]; /* who holds what meanwhile, as it was said last */
	bool stopped;            /* the volume's clean stop is done, or has failed */
	uint64_t close_by_ns;    /* replies are given until then to get out */
	struct operation stop;
	int exit_code;
	struct list pending;     /* struct pending.link: operations asked for on the control socket */
	struct list stop_clients; /* struct stop_client.link: told when the files are free */
	pid_t child;             /* --run */
	const char *warn_command; /* --on-warn; NULL: none */
	pid_t warn_child;        /* 0: it does not run */
	struct warning warnings[SERVER_WARNINGS_MAX]; /* the oldest first */
	size_t warning_count;
};

/* serve-control.c */
extern const struct control_ops server_control_ops;
void server_send_progress(struct server *server); /* to those who wait for a fold; now and then */
void server_finish_pending(struct server *server); /* snapshots that waited for their device */
void server_send_waiting(struct server *server); /* to those who wait for the stop */
void server_end_pending(struct server *server);   /* the volume is closed: what was asked for and has no end yet */
void server_answer_stops(struct server *server);  /* the files are free */

/* serve-warn.c */
void server_warn(const struct volume_event *event, void *context); /* the context is the server */
void server_run_warnings(struct server *server); /* now and then: the next command, if none runs */
void server_warn_ended(struct server *server);   /* SIGCHLD */
void server_end_warnings(struct server *server);

/* serve.c */
void server_begin_stop(struct server *server, bool force);
bool server_has_devices(const struct server *server);
bool server_device_is_settled(const struct server *server, const char *name); /* it is there, or does not come */

#endif
