/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The write-back buffer: with it the origin's export has a volatile write cache, as a disk has one.
 *
 *   write --> page in the buffer --> answered
 *                  |
 *                  '--(drain: runs of pages, many at once)--> write.c, as any client's write --> page is free again
 *
 * It lies above everything else: what is drained is preserved, issued and completed by the rules of write.c, which know
 * nothing of the buffer. Its own rules:
 *
 * 1. What is buffered counts as written for everyone who looks at the origin's export: a read that lies in the buffer whole
 *    is answered from it. Any other request that touches a buffered page (a read in part, zeroes, a discard, a write with
 *    FUA or one that is not made of whole pages, a question about allocation) first waits until all that was buffered when
 *    it came is on the origin.
 * 2. Pages get a number when they become dirty and are drained in that order. FLUSH waits for every number given before it
 *    came, and is then passed on. So what was answered before a FLUSH is as durable after it as without a buffer.
 * 3. What is drained is copied first: a page may be written again while it is under way, and becomes dirty again. A page is
 *    never under way twice, so its newest content is the last to reach the origin.
 * 4. A write that fails after it was answered is logged, its pages are given up (the origin keeps what it has), and the next
 *    FLUSH fails with its error: it is told once. Until then a snapshot is refused; a stop that comes before it fails.
 * 5. A snapshot is of one moment: its barrier. What was buffered before is drained before the operation starts; what comes
 *    after stays in the buffer, or waits if it cannot, until the pause has begun, which holds it for the time after the
 *    snapshot. A stop waits for all.
 * 6. Memory is taken at start: SIZE for the pages, and DRAINS_MAX buffers of DRAIN_PAGES pages. When no page is free writes
 *    wait, first come, first served. Draining begins when a quarter is dirty, when something waits, and for what is older
 *    than a tick of the volume's clock.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "core/engine.h"
#include "io/log.h"

#define DRAINS_MAX 64u
#define DRAIN_PAGES 16u
#define WRITE_PAGES_MAX 64u /* larger writes are not buffered: they gain nothing */

struct page {
	uint64_t index;      /* of its place on the origin, in pages */
	uint64_t number;     /* rule 2, while dirty */
	bool dirty, writing;
	struct list link;    /* wb->dirty, in the numbers' order; wb->free; or none, while it is only being written */
	struct page *next;   /* in its chain of the table */
	uint8_t *data;
};

struct drain {
	struct write_back *write_back;
	struct request request;
	struct page *pages[DRAIN_PAGES];
	unsigned count;
	uint64_t number;     /* the lowest of its pages' */
	uint8_t *buffer;
	struct list link;    /* wb->drains or wb->drains_free */
};

struct write_back {
	struct volume *volume;
	uint8_t *memory;
	struct page *pages;
	struct page **table;
	size_t page_count, table_mask, dirty_count;
	struct list free, dirty;
	struct drain drains_pool[DRAINS_MAX];
	struct list drains, drains_free;
	uint64_t number_last;        /* given */
	uint64_t hurry_to;           /* what has a number up to this is drained now */
	uint64_t number_at_tick;
	struct list waiting;         /* request.link; request.cursor: the number it waits for */
	struct list starved;         /* request.link: writes without free pages */
	bool barred;                 /* rule 5 */
	uint64_t barrier;            /* nothing with a higher number is drained */
	int late_error;              /* not told yet */
	struct write_back_report report;
};

static size_t table_place(const struct write_back *wb, uint64_t index)
{
	return (size_t)(index * UINT64_C(0x9e3779b97f4a7c15) >> 32) & wb->table_mask;
}

static struct page *page_find(const struct write_back *wb, uint64_t index)
{
	struct page *page = wb->table[table_place(wb, index)];

	while (page != NULL && page->index != index)
		page = page->next;
	return page;
}

static void page_free(struct write_back *wb, struct page *page)
{
	struct page **place = &wb->table[table_place(wb, page->index)];

	assert(!page->dirty && !page->writing);
	while (*place != page) {
		assert(*place != NULL);
		place = &(*place)->next;
	}
	*place = page->next;
	list_append(&wb->free, &page->link);
}

static struct page *page_take(struct write_back *wb, uint64_t index)
{
	struct list *link = list_pop(&wb->free);
	struct page *page = container_of(link, struct page, link);
	struct page **place = &wb->table[table_place(wb, index)];

	assert(link != NULL);
	page->index = index;
	page->next = *place;
	*place = page;
	return page;
}

int write_back_create(struct volume *volume, uint64_t bytes)
{
	size_t pages = (size_t)(bytes / ARENA_PAGE_BYTES), buckets = 1;
	struct write_back *wb = calloc(1, sizeof(*wb));

	if (wb == NULL)
		return -ENOMEM;
	volume->write_back = wb;
	while (buckets < pages)
		buckets *= 2;
	wb->volume = volume;
	wb->page_count = pages;
	wb->table_mask = buckets - 1;
	wb->report.size_bytes = pages * ARENA_PAGE_BYTES;
	wb->memory = aligned_alloc(ARENA_PAGE_BYTES, (pages + (size_t)DRAINS_MAX * DRAIN_PAGES) * ARENA_PAGE_BYTES);
	wb->pages = calloc(pages, sizeof(*wb->pages));
	wb->table = calloc(buckets, sizeof(struct page *));
	struct list *lists[] = { &wb->free, &wb->dirty, &wb->drains, &wb->drains_free, &wb->waiting, &wb->starved };
	for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
		list_init(lists[i]);
	if (wb->memory == NULL || wb->pages == NULL || wb->table == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < pages; i++) {
		wb->pages[i].data = wb->memory + i * ARENA_PAGE_BYTES;
		list_append(&wb->free, &wb->pages[i].link);
	}
	for (size_t i = 0; i < DRAINS_MAX; i++) {
		wb->drains_pool[i].write_back = wb;
		wb->drains_pool[i].buffer = wb->memory + (pages + i * DRAIN_PAGES) * ARENA_PAGE_BYTES;
		list_append(&wb->drains_free, &wb->drains_pool[i].link);
	}
	return 0;
}

void write_back_touch(struct volume *volume)
{
	struct write_back *wb = volume->write_back;

	if (wb != NULL)
		memset(wb->memory, 0, (wb->page_count + (size_t)DRAINS_MAX * DRAIN_PAGES) * ARENA_PAGE_BYTES);
}

void write_back_destroy(struct write_back *wb)
{
	if (wb == NULL)
		return;
	free(wb->memory);
	free(wb->pages);
	free(wb->table);
	free(wb);
}

/* ---- draining ---- */

/* The lowest number that is not on the origin yet; UINT64_MAX: all is. */
static uint64_t oldest(const struct write_back *wb)
{
	uint64_t number = UINT64_MAX;

	if (!list_is_empty(&wb->dirty))
		number = container_of(wb->dirty.next, struct page, link)->number;
	list_for_each(link, &wb->drains) {
		const struct drain *drain = container_of(link, struct drain, link);

		number = drain->number < number ? drain->number : number;
	}
	return number;
}

/* Called from within the engine, so what this makes possible is done in the turn. */
static void drained(struct request *request, int error)
{
	struct drain *drain = request->context;
	struct write_back *wb = drain->write_back;

	if (error != 0) {
		wb->late_error = wb->late_error != 0 ? wb->late_error : error;
		wb->report.late_errors++;
		log_warning("volume %s: a buffered write of %llu bytes at %llu failed (%s): the next flush will tell",
			    wb->volume->name, (unsigned long long)request->length, (unsigned long long)request->offset,
			    strerror(-error));
	}
	for (unsigned i = 0; i < drain->count; i++) {
		struct page *page = drain->pages[i];

		page->writing = false;
		if (!page->dirty)
			page_free(wb, page);
	}
	list_remove(&drain->link);
	list_append(&wb->drains_free, &drain->link);
}

static bool is_before_barrier(const struct write_back *wb, const struct page *page)
{
	return !wb->barred || page->number <= wb->barrier;
}

static bool can_drain(const struct write_back *wb, const struct page *page)
{
	return page != NULL && page->dirty && !page->writing && is_before_barrier(wb, page);
}

/* The first dirty page that is not under way, with those that follow it on the origin. */
static void drain_start(struct write_back *wb, struct page *page)
{
	struct list *link = list_pop(&wb->drains_free);
	struct drain *drain = container_of(link, struct drain, link);
	uint64_t index = page->index;

	assert(link != NULL);
	drain->count = 0;
	drain->number = page->number;
	for (; can_drain(wb, page) && drain->count < DRAIN_PAGES; page = page_find(wb, index + drain->count)) {
		memcpy(drain->buffer + (size_t)drain->count * ARENA_PAGE_BYTES, page->data, ARENA_PAGE_BYTES);
		drain->number = page->number < drain->number ? page->number : drain->number;
		drain->pages[drain->count++] = page;
		page->dirty = false;
		page->writing = true;
		list_remove(&page->link);
		wb->dirty_count--;
	}
	drain->request = (struct request){
		.op = REQUEST_WRITE,
		.offset = index * ARENA_PAGE_BYTES,
		.length = (uint64_t)drain->count * ARENA_PAGE_BYTES,
		.buffer = drain->buffer,
		.export = &wb->volume->origin_export,
		.complete = drained,
		.context = drain,
	};
	list_append(&wb->drains, &drain->link);
	origin_submit_now(wb->volume, &drain->request);
}

static bool is_to_be_drained(const struct write_back *wb, const struct page *page)
{
	if (!is_before_barrier(wb, page))
		return false;
	return page->number <= wb->hurry_to || wb->dirty_count > wb->page_count / 4 || wb->volume->stopping ||
	       !list_is_empty(&wb->starved);
}

static void drain_more(struct write_back *wb)
{
	struct list *link = wb->dirty.next;

	while (link != &wb->dirty && !list_is_empty(&wb->drains_free)) {
		struct page *page = container_of(link, struct page, link);

		if (!is_to_be_drained(wb, page))
			return;
		link = link->next;
		if (page->writing)
			continue; /* rule 3: it waits for its own write */
		drain_start(wb, page);
		link = wb->dirty.next; /* the run may have taken the next ones; those before it are under way */
	}
}

/* ---- requests ---- */

static bool is_whole_pages(const struct request *request)
{
	return request->offset % ARENA_PAGE_BYTES == 0 && request->length % ARENA_PAGE_BYTES == 0 && request->length > 0;
}

static bool is_bufferable(const struct write_back *wb, const struct request *request)
{
	uint64_t pages = request->length / ARENA_PAGE_BYTES;

	return request->op == REQUEST_WRITE && (request->flags & REQUEST_FUA) == 0 && is_whole_pages(request) &&
	       pages <= WRITE_PAGES_MAX && pages <= wb->page_count / 4;
}

/* How many of the pages that the request touches are in the buffer; and how many it touches. */
static uint64_t pages_buffered(const struct write_back *wb, const struct request *request, uint64_t *touched)
{
	uint64_t first = request->offset / ARENA_PAGE_BYTES, found = 0;
	uint64_t end = (request->offset + request->length + ARENA_PAGE_BYTES - 1) / ARENA_PAGE_BYTES;

	*touched = end - first;
	if (*touched > wb->page_count) {
		/* a large range: look at what is buffered instead */
		for (size_t i = 0; i < wb->page_count; i++) {
			const struct page *page = &wb->pages[i];

			found += (page->dirty || page->writing) && page->index >= first && page->index < end;
		}
		return found;
	}
	for (uint64_t index = first; index < end; index++)
		found += page_find(wb, index) != NULL;
	return found;
}

static bool is_barred(const struct write_back *wb, const struct request *request)
{
	if (!wb->barred)
		return false;
	for (uint64_t i = 0; i < request->length / ARENA_PAGE_BYTES; i++) {
		const struct page *page = page_find(wb, request->offset / ARENA_PAGE_BYTES + i);

		if (page != NULL && page->dirty && page->number <= wb->barrier)
			return true;
	}
	return false;
}

/* False: there are not pages enough, or what one of them holds is to be in the snapshot that is being taken. */
static bool buffer_write(struct write_back *wb, struct request *request)
{
	uint64_t first = request->offset / ARENA_PAGE_BYTES, touched;
	uint64_t needed = request->length / ARENA_PAGE_BYTES - pages_buffered(wb, request, &touched);
	uint64_t free_pages = 0;

	for (struct list *link = wb->free.next; link != &wb->free && free_pages < needed; link = link->next)
		free_pages++;
	if (free_pages < needed || is_barred(wb, request))
		return false;
	for (uint64_t i = 0; i < touched; i++) {
		struct page *page = page_find(wb, first + i);

		if (page == NULL)
			page = page_take(wb, first + i);
		memcpy(page->data, request->buffer + i * ARENA_PAGE_BYTES, ARENA_PAGE_BYTES);
		if (page->dirty)
			continue;
		page->dirty = true;
		page->number = ++wb->number_last;
		list_append(&wb->dirty, &page->link);
		wb->dirty_count++;
	}
	wb->report.writes++;
	request->complete(request, 0);
	return true;
}

static void answer_from_pages(const struct write_back *wb, struct request *request)
{
	uint64_t done = 0;

	while (done < request->length) {
		uint64_t at = request->offset + done, skip = at % ARENA_PAGE_BYTES;
		uint64_t bytes = ARENA_PAGE_BYTES - skip;
		const struct page *page = page_find(wb, at / ARENA_PAGE_BYTES);

		assert(page != NULL);
		if (bytes > request->length - done)
			bytes = request->length - done;
		memcpy(request->buffer + done, page->data + skip, (size_t)bytes);
		done += bytes;
	}
	request->complete(request, 0);
}

/* Rules 2 and 4: the request is passed on; a flush may fail for the writes that came before it. */
static void pass_on(struct write_back *wb, struct request *request)
{
	int error = wb->late_error;

	if (error != 0 && request->op == REQUEST_FLUSH) {
		wb->late_error = 0;
		request->complete(request, error);
	} else {
		origin_submit_now(wb->volume, request);
	}
}

static void hurry(struct write_back *wb, uint64_t number)
{
	if (wb->hurry_to < number)
		wb->hurry_to = number;
}

static bool modifies(const struct request *request)
{
	return request->op == REQUEST_WRITE || request->op == REQUEST_ZERO || request->op == REQUEST_DISCARD;
}

static void wait_for_all(struct write_back *wb, struct request *request)
{
	list_init(&request->link);
	request->cursor = wb->number_last;
	hurry(wb, wb->number_last);
	list_append(&wb->waiting, &request->link);
}

void write_back_submit(struct volume *volume, struct request *request)
{
	struct write_back *wb = volume->write_back;
	uint64_t buffered, touched;

	if (is_bufferable(wb, request)) {
		/* who waits for pages already goes first */
		if (!list_is_empty(&wb->starved) || !buffer_write(wb, request)) {
			list_init(&request->link);
			list_append(&wb->starved, &request->link);
		}
		return;
	}
	if (request->op == REQUEST_FLUSH)
		buffered = touched = oldest(wb) != UINT64_MAX;
	else
		buffered = pages_buffered(wb, request, &touched);
	if (buffered == 0 && !(wb->barred && modifies(request)))
		pass_on(wb, request);
	else if (request->op == REQUEST_READ && buffered == touched)
		answer_from_pages(wb, request);
	else
		wait_for_all(wb, request);
}

bool write_back_barrier(struct volume *volume)
{
	struct write_back *wb = volume->write_back;

	if (wb == NULL)
		return true;
	if (!wb->barred) {
		wb->barred = true;
		wb->barrier = wb->number_last;
		hurry(wb, wb->barrier);
	}
	return oldest(wb) > wb->barrier;
}

bool write_back_is_barred(const struct volume *volume)
{
	return volume->write_back != NULL && volume->write_back->barred;
}

void write_back_lift(struct volume *volume)
{
	if (volume->write_back != NULL)
		volume->write_back->barred = false;
}

bool write_back_is_empty(const struct volume *volume)
{
	const struct write_back *wb = volume->write_back;

	return wb == NULL || (oldest(wb) == UINT64_MAX && list_is_empty(&wb->waiting) && list_is_empty(&wb->starved));
}

int write_back_late_error(const struct volume *volume)
{
	return volume->write_back == NULL ? 0 : volume->write_back->late_error;
}

void write_back_turn(struct volume *volume)
{
	struct write_back *wb = volume->write_back;
	uint64_t written;

	if (wb == NULL)
		return;
	while (!list_is_empty(&wb->starved)) {
		struct list *link = list_pop(&wb->starved);

		if (buffer_write(wb, container_of(link, struct request, link)))
			continue;
		list_append(wb->starved.next, link); /* back to the head */
		break;
	}
	drain_more(wb);
	written = oldest(wb);
	list_for_each_safe(link, &wb->waiting) {
		struct request *request = container_of(link, struct request, link);

		if (request->cursor >= written || (wb->barred && modifies(request)))
			continue;
		list_remove(link);
		pass_on(wb, request);
	}
}

/* What was dirty at the tick before this one is drained. */
void write_back_tick(struct volume *volume)
{
	struct write_back *wb = volume->write_back;

	if (wb == NULL)
		return;
	hurry(wb, wb->number_at_tick);
	wb->number_at_tick = wb->number_last;
}

void write_back_get_report(const struct volume *volume, struct write_back_report *report)
{
	const struct write_back *wb = volume->write_back;

	*report = (struct write_back_report){ 0 };
	if (wb == NULL)
		return;
	*report = wb->report;
	list_for_each(link, &wb->drains)
		report->dirty_bytes += container_of(link, struct drain, link)->request.length;
	report->dirty_bytes += wb->dirty_count * ARENA_PAGE_BYTES;
}
