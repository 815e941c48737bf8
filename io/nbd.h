/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The NBD server: exports on a unix socket. See nbd.c. */
#ifndef IO_NBD_H
#define IO_NBD_H

#include "io/arena.h"
#include "io/loop.h"
#include "io/request.h"
#include "io/transport.h"

struct nbd_counters {
	uint64_t connections_now, connections_total;
	uint64_t requests;
	uint64_t bytes_received, bytes_sent;
	uint64_t protocol_errors; /* connections dropped for what they sent */
	uint64_t pace_heard, pace_silent; /* times a client sent something while replies waited for that, or did not */
};

/*
 * Listens on `path` (mode 0600). A socket left there by a dead server is replaced; one that answers gives -EADDRINUSE; a
 * path that does not fit a socket address -ENAMETOOLONG; something else at that path -EEXIST. Data buffers come from
 * `arena`, which must be larger than REQUEST_DATA_BYTES_MAX. The loop, the table and the arena must outlive the transport.
 */
__attribute__((warn_unused_result)) int nbd_start(struct loop *loop, struct export_table *exports, struct arena *arena,
						  const char *path, struct transport **transport);
void nbd_get_counters(const struct transport *transport, struct nbd_counters *counters);

#endif
