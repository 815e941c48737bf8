/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The keeper: a child process that attaches and detaches loop devices for the server and holds them open. See
 * loopdev-keeper.c for why that takes a process.
 *
 * One message goes to it at a time, and each is answered by one.
 */
#ifndef IO_LOOPDEV_KEEPER_H
#define IO_LOOPDEV_KEEPER_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define KEEPER_MARK_BYTES 64u /* the kernel's LO_NAME_SIZE */

enum keeper_op {
	KEEPER_ATTACH, /* `text`: the file. Answer: `number` */
	KEEPER_DETACH, /* and again until it is gone. Answer: 0, or -EBUSY and in `text` who holds it, if known */
	KEEPER_ASK,    /* who would be hurt by a detach. Answer: 0, or -EBUSY and in `text` who holds it */
	KEEPER_CLEAN,  /* as keeper_clean() */
};

struct keeper_message {
	uint32_t op;
	int32_t error;  /* answers: 0, or a negative errno and in `text` why */
	int32_t number; /* of the device: /dev/loopNUMBER */
	uint32_t sector_bytes;      /* ATTACH: 512 to 4096 */
	bool read_only, can_punch;  /* ATTACH: what is offered */
	char mark[KEEPER_MARK_BYTES]; /* ATTACH, DETACH: by which our devices are known */
	char text[PATH_MAX];
};

struct keeper {
	int fd; /* non-blocking, a message a packet; at its end the keeper is gone */
	pid_t pid;
};

/*
 * Starts it. Before there are threads, and before anything is open that should end with the server. Returns 0 or a
 * negative errno.
 */
__attribute__((warn_unused_result)) int keeper_start(struct keeper *keeper);
/*
 * Detaches what a server that died has left attached to files in `directory`, as far as nobody holds it; blocks until
 * then. Returns 0 with message->text telling what was found, a line each; -EPIPE: there is no keeper any more.
 */
__attribute__((warn_unused_result)) int keeper_clean(struct keeper *keeper, const char *directory,
						     struct keeper_message *message);
/* Whether /dev/loopNUMBER has a file in `directory` behind it, which may be served no more. Waits for nobody. */
bool keeper_device_lies_in(int number, const char *directory);
/*
 * Ends it and waits for it. What it still holds is detached as soon as nobody has it open, for which the files behind must
 * be served, or be gone for good.
 */
void keeper_end(struct keeper *keeper);

#endif
