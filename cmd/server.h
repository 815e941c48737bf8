/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The server's own structure, shared by serve.c (its life) and serve-control.c (what it answers on the control socket). */
#ifndef CMD_SERVER_H
#define CMD_SERVER_H

#include "cmd/cmd.h"
#include "io/arena.h"
#include "io/control.h"
#include "io/loop.h"
#include "io/transport.h"

struct server {
	struct loop *loop;
	struct disk_host *host;
	struct arena *arena;
	struct export_table exports;
	struct volume *volume;
	struct transport *nbd, *fuse, *dm_user; /* NULL: not asked for */
	struct control *control;
	char *nbd_path, *fuse_path, *control_path;

	struct loop_source disk_source, signal_source;
	struct loop_hook hook;
	struct loop_timer tick;

	bool stop_waits;         /* asked to end, once no device of ours is open */
	bool stopping;           /* ending */
	bool stopped;            /* the volume's clean stop is done, or has failed */
	uint64_t close_by_ns;    /* replies are given until then to get out */
	struct operation stop;
	int exit_code;
	struct list pending;     /* struct pending.link: operations asked for on the control socket */
	struct list stop_clients; /* struct stop_client.link: told when the files are free */
	pid_t child;             /* --run */
};

/* serve-control.c */
extern const struct control_ops server_control_ops;
void server_send_progress(struct server *server); /* to those who wait for a fold; now and then */
void server_answer_settled(struct server *server); /* snapshots whose devices are there by now */
void server_end_pending(struct server *server);   /* the volume is closed: what was asked for and has no end yet */
void server_answer_stops(struct server *server);  /* the files are free */

/* serve.c */
void server_begin_stop(struct server *server);
const char *server_device_in_use(const struct server *server); /* its name; NULL: none */

#endif
