/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Exports as loop devices, over the files that io/fuse.h serves. See loopdev.c. */
#ifndef IO_LOOPDEV_H
#define IO_LOOPDEV_H

#include "io/loop.h"
#include "io/loopdev-keeper.h"
#include "io/request.h"
#include "io/transport.h"

/*
 * Begins to attach a loop device to every export, also to those that come later, and says in export->device which. The
 * files are those of `fuse`, which must be served meanwhile; `mark` (KEEPER_MARK_BYTES, of this volume alone) tells our
 * devices from others'. The keeper, the table, the loop and `fuse` must
 * outlive the transport. Errors: -ENOMEM, epoll_ctl's.
 */
__attribute__((warn_unused_result)) int loopdev_start(struct loop *loop, struct export_table *exports,
						      const struct keeper *keeper, const struct transport *fuse,
						      const char *mark, struct transport **transport);

/* Whether the export `name` has got its device, or will not get one. */
bool loopdev_is_settled(const struct transport *transport, const char *name);
/* Why an export (the first such) has no device; NULL: none failed. */
const char *loopdev_failure(const struct transport *transport);

/* Asks whether the device of an export is mounted or the like. */
struct loopdev_question {
	/* error 0: no; -EBUSY: `text` says by whom. Called later, from the loop; not after the transport's close(). */
	void (*answered)(struct loopdev_question *question, int error, const char *text);
	struct list link;         /* private */
	const char *name;         /* of the export; the caller's until answered() */
};
void loopdev_ask(struct transport *transport, struct loopdev_question *question);

#endif
