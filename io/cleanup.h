/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Scope cleanup for straight-line code: `auto_free char *text = ...;`, `auto_close int fd = ...;`. */
#ifndef IO_CLEANUP_H
#define IO_CLEANUP_H

#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_free(void *pointer)
{
	free(*(void **)pointer);
}

static inline void cleanup_close(const int *fd)
{
	if (*fd >= 0)
		(void)close(*fd);
}

#define auto_free __attribute__((cleanup(cleanup_free)))
#define auto_close __attribute__((cleanup(cleanup_close)))

#endif
