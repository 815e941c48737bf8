/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Memory that runs short on demand, for the tests that the Makefile names in SHORT_OF_MEMORY: there the linker sends
 * all calls of these functions here. One allocation fails: the one that `memory_short_after` others come before. And
 * what is taken and not given back is counted.
 */
#ifndef TESTS_MEMORY_FAILS_H
#define TESTS_MEMORY_FAILS_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define MEMORY_ENOUGH UINT64_MAX

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *piece, size_t bytes);
void *__real_reallocarray(void *piece, size_t count, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
void *__real_mmap64(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
char *__real_strdup(const char *text);
void __real_free(void *piece);

void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *piece, size_t bytes);
void *__wrap_reallocarray(void *piece, size_t count, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_mmap64(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
char *__wrap_strdup(const char *text);
void __wrap_free(void *piece);

static uint64_t memory_short_after = MEMORY_ENOUGH;
static bool memory_was_short;
static int64_t memory_in_use; /* pieces; mappings do not count */

static void memory_short(uint64_t after)
{
	memory_short_after = after;
	memory_was_short = false;
}

static bool memory_fails(void)
{
	if (memory_short_after == MEMORY_ENOUGH || memory_short_after-- > 0)
		return false;
	memory_was_short = true;
	errno = ENOMEM;
	return true; /* and no other one: it is MEMORY_ENOUGH now */
}

static void *memory_count(void *piece)
{
	memory_in_use += piece != NULL;
	return piece;
}

void *__wrap_malloc(size_t bytes)
{
	return memory_fails() ? NULL : memory_count(__real_malloc(bytes));
}

void *__wrap_calloc(size_t count, size_t bytes)
{
	return memory_fails() ? NULL : memory_count(__real_calloc(count, bytes));
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
	return memory_fails() ? NULL : memory_count(__real_aligned_alloc(alignment, bytes));
}

char *__wrap_strdup(const char *text)
{
	return memory_fails() ? NULL : memory_count(__real_strdup(text));
}

void *__wrap_realloc(void *piece, size_t bytes)
{
	if (memory_fails())
		return NULL;
	return piece == NULL ? memory_count(__real_malloc(bytes)) : __real_realloc(piece, bytes);
}

void *__wrap_reallocarray(void *piece, size_t count, size_t bytes)
{
	if (memory_fails())
		return NULL;
	return piece == NULL ? memory_count(__real_reallocarray(NULL, count, bytes)) :
			       __real_reallocarray(piece, count, bytes);
}

void *__wrap_mmap64(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
	return memory_fails() ? MAP_FAILED : __real_mmap64(address, bytes, protection, flags, fd, offset);
}

void __wrap_free(void *piece)
{
	memory_in_use -= piece != NULL;
	__real_free(piece);
}

#endif
