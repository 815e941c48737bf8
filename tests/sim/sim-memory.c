/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Memory. The linker sends all calls of these functions here (--wrap): the engine's may fail, as a plan says; the
 * simulator's own, sim_take() and the like, never do.
 */
#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "tests/sim/sim.h"

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void *__real_reallocarray(void *memory, size_t count, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
void *__real_mmap64(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
char *__real_strdup(const char *text);
void __real_free(void *memory);

void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);
void *__wrap_reallocarray(void *memory, size_t count, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_mmap64(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
char *__wrap_strdup(const char *text);
void __wrap_free(void *memory);

/* What fails, and what is in use: the engine knows no other place to ask. */
static struct {
	struct sim_memory_plan plan;
	struct sim_random random;
	bool paused;
	uint64_t taken, failed;
	int64_t in_use; /* pieces that the engine has */
} memory;

/* A volume's buffers are taken and given back all the time: the system need not be asked for them each time. */
void sim_memory_start(void)
{
	(void)mallopt(M_MMAP_THRESHOLD, 1 << 30);
	(void)mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

void sim_memory_plan(const struct sim_memory_plan *plan, uint64_t seed)
{
	memory.plan = *plan;
	memory.random.state = seed;
	memory.taken = 0;
}

bool sim_memory_pause(bool pause)
{
	bool before = memory.paused;

	memory.paused = pause;
	return before;
}

uint64_t sim_memory_failed(void)
{
	return memory.failed;
}

int64_t sim_memory_in_use(void)
{
	return memory.in_use;
}

static bool fails(void)
{
	if (memory.paused)
		return false;
	memory.taken++;
	if (memory.taken != memory.plan.nth && !random_chance(&memory.random, memory.plan.per_thousand))
		return false;
	memory.failed++;
	sim_trace("out of memory, at the %lluth piece", (unsigned long long)memory.taken);
	errno = ENOMEM;
	return true;
}

static void *count(void *piece)
{
	memory.in_use += piece != NULL;
	return piece;
}

void *__wrap_malloc(size_t bytes)
{
	return fails() ? NULL : count(__real_malloc(bytes));
}

void *__wrap_calloc(size_t number, size_t bytes)
{
	return fails() ? NULL : count(__real_calloc(number, bytes));
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
	return fails() ? NULL : count(__real_aligned_alloc(alignment, bytes));
}

char *__wrap_strdup(const char *text)
{
	return fails() ? NULL : count(__real_strdup(text));
}

void *__wrap_realloc(void *piece, size_t bytes)
{
	if (fails())
		return NULL;
	return piece == NULL ? count(__real_malloc(bytes)) : __real_realloc(piece, bytes);
}

void *__wrap_reallocarray(void *piece, size_t number, size_t bytes)
{
	if (fails())
		return NULL;
	return piece == NULL ? count(__real_calloc(number, bytes)) : __real_reallocarray(piece, number, bytes);
}

void *__wrap_mmap64(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
	return fails() ? MAP_FAILED : __real_mmap64(address, bytes, protection, flags, fd, offset);
}

void __wrap_free(void *piece)
{
	memory.in_use -= piece != NULL;
	__real_free(piece);
}

/* ---- the simulator's own ---- */

static void *sure(void *piece)
{
	if (piece == NULL)
		sim_fail("the simulator itself is out of memory");
	return piece;
}

void *sim_take(size_t bytes)
{
	return sure(__real_calloc(1, bytes));
}

void *sim_take_pages(size_t bytes)
{
	return sure(__real_aligned_alloc(4096, bytes));
}

void *sim_resize(void *piece, size_t number, size_t bytes)
{
	return sure(__real_reallocarray(piece, number, bytes));
}

void sim_give(void *piece)
{
	__real_free(piece);
}
