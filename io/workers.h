/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Worker threads: what may block is done here, so that the event loop never is. A job is handed over whole: from
 * workers_give() until workers_take() hands it back, only the worker touches it and what it points to.
 */
#ifndef IO_WORKERS_H
#define IO_WORKERS_H

#include "io/list.h"

#define WORKERS_MAX 8u

struct workers;

struct workers_job {
	/* Runs on a worker thread, with all signals blocked and no lock held; it may block as long as it must. */
	void (*run)(struct workers_job *job);
	struct list link; /* private; of the list that workers_take() gives, too */
};

/*
 * Starts `count` threads (1 to WORKERS_MAX). `event_fd` (the caller's) is counted up when finished jobs wait to be
 * taken. Returns 0, -ENOMEM or pthread_create's errors.
 */
__attribute__((warn_unused_result)) int workers_create(unsigned count, int event_fd, struct workers **workers);
void workers_destroy(struct workers *workers); /* every job taken back */

void workers_give(struct workers *workers, struct workers_job *job);
/* Appends all finished jobs to `finished`, in the order they finished. Never blocks. */
void workers_take(struct workers *workers, struct list *finished);

#endif
