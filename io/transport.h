/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A transport carries requests from clients to exports. Each kind (NBD, ...) has a start function of its own, which gives
 * back this handle; from then on all kinds are handled alike.
 *
 * Life: start (accepts clients, submits requests) -> quiesce (takes no new requests: new commands get -ESHUTDOWN, no new
 * clients; what was submitted is completed and answered) -> when is_idle() says so, close.
 */
#ifndef IO_TRANSPORT_H
#define IO_TRANSPORT_H

#include <stdbool.h>

struct transport;

struct transport_ops {
	void (*quiesce)(struct transport *transport);
	bool (*is_idle)(const struct transport *transport); /* no request is with the engine, no reply unsent */
	void (*close)(struct transport *transport);         /* drops the clients that are left, frees everything */
};

struct transport {
	const struct transport_ops *ops;
};

#endif
