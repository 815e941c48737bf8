/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Exports for the transports' fuzz targets: what an engine is to a transport, without one.
 *
 * What is read depends on where it is read only (memory_byte()), and so does what the targets write: so each side can
 * tell whether the bytes it got are those of the place that was meant. Every request is checked as the engine is
 * promised it: within the export, nothing to be written to what is read-only, buffers aligned.
 *
 *	origin   carried out at once
 *	snap     read-only
 *	late     carried out when the target says so, in the order it says
 *	broken   every request fails: with EIO, or with the error number that is its offset divided by 4096
 */
#ifndef TESTS_FUZZ_MEMORY_EXPORTS_H
#define TESTS_FUZZ_MEMORY_EXPORTS_H

#include <errno.h>

#include "io/arena.h"
#include "io/request.h"
#include "tests/fuzz/fuzz.h"

#define MEMORY_EXPORTS 4u
#define MEMORY_PIECE_BYTES UINT64_C(4096) /* every second piece is a hole */

static const char *const memory_names[MEMORY_EXPORTS] = { "origin", "snap", "late", "broken" };

static struct {
	struct export_table table;
	struct export exports[MEMORY_EXPORTS];
	struct list late; /* struct request.link */
	unsigned in_engine, released;
	bool writes_foreign; /* what is written need not be memory_byte()s */
} memory;

static inline uint8_t memory_byte(uint64_t offset)
{
	return (uint8_t)(offset ^ offset >> 8 ^ offset >> 16);
}

static inline void memory_fill(uint8_t *out, uint64_t offset, uint64_t length)
{
	for (uint64_t i = 0; i < length; i++)
		out[i] = memory_byte(offset + i);
}

static inline bool memory_is_right(const uint8_t *bytes, uint64_t offset, uint64_t length)
{
	uint8_t wrong = 0;

	for (uint64_t i = 0; i < length; i++)
		wrong |= bytes[i] ^ memory_byte(offset + i);
	return wrong == 0;
}

static inline bool memory_is_hole(uint64_t offset)
{
	return offset / MEMORY_PIECE_BYTES % 2 == 1;
}

static void memory_extents(struct request *request)
{
	uint64_t at = request->offset, end = request->offset + request->length;

	request->extents_count = 0;
	while (at < end && request->extents_count < request->extents_max) {
		uint64_t next = (at / MEMORY_PIECE_BYTES + 1) * MEMORY_PIECE_BYTES;

		if (next > end)
			next = end;
		request->extents[request->extents_count++] =
			(struct disk_extent){ .length = next - at, .hole = memory_is_hole(at) };
		at = next;
	}
}

static void memory_finish(struct request *request)
{
	const struct export *export = request->export;
	int error = 0;

	if (strcmp(export->name, "broken") == 0)
		error = request->offset < 4096 ? -EIO : -(int)(request->offset / 4096);
	else if (request->op == REQUEST_READ)
		memory_fill(request->buffer, request->offset, request->length);
	else if (request->op == REQUEST_WRITE)
		fuzz_check("what is written is what was sent for that place",
			   memory.writes_foreign ||
				   memory_is_right(request->buffer, request->offset, request->length));
	else if (request->op == REQUEST_EXTENTS)
		memory_extents(request);
	memory.in_engine--;
	request->complete(request, error);
}

static void memory_submit(struct request *request)
{
	const struct export *export = request->export;
	bool has_buffer = request->op == REQUEST_READ || request->op == REQUEST_WRITE;
	bool changes = request->op == REQUEST_WRITE || request->op == REQUEST_ZERO || request->op == REQUEST_DISCARD;

	fuzz_check("an export that is gone gets no requests", !export->gone && export->references > 0);
	fuzz_check("a request lies within its export", request->offset <= export->size_bytes &&
							       request->length <= export->size_bytes - request->offset);
	fuzz_check("a request is of something", request->length > 0 || request->op == REQUEST_FLUSH);
	fuzz_check("what is read-only is not written", !export->read_only || !changes);
	fuzz_check("flags are those of the operation",
		   (request->flags & ~(changes ? REQUEST_FUA | REQUEST_NO_HOLE : 0u)) == 0);
	if (has_buffer)
		fuzz_check("a buffer is page-aligned, and the request no longer than promised",
			   (uintptr_t)request->buffer % ARENA_PAGE_BYTES == 0 && request->buffer != NULL &&
				   request->length <= REQUEST_DATA_BYTES_MAX);
	memory.in_engine++;
	list_init(&request->link);
	if (strcmp(export->name, "late") == 0)
		list_append(&memory.late, &request->link);
	else
		memory_finish(request);
}

static void memory_released(struct export *export)
{
	fuzz_check("an export is given back when it is gone", export->gone && export->references == 0);
	memory.released++;
}

static const struct export_ops memory_ops = { .submit = memory_submit, .released = memory_released };

/* One late request: the first, or the last. False: there is none. */
static inline bool memory_finish_late(bool last)
{
	struct list *link = list_is_empty(&memory.late) ? NULL : last ? memory.late.previous : memory.late.next;

	if (link == NULL)
		return false;
	list_remove(link);
	memory_finish(container_of(link, struct request, link));
	return true;
}

#define MEMORY_ALL ((1u << MEMORY_EXPORTS) - 1)

/* `which`: bits, of those that are in the table. */
static inline void memory_begin(uint64_t size_bytes, unsigned which)
{
	export_table_init(&memory.table);
	list_init(&memory.late);
	memory.in_engine = 0;
	memory.released = 0;
	memory.writes_foreign = false;
	for (unsigned i = 0; i < MEMORY_EXPORTS; i++) {
		struct export *export = &memory.exports[i];

		*export = (struct export){
			.ops = &memory_ops,
			.size_bytes = size_bytes,
			.block_bytes = 4096,
			.sector_bytes = 512,
			.read_only = strcmp(memory_names[i], "snap") == 0,
			.can_discard = true,
			.created_ns = UINT64_C(1700000000000000000),
		};
		(void)snprintf(export->name, sizeof(export->name), "%s", memory_names[i]);
		list_init(&export->link);
		if (which & 1u << i)
			export_add(&memory.table, export);
	}
}

static inline void memory_end(void)
{
	fuzz_check("no request is left in the engine", memory.in_engine == 0);
	for (unsigned i = 0; i < MEMORY_EXPORTS; i++)
		fuzz_check("no export is left referenced", memory.exports[i].references == 0);
}

#endif
