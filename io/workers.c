/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Worker threads. Threads and locks are in this file and in dm-user-reader.c, and nowhere else.
 *
 *     loop's thread                                   workers
 *     workers_give() --> waiting --(mutex, condition)--> run(), unlocked
 *     workers_take() <-- finished <--(mutex, event_fd)-- done
 *
 * The mutex is held to link and unlink jobs, never during one. The event descriptor is counted up after a job went into
 * an empty list of finished ones: whoever reads it first and takes the list afterwards misses nothing.
 */
#include "io/workers.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>

#include "io/event.h"

#define STACK_BYTES ((size_t)512 << 10)

struct workers {
	pthread_mutex_t mutex; /* guards waiting, finished, stopping */
	pthread_cond_t wake;
	struct list waiting, finished;
	bool stopping;
	int event_fd;
	unsigned count;
	pthread_t threads[WORKERS_MAX];
};

static void *worker_main(void *context)
{
	struct workers *workers = context;

	pthread_mutex_lock(&workers->mutex);
	for (;;) {
		struct list *link = list_pop(&workers->waiting);
		struct workers_job *job;
		bool was_empty;

		if (!link) {
			if (workers->stopping)
				break;
			pthread_cond_wait(&workers->wake, &workers->mutex);
			continue;
		}
		pthread_mutex_unlock(&workers->mutex);
		job = container_of(link, struct workers_job, link);
		job->run(job);
		pthread_mutex_lock(&workers->mutex);
		was_empty = list_is_empty(&workers->finished);
		list_append(&workers->finished, &job->link);
		if (was_empty) {
			pthread_mutex_unlock(&workers->mutex);
			event_count_up(workers->event_fd);
			pthread_mutex_lock(&workers->mutex);
		}
	}
	pthread_mutex_unlock(&workers->mutex);
	return NULL;
}

/* Stops and joins the threads that were started; finishes what is waiting first. */
static void workers_join(struct workers *workers)
{
	pthread_mutex_lock(&workers->mutex);
	workers->stopping = true;
	pthread_cond_broadcast(&workers->wake);
	pthread_mutex_unlock(&workers->mutex);
	for (unsigned i = 0; i < workers->count; i++)
		pthread_join(workers->threads[i], NULL);
}

static int workers_start(struct workers *workers, unsigned count)
{
	sigset_t all, before;
	pthread_attr_t attributes;
	int error;

	error = pthread_attr_init(&attributes);
	if (error != 0)
		return -error;
	error = pthread_attr_setstacksize(&attributes, STACK_BYTES);
	/* Threads inherit the mask: signals are the loop's thread's, always. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (error == 0 && workers->count < count) {
		error = pthread_create(&workers->threads[workers->count], &attributes, worker_main, workers);
		if (error == 0)
			workers->count++;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	return -error;
}

static void workers_free(struct workers *workers)
{
	pthread_cond_destroy(&workers->wake);
	pthread_mutex_destroy(&workers->mutex);
	free(workers);
}

int workers_create(unsigned count, int event_fd, struct workers **workers)
{
	struct workers *made;
	int error;

	assert(count > 0 && count <= WORKERS_MAX);
	made = calloc(1, sizeof(*made));
	if (!made)
		return -ENOMEM;
	pthread_mutex_init(&made->mutex, NULL);
	pthread_cond_init(&made->wake, NULL);
	list_init(&made->waiting);
	list_init(&made->finished);
	made->event_fd = event_fd;
	error = workers_start(made, count);
	if (error < 0) {
		workers_join(made);
		workers_free(made);
		return error;
	}
	*workers = made;
	return 0;
}

void workers_destroy(struct workers *workers)
{
	workers_join(workers);
	assert(list_is_empty(&workers->finished));
	workers_free(workers);
}

void workers_give(struct workers *workers, struct workers_job *job)
{
	list_init(&job->link);
	pthread_mutex_lock(&workers->mutex);
	list_append(&workers->waiting, &job->link);
	pthread_cond_signal(&workers->wake);
	pthread_mutex_unlock(&workers->mutex);
}

void workers_take(struct workers *workers, struct list *finished)
{
	pthread_mutex_lock(&workers->mutex);
	list_splice(finished, &workers->finished);
	pthread_mutex_unlock(&workers->mutex);
}
