/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A transport carries requests from clients to exports. Each kind (NBD, ...) has a start function of its own, which gives
 * back this handle; from then on all kinds are handled alike.
 *
 * Life: start (accepts clients, submits requests) -> detach, until is_detached() says so -> quiesce (takes no new
 * requests: new commands get -ESHUTDOWN, no new clients; what was submitted is completed and answered) -> when is_idle()
 * says so, close.
 */
#ifndef IO_TRANSPORT_H
#define IO_TRANSPORT_H

#include <stdbool.h>

struct transport;

#define TRANSPORT_TEXT_BYTES 512u

struct transport_ops {
	/*
	 * Takes away what the system was given (block devices), while requests are still served; with `force`, also what is
	 * in use. May be called again. NULL, and the next too: nothing was given.
	 */
	void (*detach)(struct transport *transport, bool force);
	/* Whether that is done. If not, *why says who holds what: "/dev/loop3 is mounted on /mnt"; empty: not known yet. */
	bool (*is_detached)(struct transport *transport, const char **why);
	void (*quiesce)(struct transport *transport);
	bool (*is_idle)(const struct transport *transport); /* no request is with the engine, no reply unsent */
	void (*close)(struct transport *transport);         /* drops the clients that are left, frees everything */
};

struct transport {
	const struct transport_ops *ops;
};

#endif
