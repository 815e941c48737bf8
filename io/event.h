/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Waking the loop from another thread: an eventfd, non-blocking, that counts up. */
#ifndef IO_EVENT_H
#define IO_EVENT_H

#include <errno.h>
#include <stdint.h>
#include <unistd.h>

/* The counter cannot get near its limit, so nothing but EINTR can come in between. */
static inline void event_count_up(int event_fd)
{
	const uint64_t one = 1;

	while (write(event_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

/* Back to zero. Look at what it stands for afterwards: then nothing is missed. */
static inline void event_clear(int event_fd)
{
	uint64_t count;

	while (read(event_fd, &count, sizeof(count)) < 0 && errno == EINTR)
		;
}

#endif
